"""The rules of the algebra pass, one family a file; each file ends with its `RULES`."""
