"""The walk over a graph that gives every dimension of every value its atoms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.dimensions.atoms import Atoms, Dims, Ints
from lepton_jax.ir.graph import Graph, Node, Value

Rule = Callable[["Walk", Node, Sequence[Dims]], Sequence[Dims]]
"""Of the atoms of a node's operands those of its results."""


@dataclass(frozen=True)
class Option:
    """One way to cut what an operation takes apart or puts together.

    Attributes:
        pairs: what is united so.
        pins: what cannot be cut any more, with the reason.
        needs: this can be done where none of these is pinned throughout.
    """

    pairs: Sequence[tuple[Ints, Ints]]
    pins: Sequence[tuple[Ints, str]]
    needs: Sequence[Ints]


@dataclass(frozen=True)
class Choice:
    """Ways to cut of which only one can be had; they are settled when all hard pins are known.

    Attributes:
        options: the best first.
        whole: if one of these is pinned throughout, nothing can be cut.
        all: what is pinned where no option is left.
        reason: then.
    """

    options: Sequence[Option]
    whole: Sequence[Ints]
    all: Sequence[Ints]
    reason: str


@dataclass(eq=False)
class Walk:
    """What was found so far.

    Attributes:
        late: whether a value depends on what is not a parameter.
        atoms: the atoms.
        dims: of each value met the atoms of its dimensions.
        choices: what is to be settled at the end.
        layers: the leading dimensions of what scans read and stack.
        read: the dimensions that something reads, by identity.
    """

    late: Callable[[Value], bool]
    atoms: Atoms = field(default_factory=Atoms)
    dims: dict[Value, Dims] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    layers: list[Ints] = field(default_factory=list)
    read: dict[int, Ints] = field(default_factory=dict)
    _alone: dict[int, Ints] = field(default_factory=dict)
    _places: dict[int, str] = field(default_factory=dict)

    def fresh(self, value: Value) -> Dims:
        """New atoms for a value, united with nothing."""
        return tuple(self.fresh_dim(size) for size in value.shape)

    def fresh_dim(self, size: Any) -> Ints:
        """New atoms for a dimension; one, pinned, for a symbolic dimension."""
        if type(size) is int:
            return self.atoms.fresh(size)
        found = self.atoms.fresh(1)
        self.atoms.pin(found, f"its size {size} is symbolic")
        return found

    def of(self, value: Value) -> Dims:
        """The atoms of a value."""
        found = self.dims.get(value)
        if found is None:
            found = self.dims[value] = self.fresh(value)
        return found

    def give(self, value: Value, dims: Dims) -> None:
        """Let a value have these atoms, united with those that it has."""
        for atoms, size in zip(dims, value.shape, strict=True):
            assert len(atoms) == (size if type(size) is int else 1), (value, len(atoms), size)
            if len(atoms) == 1 and id(atoms) not in self._alone:
                self._alone[id(atoms)] = atoms
                alone = "it is the only index of its dimension"
                node = value.node
                self.atoms.pin(
                    atoms, alone if node is None else self.reason(node, "makes a dimension of it alone")
                )
        known = self.dims.setdefault(value, dims)
        self.unite(known, dims)

    def unite(self, left: Dims, right: Dims) -> None:
        """Let two values of one shape be cut together."""
        for a, b in zip(left, right, strict=True):
            self.atoms.unite(a, b)

    def note_read(self, dims: Dims) -> None:
        """Note that something reads all of a value."""
        for atoms in dims:
            self.read.setdefault(id(atoms), atoms)

    def pin(self, atoms: Ints, node: Node, why: str) -> None:
        """Let atoms not be cut because of what an operation does."""
        self.atoms.pin(atoms, self.reason(node, why))

    def pin_all(self, values: Sequence[Dims], node: Node, why: str) -> None:
        """Pin all dimensions of some values."""
        for dims in values:
            for atoms in dims:
                self.pin(atoms, node, why)

    def reason(self, node: Node, why: str) -> str:
        """A reason that names the operation and the user's line."""
        place = self._places.get(id(node))
        if place is None:
            where = " in ".join(part for part in (_jax.summarize(node.source), node.scope) if part)
            place = self._places[id(node)] = f"{node.op} at {where}" if where else node.op
        return f"{place} {why}"

    def run(self, graph: Graph) -> None:
        """Walk over a graph whose inputs have their atoms."""
        for node in graph:
            operands = [self.of(value) for value in node.operands]
            results = self._rule(node)(self, node, operands)
            for value, dims in zip(node.results, results, strict=True):
                self.give(value, dims)
        for value in graph.outputs:
            self.of(value)

    def _rule(self, node: Node) -> Rule:
        values = (*node.operands, *node.results)
        if not all(_jax.is_array_aval(value.aval) for value in values):
            return unknown
        return RULES.get(node.op, unknown)


RULES: Final[dict[str, Rule]] = {}


def dimension_rule(*ops: str, reads: bool = True) -> Callable[[Rule], Rule]:
    """Register the rule of operations.

    Args:
        reads: whether they read all of their operands; other rules note it themselves.
    """

    def register(rule: Rule) -> Rule:
        def reading(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
            for dims in operands:
                walk.note_read(dims)
            return rule(walk, node, operands)

        for op in ops:
            RULES[op] = reading if reads else rule
        return rule

    return register


def unknown(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Nothing is known of the operation: nothing of what it reads and makes can be cut."""
    for dims in operands:
        walk.note_read(dims)
    results = [walk.fresh(value) for value in node.results]
    walk.pin_all([*operands, *results], node, "needs it whole")
    return results


def settle(atoms: Atoms, choices: Sequence[Choice]) -> None:
    """Decide every choice: first those that pins leave no freedom, then the best option, in program order."""
    waiting = list(choices)
    atoms.solve()
    while waiting:
        open_: list[tuple[Choice, Option]] = []
        forced = False
        for choice in waiting:
            options = [] if _any_stuck(atoms, choice.whole) else _possible(atoms, choice.options)
            if len(options) > 1:
                open_.append((choice, options[0]))
                continue
            forced = True
            _take(atoms, choice, options[0] if options else None)
        waiting = [choice for choice, _ in (open_ if forced else _take_apart(atoms, open_))]
        atoms.solve()


def _take_apart(atoms: Atoms, choices: Sequence[tuple[Choice, Option]]) -> list[tuple[Choice, Option]]:
    """Decide the first, and those that have nothing to do with one before them; returns the others."""
    touched: set[int] = set()
    left: list[tuple[Choice, Option]] = []
    for choice, option in choices:
        here = set(np.unique(atoms.labels(np.concatenate(choice.all))).tolist())
        if touched.isdisjoint(here):
            _take(atoms, choice, option)
        else:
            left.append((choice, option))
        touched |= here
    return left


def _possible(atoms: Atoms, options: Sequence[Option]) -> list[Option]:
    return [option for option in options if not _any_stuck(atoms, option.needs)]


def _any_stuck(atoms: Atoms, each: Sequence[Ints]) -> bool:
    return any(bool(atoms.pinned(one).all()) for one in each)


def _take(atoms: Atoms, choice: Choice, option: Option | None) -> None:
    if option is None:
        for one in choice.all:
            atoms.pin(one, choice.reason)
        return
    for left, right in option.pairs:
        atoms.unite(left, right)
    for one, reason in option.pins:
        atoms.pin(one, reason)


def is_integer(value: Value) -> bool:
    """Whether a value holds integers (not truth values, not keys)."""
    return isinstance(value.dtype, np.dtype) and value.dtype.kind in "iu"


def constant_of(value: Value) -> Any | None:
    """The contents of a constant, as numpy; None if it is none."""
    return _jax.plain_constant(value.const) if value.is_const and np.ndim(value.const) == 0 else None
