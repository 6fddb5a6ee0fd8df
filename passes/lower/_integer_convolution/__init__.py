"""The rules of the pass `integer-convolution`."""
