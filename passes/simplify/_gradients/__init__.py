"""The rules of the pass `gradients`."""
