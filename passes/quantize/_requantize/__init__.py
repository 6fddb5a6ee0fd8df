"""What the pass `requantize` looks for, and its rules."""
