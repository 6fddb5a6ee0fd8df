"""The rules of the pass `batching`."""
