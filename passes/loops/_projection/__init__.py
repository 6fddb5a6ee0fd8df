"""Rules that move work out of the body of a scan."""
