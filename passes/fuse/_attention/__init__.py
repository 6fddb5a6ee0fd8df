"""The parts of the attention pass: finding attention and cutting it into blocks."""
