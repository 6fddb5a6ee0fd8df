"""Recurrences whose step is an associative composition."""
