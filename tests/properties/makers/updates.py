"""Arrays that are updated and read in the same step."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
from jax import lax

from lepton_jax.passes.lower.updates import RULES
from tests.properties._draw import SIMPLIFIED, Draw, Makers, P, Program

PASS: Final = "updates"


def _step(q: Any, new: Any, cache: Any, position: Any) -> Any:
    cache = lax.dynamic_update_slice(cache, new, (0, 0, position, 0))
    return jnp.einsum("bhd,bhsd->bhs", q, cache), cache


def _caches(d: Draw, batch: int = 1, length: int = 128) -> Program:
    dtype = d.pick("float32", "bfloat16", "float16")
    shapes = (batch, 4, 64), (batch, 4, 1, 64), (batch, 4, length, 64)
    position = jnp.int32(d.whole(-3, length + 3))
    return P(_step, *(d.like(shape, dtype) for shape in shapes), position, prepare=SIMPLIFIED)


MAKERS: Final[Makers] = {"update-once": (_caches, _caches)} if RULES else {}

ALIKE: Final[Makers] = (
    {"update-once": (lambda d: _caches(d, batch=2), lambda d: _caches(d, length=16))} if RULES else {}
)
