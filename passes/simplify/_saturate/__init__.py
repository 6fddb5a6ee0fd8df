"""Equality saturation: islands of products and sums, the rules of algebra, the cheapest equal program."""
