"""What the pass `weight-only` is made of."""
