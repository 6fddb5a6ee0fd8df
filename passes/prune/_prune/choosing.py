"""Which weights are pruned, each with all of its uses, and which are not and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from lepton_jax.ir.graph import Value
from lepton_jax.numerics.masks import Block, Channel, NofM, Pattern, Unstructured
from lepton_jax.passes._weights.moments import hessian_seen
from lepton_jax.passes._weights.selecting import Selection
from lepton_jax.passes._weights.uses import WeightUse
from lepton_jax.passes._weights.watching import Watcher
from lepton_jax.passes.prune._prune.masking import How
from lepton_jax.passes.prune._prune.matrices import Matrices, matrices_of, squares_seen

_VIEWS: Final = frozenset({"reshape", "squeeze", "expand_dims", "transpose", "copy", "convert_element_type"})


@dataclass(frozen=True)
class Chosen:
    """A weight that is pruned.

    Attributes:
        uses: that are selected, the first in program order first.
        how: it is pruned.
        watchers: what calibration has to see at those uses that read it as the first does.
        sizes: whether it has to see the sizes of inputs besides, for the share of each weight.
    """

    uses: tuple[WeightUse, ...]
    how: How
    watchers: tuple[tuple[WeightUse, Watcher], ...] = ()
    sizes: tuple[tuple[WeightUse, Watcher], ...] = ()

    @property
    def weight(self) -> Value:
        """The weight."""
        return self.uses[0].weight


def pattern_of(text: str) -> Pattern:
    """A pattern by its text: `unstructured`, `channel`, `2:4`, `4x4`.

    Raises:
        ValueError: it is none of these.
    """
    if text in ("unstructured", "channel"):
        return Unstructured() if text == "unstructured" else Channel()
    for sign, kind in ((":", NofM), ("x", Block)):
        numbers = text.split(sign)
        if len(numbers) == 2 and all(part.isdecimal() for part in numbers):
            first, second = map(int, numbers)
            return NofM(first, second) if kind is NofM else Block((first, second))
    raise ValueError(f"pattern is unstructured, channel, n:m as 2:4, or a block as 4x4; not {text!r}")


def weights_of(found: Selection) -> Iterator[tuple[list[WeightUse], str | None]]:
    """The weights with a selected use: these uses, and why they are not pruned although they are selected."""
    groups: dict[Value, list[WeightUse]] = {}
    others: dict[Value, WeightUse] = {}
    for use, reason in zip(found.uses, found.reasons, strict=True):
        if reason is None:
            groups.setdefault(use.weight, []).append(use)
        else:
            others.setdefault(_origin(use.weight), use)
    for weight, uses in groups.items():
        other = others.get(_origin(weight))
        yield uses, None if other is None else _stays_dense(other)


def _stays_dense(other: WeightUse) -> str:
    return f"{other.name}, a {other.node.op} that is not selected, reads it as it is: both would be kept"


def _origin(value: Value) -> Value:
    """What a value is a view of."""
    while value.node is not None and value.node.op in _VIEWS:
        value = value.node.operands[0]
    return value


def choose(uses: Sequence[WeightUse], how: How, by_inputs: bool) -> Chosen | str:
    """How a weight is pruned, or why it is not.

    Args:
        uses: of the weight.
        how: with all but what is the weight's own.
        by_inputs: whether its share depends on the sizes of its inputs.
    """
    matrices = matrices_of(uses[0])
    if isinstance(matrices, str):
        return matrices
    if not uses[0].weight.aval.size:
        return "it is empty"
    if reason := _misfit(matrices, how):
        return reason
    alike = [use for use in uses if matrices_of(use) == matrices]
    squares = [(use, sizes) for use in alike if (sizes := squares_seen(use)) is not None]
    hessians = [(use, moments) for use in alike if (moments := hessian_seen(use)) is not None]
    if not squares and (by_inputs or how.importance != "magnitude"):
        return "a table has no inputs to go by: importance=magnitude,distribution=uniform prunes it"
    watchers: dict[str, Sequence[tuple[WeightUse, Watcher]]] = {"wanda": squares, "sparsegpt": hessians}
    return Chosen(
        tuple(uses),
        replace(how, matrices=matrices, space=_space(uses[0])),
        tuple(watchers.get(how.importance, ())),
        tuple(squares) if by_inputs else (),
    )


def _misfit(matrices: Matrices, how: How) -> str | None:
    size, pattern = matrices.shape[matrices.along], how.pattern
    if isinstance(pattern, NofM) and size % pattern.m:
        return f"{size} inputs do not split into groups of {pattern.m}"
    alone = isinstance(pattern, Channel) and matrices.layout.shape(matrices.shape)[2] == 1
    if alone and matrices.layout.groups > 1 and how.importance == "sparsegpt":
        return "its groups have one output each, and sparsegpt ranks those of a group: importance=wanda"
    return None


def part_of(how: How) -> tuple[float, str] | None:
    """The part of a weight that goes, and of what; None where only its values say."""
    groups, inputs, outputs = how.matrices.layout.shape(how.matrices.shape)
    pattern, share, what = how.pattern, how.sparsity, f"{math.prod(how.matrices.shape):,} weights"
    if isinstance(pattern, NofM):
        return 0.0 if share == 0 else 1 - pattern.n / pattern.m, what
    if share is None:
        return None
    whole = groups if how.importance == "magnitude" or isinstance(pattern, Channel) else 1
    count = inputs if how.importance == "wanda" else whole * inputs * outputs
    if isinstance(pattern, Channel):
        count = outputs if how.importance == "sparsegpt" else groups * outputs
    if isinstance(pattern, Block):
        rows, columns = pattern.shape
        count = -(-inputs // rows) * -(-outputs // columns)
        what = f"{groups * count:,} blocks"
    return round(share * count) / count, what


def _space(use: WeightUse) -> int:
    """How many positions of a kernel read the same channel."""
    if use.node.op != "conv_general_dilated":
        return 1
    return math.prod(use.weight.shape[i] for i in use.node.params["dimension_numbers"].rhs_spec[2:])
