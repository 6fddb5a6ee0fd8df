"""Parts of the pass `precision`."""
