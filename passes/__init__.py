"""The pass library: one pass a file, each declared as an entry point of the group `lepton_jax.passes`."""
