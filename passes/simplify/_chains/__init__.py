"""The rules of chains: products of several matrices."""
