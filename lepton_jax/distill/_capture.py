"""Values from inside a function, by the scopes that they are computed in."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp

from lepton_jax.ir.export import evaluate
from lepton_jax.ir.graph import RETURN, Graph, Node, Value
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.ir.inline import inline_call, is_plain_call
from lepton_jax.ir.regions import editable
from lepton_jax.rewrite import UsageError


@dataclass(frozen=True)
class At:
    """Which value of a function is meant.

    Attributes:
        scope: a path of `jax.named_scope`s, Flax Linen modules, and names that
            `jax.ad_checkpoint.checkpoint_name` gives, joined by slashes, as `block0/attention`. Outer names
            may be left out where that is clear.
        op: the JAX primitive that computes the value, such as `dot_general`, anywhere in the scope; without,
            the value is one that leaves the scope.
        index: which of these, in the order of the program; the last by default.
        layer: of a value in a scan, the iteration; all of them, stacked, by default.
    """

    scope: str
    op: str | None = None
    index: int = -1
    layer: int | None = None


Place = str | At
"""A scope, or one value in it."""


def capture(fun: Callable[..., Any], places: Sequence[Place]) -> Callable[..., tuple[Any, tuple[Any, ...]]]:
    """A function that also returns what `fun` computes in some scopes.

    It works on any JAX function: it is traced, and values that have been computed on the way become results.
    The new function can be jitted, differentiated and batched; it traces at every call, so put it in
    `jax.jit`. Values that are computed in a scan are stacked along a new first axis.

    Args:
        fun: the function. Its arguments that are no arrays, such as `True`, stay Python values.
        places: scopes, or `At(scope, op=..., index=...)`. A scope alone stands for the last array of floats
            that is computed in it and read outside of it: what a block returns.

    Returns:
        A function of the same arguments that returns the result, and a tuple with an array for each place.

    Raises:
        UsageError: (when called) there is no such scope, with those that come near; several are meant; or the
            value cannot be had, as it is computed in a branch or in a `while` loop.

    Example:
        >>> def network(x):
        ...     with jax.named_scope("first"):
        ...         x = jnp.sin(x) * 2
        ...     return x + 1
        >>> result, (first,) = capture(network, ["first"])(jnp.zeros(2))
        >>> result.tolist(), first.tolist()
        ([1.0, 1.0], [0.0, 0.0])
    """
    wanted = [At(place) if isinstance(place, str) else place for place in places]

    def call(*args: Any, **kwargs: Any) -> tuple[Any, tuple[Any, ...]]:
        leaves, tree = jax.tree.flatten((args, kwargs))
        is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]
        arrays = [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]

        def flat(*arrays: Any) -> Any:
            given = iter(arrays)
            filled = [next(given) if array else leaf for leaf, array in zip(leaves, is_array, strict=True)]
            args, kwargs = jax.tree.unflatten(tree, filled)
            return fun(*args, **kwargs)

        jaxpr, shapes = jax.make_jaxpr(flat, return_shape=True)(*arrays)
        graph = from_jaxpr(jaxpr, getattr(fun, "__name__", "f"))
        count = len(graph.outputs)
        _open_calls(graph)
        scoped = list(_scoped(graph, ()))
        found = [_find(place, scoped) for place in wanted]
        graph.set_outputs([*graph.outputs, *(_raised(*each) for each in zip(found, wanted, strict=True))])
        results = evaluate(graph, arrays)
        values = [
            value if place.layer is None else value[place.layer]
            for value, place in zip(results[count:], wanted, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(shapes), results[:count]), tuple(values)

    return call


def scopes(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
    """The scopes of a function, in the order of the program, to choose from for `capture`.

    Args:
        fun: the function.
        args: its arguments: arrays, `jax.ShapeDtypeStruct`s, or trees of them.
        kwargs: those by name.

    Example:
        >>> def network(x):
        ...     with jax.named_scope("first"):
        ...         return jnp.sin(x)
        >>> scopes(network, jnp.zeros(2))
        ['first']
    """
    graph = from_jaxpr(jax.make_jaxpr(lambda *a: fun(*a, **kwargs))(*args))
    _open_calls(graph)
    return _names(list(_scoped(graph, ())))


@dataclass(frozen=True)
class _Scoped:
    """A node, the path of its scope, and the nodes whose regions it stands in."""

    node: Node
    path: tuple[str, ...]
    around: tuple[Node, ...]


def _open_calls(graph: Graph) -> None:
    """Write plain calls into their callers, so that each has scopes of its own."""
    for inner in graph.graphs():
        waiting = [node for node in inner if is_plain_call(node)]
        while waiting:
            node = waiting.pop()
            before = node.prev
            inline_call(node)
            assert before is not None
            fresh = before.next
            while fresh is not None and fresh.op != RETURN and is_plain_call(fresh):
                waiting.append(fresh)
                fresh = fresh.next
    if any(is_plain_call(node) for inner in graph.graphs() for node in inner):
        _open_calls(graph)


def _scoped(graph: Graph, outer: tuple[str, ...], around: tuple[Node, ...] = ()) -> Iterator[_Scoped]:
    """All nodes in program order, those of regions before the node that runs them."""
    for node in graph:
        path = (*outer, *_path(node.scope))
        if node.op == "name":
            path = (*path, str(node.params["name"]))
        if node.op not in _CLOSED:
            for region in node.regions:
                yield from _scoped(region, path, (*around, node))
        yield _Scoped(node, path, around)


_CLOSED: Final = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_linear_solve"})
"""What has a derivative of its own: nothing is taken out of it."""


def _path(scope: str) -> tuple[str, ...]:
    """The names of a name stack, without those of functions and transformations."""
    names = (_WRAPPED.sub(r"\1", _CALLED.sub("", name)) for name in scope.split("/"))
    return tuple(name for name in names if name)


_CALLED: Final = re.compile(r"^(?:jit|pjit|checkpoint|remat|closed_call)\(.*\)$")
_WRAPPED: Final = re.compile(r"^(?:\w+\()+([^()]*)\)+$")


def _find(place: At, scoped: Sequence[_Scoped]) -> tuple[Value, Graph]:
    """The value that is meant, and the graph that computes it."""
    scope = _resolve(place, scoped)
    inside = [each for each in scoped if each.path[: len(scope)] == scope]
    members = {each.node for each in inside}
    if place.op is None:
        values = [
            (value, each.node)
            for each in inside
            if not members.intersection(each.around)
            for value in each.node.results
            if any(user not in members for user in value.users())
        ]
        values = values or [(v, each.node) for each in inside[-1:] for v in each.node.results]
    else:
        values = [(v, each.node) for each in inside if each.node.op == place.op for v in each.node.results]
    values = [(v, node) for v, node in values if v.dtype is not None and jnp.issubdtype(v.dtype, jnp.inexact)]
    name = "/".join(scope)
    if not values and place.op is not None:
        ops = ", ".join(dict.fromkeys(each.node.op for each in inside))
        raise UsageError(f"the scope {name} has no {place.op} of floats; it has {ops}")
    if not -len(values) <= place.index < len(values):
        raise UsageError(f"the scope {name} has {len(values)} such values of floats; index is {place.index}")
    value, node = values[place.index]
    assert node.graph is not None
    return value, node.graph


def _resolve(place: At, scoped: Sequence[_Scoped]) -> tuple[str, ...]:
    """The whole path of a scope.

    Raises:
        UsageError: there is none of the name, or several.
    """
    wanted = tuple(name for name in place.scope.split("/") if name)
    if not wanted:
        raise UsageError("a scope has a name: leave the place out for what the whole function returns")
    found: dict[tuple[str, ...], None] = {}
    for each in scoped:
        for end in range(len(wanted), len(each.path) + 1):
            if each.path[end - len(wanted) : end] == wanted:
                found[each.path[:end]] = None
                break
    if wanted in found:
        return wanted
    if len(found) > 1:
        several = ", ".join(map("/".join, found))
        raise UsageError(f"{place.scope!r} names several scopes: {several}")
    if found:
        return next(iter(found))
    names = _names(scoped)
    if not names:
        raise UsageError(
            f"there is no scope {place.scope!r}: the function has none; give it some with jax.named_scope"
        )
    ends = {name.rsplit("/", 1)[-1]: name for name in names} | {name: name for name in names}
    near = [ends[each] for each in difflib.get_close_matches(place.scope, list(ends), 4, 0.5)]
    shown = list(dict.fromkeys(near)) or names[:12]
    word = "near it are" if near else "there are"
    raise UsageError(f"there is no scope {place.scope!r}; {word} {', '.join(shown)}")


def _names(scoped: Sequence[_Scoped]) -> list[str]:
    paths = {each.path[:end]: None for each in scoped for end in range(1, len(each.path) + 1)}
    return ["/".join(path) for path in paths]


def _raised(found: tuple[Value, Graph], place: At) -> Value:
    """A value at the top of the program, stacked over the scans that it stands in, outermost first.

    Raises:
        UsageError: it stands where it need not be computed, or in no scan though one of its layers is wanted.
    """
    value, graph = found
    if place.layer is not None and not any(_parent(g).op == "scan" for g in _above(graph)):
        raise UsageError(f"{place.scope!r} stands in no scan: leave layer out")
    while graph.parents:
        node = _parent(graph)
        if node.op not in _OPEN or len(graph.parents) > 1 or not editable(node):
            raise UsageError(
                f"{place.scope!r} is computed in a {node.op}, out of which nothing can be taken: "
                "name a value outside of it"
            )
        shape, dtype = value.shape, value.dtype
        if node.op == "scan":
            shape = (node.params["length"], *shape)
        graph.set_outputs([*graph.outputs, value])
        value = Value(jax.typeof(jax.ShapeDtypeStruct(shape, dtype)), node, len(node.results))
        node.set_results([*node.results, value])
        node.raw = None
        assert node.graph is not None
        graph = node.graph
    return value


_OPEN: Final = frozenset({"scan", "jit", "closed_call", "core_call", "remat2", "checkpoint"})


def _parent(graph: Graph) -> Node:
    return graph.parents[0]


def _above(graph: Graph) -> Iterator[Graph]:
    """A graph and those whose nodes run it, without the topmost one."""
    while graph.parents:
        yield graph
        inner = _parent(graph).graph
        assert inner is not None
        graph = inner
