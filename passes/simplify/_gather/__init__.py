"""The rules of gather: one-hot products and masked sums."""
