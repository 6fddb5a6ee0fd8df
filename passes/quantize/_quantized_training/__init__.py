"""Products of few bits whose derivatives are products of few bits."""
