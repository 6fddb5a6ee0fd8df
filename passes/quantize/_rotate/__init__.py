"""Where a program can be rotated, and how: see `lepton_jax.passes.quantize.rotate`."""
