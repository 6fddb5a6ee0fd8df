"""The rules of the movement pass, a family a file."""
