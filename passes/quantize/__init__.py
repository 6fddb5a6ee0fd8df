"""Passes that compute or store numbers in fewer bits."""
