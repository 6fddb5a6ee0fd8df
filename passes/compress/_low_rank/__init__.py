"""The parts of the pass `low-rank`."""
