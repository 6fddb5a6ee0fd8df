"""`lepton.dependencies`: which dimensions of a model's parameters are cut together."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lepton_jax._inputs import Inputs, name_inputs
from lepton_jax._modules import as_function
from lepton_jax._options import Names, Numbers, StaticArguments, make_options
from lepton_jax._stage import trace_call
from lepton_jax.ir.cutting import inline_calls
from lepton_jax.ir.dimensions import Dependencies, analyse
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.ir.paths import choose
from lepton_jax.rewrite import PassContext, Pipeline
from lepton_jax.targets import get_target

_SIMPLER: Final = "fold,dce"


@dataclass(frozen=True)
class TracedCall:
    """A call as a graph in which every array is one value.

    Attributes:
        graph: calls inlined, what depends on constants alone folded.
        inputs: what its inputs are called, and which are parameters.
        out_tree: the tree of its results.
    """

    graph: Graph
    inputs: Inputs
    out_tree: Any

    @property
    def params(self) -> dict[int, str]:
        """The paths of the parameters, by position among the graph's inputs."""
        return {i: self.inputs.paths[i] for i in sorted(self.inputs.params)}

    def dependencies(self, protect: Names = None) -> Dependencies:
        """Which dimensions are cut together; see `dependencies`."""
        names = dict(enumerate(self.inputs.paths))
        shapes = {i: value.ndim for i, value in enumerate(self.graph.inputs)}
        given = protected(protect, self.params, shapes)
        return analyse(self.graph, self.params, paths=names, protect=given)


def trace_whole(
    fun: Callable[..., Any], static: StaticArguments, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> TracedCall:
    """Trace a call whose first argument are the parameters, for analysis and cutting."""
    jaxpr, out_tree = trace_call(fun, static, args, kwargs)
    graph = inline_calls(from_jaxpr(jaxpr, getattr(fun, "__name__", "f")))
    ctx = PassContext(get_target(None), "exact")
    for step in Pipeline.parse(_SIMPLER).passes():
        step.run(graph, ctx)
    return TracedCall(graph, name_inputs(fun, (0,), static, args, kwargs), out_tree)


def static_of(fun: Callable[..., Any], numbers: Numbers, names: Names) -> StaticArguments:
    """The static arguments of a function, by position and by name as in `lepton.optimize`."""
    options = make_options("none", "exact", None, numbers, names, None, None, False, None, False)
    return StaticArguments.of(fun, options)


def protected(
    patterns: Names, params: Mapping[int, str], ndims: Mapping[int, int]
) -> dict[tuple[int, int], str]:
    """The dimensions that patterns choose, by the parameter's position and the dimension, with the reason.

    Raises:
        ValueError: a pattern chooses nothing.
    """
    found: dict[tuple[int, int], str] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        found |= dict.fromkeys(places(pattern, params, ndims, "protect"), f"{pattern!r} protects it")
    return found


def places(
    pattern: str, params: Mapping[int, str], ndims: Mapping[int, int], what: str
) -> list[tuple[int, int]]:
    """The dimensions that a pattern chooses, by the parameter's position and the dimension.

    Args:
        pattern: of paths, `params/*/kernel`, or of one dimension of these, `params/head[1]`.
        what: what the pattern is for, for the message.

    Raises:
        ValueError: it chooses nothing.
    """
    path, dim = _split(pattern)
    positions = list(params)
    chosen = [positions[i] for i in sorted(choose([path], list(params.values()), what))]
    if dim is None:
        return [(i, each) for i in chosen for each in range(ndims[i])]
    found = [(i, dim % ndims[i]) for i in chosen if -ndims[i] <= dim < ndims[i]]
    if not found:
        sizes = ", ".join(f"{params[i]} has {ndims[i]}" for i in chosen[:3])
        raise ValueError(f"{what}: {pattern!r} is no dimension of what it matches: {sizes}")
    return found


def _split(pattern: str) -> tuple[str, int | None]:
    """A pattern and the dimension behind it, as in `params/head/kernel[1]`."""
    match = re.fullmatch(r"(.*)\[(-?\d+)\]", pattern)
    return (pattern, None) if match is None else (match[1], int(match[2]))


def dependencies(
    fun: Callable[..., Any] | Any,
    *args: Any,
    protect: Names = None,
    static_argnums: Numbers = None,
    static_argnames: Names = None,
    **kwargs: Any,
) -> Dependencies:
    """Which dimensions of a model's parameters are cut together: `dependencies(fun, params, *sample)`.

    Cutting an output channel of a layer cuts its bias, its norm's scale, and the input channels of all that
    reads it. The units that can be cut alone, each with what goes with it, are found in the graph: through
    products, convolutions, norms, residual sums, concatenation, reshapes, heads of attention, scans over
    stacked layers. What the caller sees, inputs and results, is not cut.

    Args:
        fun: as in `compile`: a function of parameters and inputs; or a Linen, NNX or Equinox module.
        args: the parameters (unless `fun` holds them), and a sample of each input: arrays or
            `jax.ShapeDtypeStruct`s.
        protect: patterns of paths of parameters that are not cut, as `params/head`, with a dimension or
            without, as `params/head/kernel[0]`.
        static_argnums: as in `optimize`; the parameters are argument 0.
        static_argnames: as in `optimize`.
        kwargs: inputs that are given by name.

    Returns:
        The groups; print it. Those that cannot be cut say which operation stands against it.

    Raises:
        ValueError: `protect` chooses nothing.
        TypeError: `fun` is neither a function nor a module, or the parameters are missing.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
        >>> def f(params, x):
        ...     return jnp.tanh(x @ params["a"]) @ params["b"]
        >>> found = dependencies(f, params, jnp.ones((1, 3)))
        >>> print(found.cuttable[0])
        params/a[1]: 8 units, with params/b[0]
    """
    function, params, sample = as_function(fun, args)
    static = static_of(function, static_argnums, static_argnames)
    return trace_whole(function, static, (params, *sample), kwargs).dependencies(protect)
