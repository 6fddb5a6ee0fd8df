"""What `products` is made of."""
