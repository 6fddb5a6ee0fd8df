"""What a cost is, how large arrays are, and what single operations cost."""
