"""Where weights are used, what calibration sees there, and the passes that select some of them."""
