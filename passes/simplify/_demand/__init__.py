"""The parts of the pass `demand`."""
