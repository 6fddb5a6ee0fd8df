"""The rules of the pass `order`."""
