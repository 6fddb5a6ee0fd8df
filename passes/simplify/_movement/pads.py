"""Pads: that do nothing, that only cut, of pads, of nothing."""

from __future__ import annotations

from typing import Final

import jax
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import is_plain, made_by, movement_rule
from lepton_jax.passes.simplify._movement.slices import repeat, take
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

Config = tuple[tuple[int, int, int], ...]


def config_of(node: Node) -> Config:
    """(low, high, interior) for each dimension, the interior dropped where there is none to fill."""
    given = zip(node.params["padding_config"], node.operands[0].shape, strict=True)
    return tuple((low, high, within if length > 1 else 0) for (low, high, within), length in given)


def padded(x: jax.Array, fill: jax.Array, *, config: Config) -> jax.Array:
    """`x` padded."""
    return lax.pad(x, fill, config)


@movement_rule("pad")
def pad_with_nothing(node: Node, ctx: PassContext) -> Outcome:
    """pad(x, v) with no padding → x"""
    return None if any(map(any, config_of(node))) else node.operands[0]


@movement_rule("pad")
def pad_that_cuts(node: Node, ctx: PassContext) -> Outcome:
    """pad(x, v) with padding that is only negative → a slice of x"""
    x, config = node.operands[0], config_of(node)
    if any(low > 0 or high > 0 or within for low, high, within in config):
        return None
    start = tuple(-low for low, _, _ in config)
    limit = tuple(length + high for length, (_, high, _) in zip(x.shape, config, strict=True))
    return rewrite(take, x, start=start, limit=limit)


@movement_rule("pad")
def pad_of_empty(node: Node, ctx: PassContext) -> Outcome:
    """pad(x, v) → v repeated, for x without elements"""
    x, fill = node.operands
    if 0 not in x.shape or not is_plain(node.result):
        return None
    return rewrite(repeat, fill, shape=node.result.shape)


@movement_rule("pad")
def pad_of_pad(node: Node, ctx: PassContext) -> Outcome:
    """pad(pad(x, v), v) → pad(x, v) with both paddings, where none cuts and the interiors do not mix"""
    inner = made_by(node.operands[0], node, "pad")
    if inner is None or not _same_fill(inner.operands[1], node.operands[1]):
        return None
    config = []
    for first, second in zip(config_of(inner), config_of(node), strict=True):
        if not any(first) or not any(second):
            config.append(first if any(first) else second)
        elif first[2] or second[2] or min(first + second) < 0:
            return None
        else:
            config.append((first[0] + second[0], first[1] + second[1], 0))
    return rewrite(padded, inner.operands[0], inner.operands[1], config=tuple(config))


def _same_fill(a: Value, b: Value) -> bool:
    """Whether two scalars are one value, to the bit."""
    if a is b:
        return True
    if not a.is_const or not b.is_const or not a.literal or not b.literal or a.dtype != b.dtype:
        return False
    return np.asarray(a.const, a.dtype).tobytes() == np.asarray(b.const, b.dtype).tobytes()


RULES: Final[tuple[Rule, ...]] = (pad_with_nothing, pad_that_cuts, pad_of_empty, pad_of_pad)
