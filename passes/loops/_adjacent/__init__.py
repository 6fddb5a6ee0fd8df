"""Two loops in one: what is between them, and the loop that does the work of both."""
