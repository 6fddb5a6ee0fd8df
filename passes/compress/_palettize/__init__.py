"""Parts of the pass `palettize`."""
