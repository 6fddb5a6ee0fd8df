"""Choices by one number: only what is chosen is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np
from jax import lax

from lepton_jax.ir.cost import node_cost
from lepton_jax.ir.export import bind
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.passes.fuse._batching.uniform import Step, Uniform, followed, uniform
from lepton_jax.passes.simplify._movement.common import unplaced
from lepton_jax.rewrite import PassContext, erase_dead, profit, rewrite
from lepton_jax.rewrite.context import Level
from lepton_jax.rewrite.replacement import Rewrite, write_before

_NAME: Final = "choice-by-number"

_HEAVY: Final = frozenset(
    {
        *("dot_general", "conv_general_dilated", "scan", "while", "cond", "sort", "top_k", "fft"),
        *("lu", "cholesky", "qr", "svd", "eigh", "eig", "triangular_solve", "custom_linear_solve"),
        *("jit", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint"),
    }
)
"""What XLA does not compute together with the choice."""

_WORTH: Final = {"cpu": 20.0, "gpu": 20.0, "tpu": 8.0}
"""Operations that could be started in the time that must be saved on average: on a GPU, the host waits for
the number that chooses."""

_MOST_NODES: Final = 256
_MOST_TOGETHER: Final = 32


def choose_by_number(graph: Graph, ctx: PassContext, level: Level | None) -> None:
    """select(c, f(x), g(x)) → cond(c, f, g), where one number c chooses for all elements.

    What `vmap` makes of a cond or switch whose predicate is spread over the batch, and `jnp.where` with
    a number. Where what only one side needs takes long: products, convolutions, loops, sorts, calls. Choices
    by the same number are made together. Level `exact`: what is not chosen was never read.
    14× where the cheap side is chosen, 1× where the dear one is
    (`python benchmarks/rewrites.py --only batching`).
    """
    if not ctx.allows("exact", level):
        return
    for node in [n for n in graph if n.op == "select_n" and n.result.ndim]:
        if node.graph is None or not any(v.node is not None for v in node.operands[1:]):
            continue
        which = uniform(node.operands[0])
        if which is None or unplaced(node, ctx) is not None:
            continue
        choices = _together(node)
        if choices[0] is node and all(v.is_static for c in choices for v in (c.result, *c.operands)):
            _choose(choices, which, ctx)


def _choose(choices: list[Node], which: Uniform, ctx: PassContext) -> None:
    sides = [_private(choices, side) for side in range(1, len(choices[0].operands))]
    heavy = [[n for n in side if n.op in _HEAVY] for side in sides]
    if not any(heavy):
        return
    average = sum(ctx.seconds(node_cost(n)) for side in heavy for n in side) * (1 - 1 / len(sides))
    if average < _WORTH[ctx.rates.platform] * ctx.rates.seconds_per_node and not profit.is_disregarded():
        ctx.miss(_NAME, choices[0], f"saves {average * 1e6:.3g} µs on average, as estimated")
        return
    last = choices[-1]
    if not ctx.fire(_NAME, last, average):
        return
    for choice, value in zip(choices, write_before(_chosen(choices, which, sides), last, _NAME), strict=True):
        choice.result.replace_uses(value)
    for choice in reversed(choices):
        erase_dead(choice)


def _together(node: Node) -> list[Node]:
    """The choices by the same number, among others `node`, if they may be made where the last stands."""
    found = [
        user
        for user in _readers(node.operands[0])
        if user.op == "select_n" and user.graph is node.graph and user.context is node.context
    ]
    if len(found) < 2 or len(found) > _MOST_TOGETHER:
        return [node]
    graph = node.graph
    assert graph is not None
    wanted = set(found)
    ordered: list[Node] = []
    between: set[Node] = set()
    at: Node | None = graph.ret
    while at is not None and len(ordered) < len(found):
        at = at.prev
        if at in wanted:
            ordered.insert(0, at)
        if ordered and at is not None:
            between.add(at)
    early = any(user in between for choice in ordered for value in choice.results for user in value.users())
    same = all(len(choice.operands) == len(node.operands) for choice in ordered)
    return [node] if early or not same else ordered


def _readers(value: Value) -> list[Node]:
    return [user for user, place in value.uses if isinstance(user, Node) and place == 0]


def _private(choices: Sequence[Node], side: int) -> dict[Node, None]:
    """The nodes that only one side of the choices needs, last ones first."""
    found: dict[Node, None] = {}
    stack = [choice.operands[side].node for choice in choices]
    own = {(choice, side) for choice in choices}
    while stack and len(found) < _MOST_NODES:
        maker = stack.pop()
        if maker is None or maker in found or maker.effects or maker.context is not choices[0].context:
            continue
        uses = [use for value in maker.results for use in value.uses]
        if all(user in found or (user, place) in own for user, place in uses):
            found[maker] = None
            stack += [v.node for v in maker.operands]
    return found


def _chosen(choices: list[Node], which: Uniform, sides: list[dict[Node, None]]) -> Rewrite:
    """The choice with each side's own nodes inside."""
    graph = choices[0].graph
    assert graph is not None
    inside = {n for side in sides for n in side}
    ordered = [n for n in graph if n in inside]
    leaves: dict[Value, None] = {}
    for side, own in enumerate(sides, 1):
        read = [v for n in own for v in n.operands] + [choice.operands[side] for choice in choices]
        leaves |= dict.fromkeys(v for v in read if not v.is_const and v.node not in own)
    programs = tuple(
        Program(
            tuple(n for n in ordered if n in own),
            tuple(choice.operands[side] for choice in choices),
            tuple(leaves),
            which,
            side - 1,
        )
        for side, own in enumerate(sides, 1)
    )
    shapes = tuple(choice.result.shape for choice in choices)
    return rewrite(chosen, which.source, *leaves, steps=which.steps, programs=programs, shapes=shapes)


@dataclass(frozen=True, eq=False)
class Program:
    """What one side computes.

    Attributes:
        nodes: in order.
        outputs: the values that the choices are between.
        leaves: what it reads.
        which: what chooses.
        side: which of the choices' cases this is.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    leaves: tuple[Value, ...]
    which: Uniform
    side: int

    def run(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """The outputs; choices by the same number inside are made already."""
        known: dict[Value, Any] = dict(zip(self.leaves, arrays, strict=True))

        def read(value: Value) -> Any:
            return value.const if value.is_const else known[value]

        for node in self.nodes:
            case = self.case(node)
            if case is not None:
                known[node.result] = read(node.operands[1 + case])
            else:
                known.update(zip(node.results, bind(node, [read(v) for v in node.operands]), strict=True))
        return [read(value) for value in self.outputs]

    def case(self, node: Node) -> int | None:
        """Which operand a choice by the same number inside takes."""
        which = uniform(node.operands[0]) if node.op == "select_n" else None
        if which is None or which.source is not self.which.source:
            return None
        first = len(self.which.steps)
        if which.steps[:first] == self.which.steps:
            return int(which.at(self.side, first))
        known = self.which.decided
        if known is None or which.steps[:known] != self.which.steps[:known]:
            return None
        for number in (False, True):
            if int(self.which.at(number, known)) == self.side:
                return int(which.at(number, known))
        return None


def chosen(
    number: jax.Array,
    *leaves: jax.Array,
    steps: tuple[Step, ...],
    programs: tuple[Program, ...],
    shapes: tuple[tuple[int, ...], ...],
) -> Any:
    """The results of the program that the number chooses."""
    number = followed(number, steps)

    def branch(program: Program) -> Any:
        def run(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            made = program.run(arrays)
            return tuple(
                lax.broadcast_in_dim(x, shape, ()) if np.ndim(x) == 0 and math.prod(shape) != 1 else x
                for x, shape in zip(made, shapes, strict=True)
            )

        return run

    if number.dtype == bool:
        found = lax.cond(number, branch(programs[1]), branch(programs[0]), *leaves)
    else:
        found = lax.switch(number, [branch(p) for p in programs], *leaves)
    return found[0] if len(found) == 1 else found
