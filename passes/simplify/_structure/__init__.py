"""The rules of structure: products and solves with matrices of known form."""
