"""What the pass `prune` is made of."""
