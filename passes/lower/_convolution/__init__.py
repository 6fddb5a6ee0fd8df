"""The rules of the pass `convolution`."""
