"""What the passes on loops share: parts of bodies as functions, edits of scans, and when they pay."""
