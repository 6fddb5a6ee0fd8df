"""Programs over a mesh of devices: layouts, what they cost, who chooses them, and what carries them out."""
