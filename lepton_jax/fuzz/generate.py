"""Random programs: well typed, the same for the same seed, with much for the passes to do."""

from __future__ import annotations

import random

from lepton_jax.fuzz import arrays, idioms, regions, scalars
from lepton_jax.fuzz.generator import Generator
from lepton_jax.fuzz.program import Program


def generate(seed: int, size: int = 16, hostile: bool = False) -> Program:
    """The random program of a seed, the same at every call.

    Args:
        size: about how many statements it has, regions included.
        hostile: whether its arguments hold nan, infinities and zeros.
    """
    makers = [*scalars.MAKERS, *arrays.MAKERS, *idioms.MAKERS, *regions.MAKERS]
    return Program(Generator(random.Random(seed), size, makers).program(), seed, hostile)
