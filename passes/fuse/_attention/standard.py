"""Attention that library kernels know: scaled products, a band of keys, masks, a bias, capped scores."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.bands import EVERYTHING, Band
from lepton_jax.passes.fuse._attention.shape import Axes, Extra, Shape


@dataclass(eq=False)
class Standard:
    """Attention of the kind that kernels compute.

    Attributes:
        queries, keys, values: the operands of the two products.
        axes: the atoms of the axes of every value that depends on the scores.
        key_axes, value_axes: those of the keys and of the values.
        query_axes: those of the queries.
        result_axes: those of the product of weights and values.
        sizes: the number of elements that each atom counts.
        query, key: the atoms that count queries and keys.
        shared: the atoms that queries, keys and values have.
        groups: those that queries alone have.
        scale: what the products are multiplied by.
        cap: the largest absolute value of the scores, None for any.
        band: the keys that are seen.
        masks: further masks, with their axes and whether they are to be negated.
        biases: what is added, with the axes and the factor.
        fill: what masked scores are.
        conditions: the conditions under which scores are masked, as they stand in the graph.
    """

    score: Node
    queries: Value
    keys: Value
    values: Value
    axes: dict[Value, Axes]
    query_axes: Axes
    key_axes: Axes
    value_axes: Axes
    result_axes: Axes
    sizes: tuple[int, ...]
    query: int
    key: int
    shared: tuple[int, ...]
    groups: tuple[int, ...]
    scale: float = 1.0
    cap: float | None = None
    band: Band = EVERYTHING
    fill: float = -math.inf
    masks: list[tuple[Value, Axes, bool]] = field(default_factory=list)
    biases: list[tuple[Value, Axes, float]] = field(default_factory=list)
    conditions: list[Value] = field(default_factory=list)

    @property
    def extras(self) -> list[tuple[Value, Extra]]:
        """Masks and biases, masks first."""
        found = [(v, Extra("mask", axes, -1.0 if negated else 1.0)) for v, axes, negated in self.masks]
        return found + [(v, Extra("bias", axes, factor)) for v, axes, factor in self.biases]

    @property
    def shape(self) -> Shape:
        """All that is not an array; hashable."""
        return Shape(
            sizes=self.sizes,
            query=self.query,
            key=self.key,
            batch=self.shared[:1],
            heads=self.shared[1:],
            groups=self.groups,
            axes=(self.query_axes, self.key_axes, self.value_axes),
            result=self.result_axes,
            scale=self.scale,
            cap=self.cap,
            band=self.band,
            extras=tuple(extra for _, extra in self.extras),
            fill=self.fill,
            sources=(str(self.queries.dtype), str(self.keys.dtype), str(self.values.dtype)),
        )


class NotStandardError(Exception):
    """Why an attention is none that kernels compute."""
