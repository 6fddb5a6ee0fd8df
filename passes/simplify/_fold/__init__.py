"""What the fold pass computes with: numpy, which needs no compilation and no device."""
