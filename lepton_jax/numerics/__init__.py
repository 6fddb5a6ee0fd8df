"""Plain functions on arrays: samples to try a program on, and measures of error."""
