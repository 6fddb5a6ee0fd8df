"""The rules of the pass `fourier`."""
