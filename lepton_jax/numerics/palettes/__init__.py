"""Palettes: weights as indices into few numbers or short vectors, found by k-means."""

from lepton_jax.numerics.palettes.palette import (
    PaletteScheme,
    Palettized,
    decode,
    encode,
    look_up,
    nbytes,
    palette_of,
    palettize,
)
from lepton_jax.numerics.palettes.training import held, soft, trained

__all__ = [
    "PaletteScheme",
    "Palettized",
    "decode",
    "encode",
    "held",
    "look_up",
    "nbytes",
    "palette_of",
    "palettize",
    "soft",
    "trained",
]
