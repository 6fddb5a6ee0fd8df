"""What parameters can take in: see `lepton_jax.passes.simplify.absorb`."""
