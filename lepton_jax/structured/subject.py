"""What is pruned: a function, its parameters and a sample of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lepton_jax._inputs import name_inputs
from lepton_jax._options import StaticArguments
from lepton_jax.rewrite import UsageError
from lepton_jax.structured.dependencies import places
from lepton_jax.structured.smaller import Change, KeptIndices, Program, shapes_of, trace_program


class Subject:
    """A function, its parameters and a sample of its inputs.

    Attributes:
        fun: a function of parameters and inputs.
        params: the parameters.
        sample: of the inputs.
        static: its static arguments.
        shapes: of the parameters, a tree of `jax.ShapeDtypeStruct`s.
        leaves: the arrays of the parameters.
        paths: of these.

    Raises:
        UsageError: the parameters are shapes.
    """

    def __init__(
        self, fun: Callable[..., Any], params: Any, sample: Sequence[Any], static: StaticArguments
    ) -> None:
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
            raise UsageError("the parameters are shapes: give arrays, whose units are to be ranked and cut")
        self.fun, self.params, self.sample, self.static = fun, params, tuple(sample), static
        self.shapes = shapes_of(params)
        self.leaves = jax.tree.leaves(params)
        self.paths = name_inputs(fun, (0,), static, (params,), {}).paths

    def trace(
        self, *, protect: Mapping[tuple[int, int], str], dropped: frozenset[frozenset[int]] = frozenset()
    ) -> Program:
        """The function at the shapes of the sample, without these residual blocks."""
        args = (self.shapes, *self.sample)
        return trace_program(self.fun, self.static, args, {}, dropped=dropped, protect=protect)

    def places(self, pattern: str, what: str) -> list[tuple[int, int]]:
        """Positions and dimensions of parameters that a pattern means: `params/*/kernel`, `params/head[1]`.

        Raises:
            UsageError: it matches nothing; `what` says what it was for.
        """
        names, ndims = dict(enumerate(self.paths)), dict(enumerate(map(np.ndim, self.leaves)))
        try:
            return places(pattern, names, ndims, what)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def change(self, kept: KeptIndices, dropped: frozenset[frozenset[int]] = frozenset()) -> Change:
        """What becomes of the parameters where this is kept of them and these blocks are left out."""
        return Change(self.shapes, self.paths, kept, dropped)
