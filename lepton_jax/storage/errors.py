"""What can be wrong with a file."""

from __future__ import annotations


class LeptonFileError(ValueError):
    """A file is damaged, of another kind, of a newer version, or asks for more than it may."""
