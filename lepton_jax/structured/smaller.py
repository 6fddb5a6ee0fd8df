"""A function of smaller parameters: traced with the original ones, and cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from lepton_jax._options import StaticArguments
from lepton_jax._prepared import shape_of
from lepton_jax._stage import call_key, dynamic_leaves
from lepton_jax.ir import _jax, collection
from lepton_jax.ir.cutting import Cut, Indices, evaluate_cut, take
from lepton_jax.ir.dimensions import Dependencies, analyse
from lepton_jax.ir.graph import Graph
from lepton_jax.structured.blocks import drop_blocks
from lepton_jax.structured.dependencies import TracedCall, trace_whole

KeptIndices: TypeAlias = Mapping[tuple[int, int], Indices]
"""By position of a parameter among the leaves and by dimension: the indices that stay."""


@dataclass(frozen=True)
class Change:
    """What becomes of a function's parameters.

    Attributes:
        shapes: the tree of the original parameters, as `jax.ShapeDtypeStruct`s.
        paths: of its leaves, for messages.
        kept: what stays of them; of those that only dropped blocks read, nothing along dimension 0.
        dropped: of each residual block that is left out, the positions of the parameters that only it reads.
    """

    shapes: Any
    paths: tuple[str, ...]
    kept: KeptIndices = field(default_factory=dict)
    dropped: frozenset[frozenset[int]] = frozenset()

    @property
    def gone(self) -> frozenset[int]:
        """The positions of the parameters that only dropped blocks read."""
        return frozenset().union(*self.dropped)

    def shrink(self, tree: Any) -> Any:
        """What stays of a tree as that of the parameters.

        Raises:
            ValueError: the tree has another structure, or an array another shape.
        """
        leaves, structure = _flat(tree)
        wanted, expected = _flat(self.shapes)
        if structure != expected:
            raise ValueError(f"shrink: the tree is {structure}, that of the parameters is {expected}")
        found = []
        for position, (leaf, spec) in enumerate(zip(leaves, wanted, strict=True)):
            if np.shape(leaf) != spec.shape:
                raise ValueError(
                    f"shrink: {self.paths[position]} is {np.shape(leaf)}, the parameter was {spec.shape}"
                )
            found.append(take(leaf, self.of(position)))
        return jax.tree.unflatten(structure, found)

    def sizes(self) -> list[int]:
        """How many elements stay of each parameter."""
        found = []
        for position, spec in enumerate(jax.tree.leaves(self.shapes)):
            kept = self.of(position)
            found.append(math.prod(n if k is None else len(k) for n, k in zip(spec.shape, kept, strict=True)))
        return found

    def of(self, position: int) -> tuple[Indices | None, ...]:
        """What stays of each dimension of a parameter."""
        ndim = len(jax.tree.leaves(self.shapes)[position].shape)
        return tuple(self.kept.get((position, dim)) for dim in range(ndim))

    def then(self, after: Change) -> Change:
        """This change and another of what it leaves, as one."""
        kept = dict(self.kept)
        for key, indices in after.kept.items():
            kept[key] = kept[key][indices] if key in kept else indices
        return Change(self.shapes, self.paths, kept, self.dropped | after.dropped)


@dataclass(frozen=True)
class Program:
    """A function traced with the original parameters at one set of shapes.

    Attributes:
        call: the program, dropped blocks left out.
        found: which dimensions are cut together.
    """

    call: TracedCall
    found: Dependencies

    @property
    def graph(self) -> Graph:
        """The program."""
        return self.call.graph

    @property
    def params(self) -> dict[int, str]:
        """The paths of the parameters, by position among the graph's inputs."""
        return self.call.params

    def cut(self, change: Change) -> Cut:
        """What stays of every value.

        Raises:
            DimensionError: the parameters cannot be cut so.
        """
        return Cut.found(
            self.found, {key: kept for key, kept in change.kept.items() if key[0] not in change.gone}
        )

    @property
    def has_tracers(self) -> bool:
        """Whether it reads arrays of a trace that will end."""
        nodes = [node for graph in self.graph.graphs() for node in (*graph, graph.ret)]
        return any(
            value.is_const and isinstance(value.const, _jax.Tracer) for n in nodes for value in n.operands
        )


def trace_program(
    fun: Callable[..., Any],
    static: StaticArguments,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    dropped: frozenset[frozenset[int]] = frozenset(),
    protect: Mapping[tuple[int, int], str] | None = None,
    outputs: Literal["pinned", "free"] = "pinned",
) -> Program:
    """Trace a function of parameters and inputs, and find what is cut together.

    Args:
        args: the original parameters, or their shapes; then the inputs.
        dropped: residual blocks to leave out.
        protect: dimensions of parameters that are not to be cut, and why.
        outputs: `pinned`: nothing that results have is cut; `free`: results become smaller.
    """
    with collection.paused():
        call = trace_whole(fun, static, args, kwargs)
        names = dict(enumerate(call.inputs.paths))
        params = call.params
        drop_blocks(call.graph, params, dropped)
        found = analyse(call.graph, params, paths=names, protect=protect, outputs=outputs)
    return Program(call, found)


class Smaller:
    """A function of parameters and inputs, of smaller parameters.

    It can be called, differentiated, batched, jitted and exported as the function that it is made of.

    Attributes:
        original: that function.
        change: what became of its parameters.
        static: its static arguments.
    """

    def __init__(self, original: Callable[..., Any], change: Change, static: StaticArguments) -> None:
        self.original = original
        self.change = change
        self.static = static
        self.__name__ = self.__qualname__ = getattr(original, "__name__", "f")
        self.__wrapped__ = original  # whose signature it has
        self._cuts: dict[Any, tuple[Program, Cut]] = {}

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """The function's results. At new shapes of inputs it is traced and cut anew.

        Raises:
            ValueError: the parameters are not as small as they became.
            CutError: at these shapes of inputs the program cannot be cut so.
        """
        self._check(params)
        given = (self.change.shapes, *args)
        key = call_key(self.static, given, kwargs)
        made = self._cuts.get(key)
        if made is None:
            program = trace_program(
                self.original, self.static, given, kwargs, dropped=self.change.dropped, outputs="free"
            )
            made = program, program.cut(self.change)
            if not program.has_tracers:
                self._cuts[key] = made
        program, cut = made
        leaves = dynamic_leaves(self.static, (params, *args), kwargs)
        results = evaluate_cut(program.graph, leaves, cut)
        return jax.tree.unflatten(program.call.out_tree, results)

    def _check(self, params: Any) -> None:
        leaves, structure = _flat(params)
        wanted, expected = _flat(self.change.shapes)
        if structure != expected:
            raise ValueError(f"the parameters are {structure}, they were {expected}")
        for position, (leaf, spec) in enumerate(zip(leaves, wanted, strict=True)):
            kept = self.change.of(position)
            shape = tuple(n if each is None else len(each) for n, each in zip(spec.shape, kept, strict=True))
            if np.shape(leaf) != shape:
                path = self.change.paths[position]
                raise ValueError(
                    f"{path} is {np.shape(leaf)}; {shape} of its {spec.shape} are kept: give .params"
                )


def _flat(tree: Any) -> tuple[list[Any], Any]:
    """The leaves of a tree, and its structure, which type checkers do not let be compared."""
    return jax.tree.flatten(tree)


def shapes_of(tree: Any) -> Any:
    """A tree of `jax.ShapeDtypeStruct`s, with weak types."""
    return jax.tree.map(shape_of, tree)


def smaller(fun: Callable[..., Any], change: Change, static: StaticArguments) -> Smaller:
    """A function of smaller parameters; of one that is that already, both changes are made at once."""
    if isinstance(fun, Smaller) and not change.dropped:
        return Smaller(fun.original, fun.change.then(change), fun.static)
    return Smaller(fun, change, static)
