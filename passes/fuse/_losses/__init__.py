"""What the pass `losses` is made of."""
