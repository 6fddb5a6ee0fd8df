"""Out of the graph: re-evaluate it under whatever trace is running.

Nothing here builds equations. Untouched nodes bind their primitive with the parameters
they were traced with; a node whose regions changed is built anew through JAX's public
functions, so differentiation, batching, export and shardings are JAX's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lepton_jax.ir import _jax, _varying
from lepton_jax.ir.content import VARY
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.importer import from_jaxpr

Flat = Callable[..., list[Any]]


def to_callable(graph: Graph) -> Flat:
    """A function of the graph's flat inputs that returns its flat outputs.

    It may be called eagerly or under any JAX transformation.

    Example:
        >>> from lepton_jax.ir import trace
        >>> double = to_callable(trace(lambda x: x * 2, 1.0))
        >>> float(double(3.0)[0]), float(jax.grad(lambda x: double(x)[0])(3.0))
        (6.0, 2.0)
    """

    def fun(*args: Any) -> list[Any]:
        return evaluate(graph, args)

    fun.__name__ = fun.__qualname__ = graph.name
    return fun


def evaluate(graph: Graph, args: Sequence[Any]) -> list[Any]:
    """The outputs of a graph on arrays or tracers.

    Raises:
        TypeError: the number of arguments is not that of the graph's inputs.

    Example:
        >>> from lepton_jax.ir import trace
        >>> [float(x) for x in evaluate(trace(lambda x, y: (x + y, x * y), 1.0, 1.0), [3.0, 4.0])]
        [7.0, 12.0]
    """
    if len(args) != len(graph.inputs):
        raise TypeError(f"{graph.name} takes {len(graph.inputs)} arrays, got {len(args)}")
    env: dict[Value, Any] = dict(zip(graph.inputs, args, strict=True))

    def read(value: Value) -> Any:
        return value.const if value.is_const else env[value]

    with _jax.Placement() as placement:
        for node in graph:
            operands = [read(value) for value in node.operands]
            with placement.at(node.source, node.context):
                results = bind(node, operands)
            env.update(zip(node.results, results, strict=True))
    return [read(value) for value in graph.outputs]


def bind(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
    """Run one node on arrays or tracers."""
    if node.regions and not node.is_pristine():
        return _REBUILD[node.op](node, operands)
    if _varying.is_marking():
        if node.op in _REBUILD:
            return _REBUILD[node.op](node, operands)
        if node.op == VARY:
            return _varying.widened(operands, [frozenset(node.params["axes"])])
        operands = _varying.alike(operands)
    raw = node.params if node.raw is None else node.raw
    results = node.primitive.bind(*operands, **node.primitive.get_bind_params(raw))
    return results if node.primitive.multiple_results else [results]


# One function per operation with regions: run it with the regions it has now.


def _scan(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
    p = node.params
    (body,) = node.regions
    consts, carry = p["num_consts"], p["num_carry"]
    fixed = operands[:consts]

    def step(state: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        out = evaluate(body, [*fixed, *state, *xs])
        return _varying.as_varied_as(out[:carry], state), out[carry:]

    init, xs = list(operands[consts : consts + carry]), list(operands[consts + carry :])
    init = _varying.settled(lambda state: step(state, [x[0] for x in xs])[0], init)
    length = None if xs else p["length"]  # JAX compares a given length, which fails for symbolic ones
    state, ys = jax.lax.scan(step, init, xs, length=length, reverse=p["reverse"], unroll=p["unroll"])
    return [*state, *ys]


def _while(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
    cond, body = node.regions
    nc, nb = node.params["cond_nconsts"], node.params["body_nconsts"]
    for_cond, for_body, init = operands[:nc], operands[nc : nc + nb], list(operands[nc + nb :])
    if cond.outputs[0].shape:
        return _batched_while(node, for_cond, for_body, init)

    def step(state: list[Any]) -> list[Any]:
        return _varying.as_varied_as(evaluate(body, [*for_body, *state]), state)

    init = _varying.settled(step, init)
    return jax.lax.while_loop(lambda state: evaluate(cond, [*for_cond, *state])[0], step, init)


def _batched_while(
    node: Node, for_cond: Sequence[Any], for_body: Sequence[Any], init: Sequence[Any]
) -> Sequence[Any]:
    """A loop that vmap has given a predicate for each element, which no public function takes."""
    closed = [_jax.trace_flat(to_callable(g), [v.aval for v in g.inputs]) for g in node.regions]
    (cond, cond_consts), (body, body_consts) = map(_jax.without_consts, closed)
    counts = {
        "cond_nconsts": len(cond_consts) + len(for_cond),
        "body_nconsts": len(body_consts) + len(for_body),
    }
    operands = [*cond_consts, *for_cond, *body_consts, *for_body, *init]
    return _bind_new(node, operands, cond_jaxpr=cond, body_jaxpr=body, **counts)


def _cond(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
    operands = _varying.alike(operands)
    avals = [jax.typeof(x) for x in operands[1:]]
    branches = [_varying.as_varied_as_first(to_callable(region), operands) for region in node.regions]
    closed = [_jax.trace_flat(branch, avals) for branch in branches]
    if any(_jax.parts(jaxpr)[1] for jaxpr in closed):
        return _cond_with_consts(node, operands, closed)
    return _bind_new(node, operands, branches=tuple(closed))


def _cond_with_consts(node: Node, operands: Sequence[Any], closed: Sequence[Any]) -> Sequence[Any]:
    """All branches take all branches' constants, as cond's branches must take the same operands."""
    pairs = [_jax.without_consts(jaxpr) for jaxpr in closed]
    consts = [c for _, own in pairs for c in own]
    args = [*consts, *operands[1:]]
    branches = []
    start = 0
    for jaxpr, own in pairs:

        def branch(
            *args: Any, jaxpr: Any = jaxpr, first: int = start, last: int = start + len(own)
        ) -> list[Any]:
            return _jax.eval_jaxpr(jaxpr, [], [*args[first:last], *args[len(consts) :]])

        start += len(own)
        branches.append(_jax.trace_flat(branch, [jax.typeof(x) for x in args]))
    return _bind_new(node, [operands[0], *args], branches=tuple(branches))


def _jit(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
    p = node.params
    (body,) = node.regions
    if _jax.jit_is_plain(p):
        return jax.jit(_cached_callable(body), keep_unused=p["keep_unused"], inline=p["inline"])(*operands)  # type: ignore[no-any-return]
    return _bind_new(
        node, operands, jaxpr=_jax.trace_flat(to_callable(body), [jax.typeof(x) for x in operands])
    )


def _cached_callable(graph: Graph) -> Flat:
    """The same function object for the same graph and version, so that jit traces a shared region once."""
    if graph.compiled is None or graph.compiled[0] != graph.total_version():
        graph.compiled = (graph.total_version(), to_callable(graph))
    return graph.compiled[1]


def _call(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
    return evaluate(node.regions[0], operands)


def _remat(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
    closed = _jax.trace_flat(to_callable(node.regions[0]), [jax.typeof(x) for x in operands])
    closed, consts = _jax.without_consts(closed)
    return _bind_new(node, [*consts, *operands], jaxpr=_jax.open_jaxpr(closed))


def _shard_map(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
    p = node.params
    return jax.shard_map(
        to_callable(node.regions[0]),
        mesh=p["mesh"],
        in_specs=tuple(p["in_specs"]),
        out_specs=list(p["out_specs"]),
        axis_names=set(p["newly_manual_axes"]),
        check_vma=p["check_vma"],
    )(*operands)


def _custom_jvp(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
    """The new body with the old rule: the tangent is that of the node as it was traced."""
    old, operands = _verbatim(node), _varying.alike(operands)
    fun = jax.custom_jvp(_varying.as_varied_as_first(to_callable(node.regions[0]), operands))

    def tangents_of(primals: Any, tangents: Any) -> Any:
        return jax.jvp(old, tuple(primals), tuple(tangents))

    fun.defjvp(functools.partial(_marked, tangents_of) if _varying.is_marking() else tangents_of)
    return fun(*operands)


def _custom_vjp(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
    """The new body with the old rule: forward and backward are those of the node as it was traced.

    Its first operands are what the user's function closes over; JAX does not let them be differentiated.
    """
    count, operands = node.params["num_consts"], _varying.alike(operands)
    closed, free = operands[:count], operands[count:]
    body = functools.partial(_varying.as_varied_as_first(to_callable(node.regions[0]), operands), *closed)
    fun = jax.custom_vjp(body)
    if _varying.is_marking():  # what the rule keeps is not known beforehand: it is computed again

        def pulled(closed: Any, args: Any, cotangents: Any) -> Any:
            return jax.vjp(functools.partial(_verbatim(node), *closed), *args)[1](cotangents)

        fun.defvjp(lambda *args: (fun(*args), args), functools.partial(_marked, pulled, closed))
    else:
        old = functools.partial(_verbatim(node), *closed)
        fun.defvjp(lambda *args: jax.vjp(old, *args), lambda pull, cotangents: pull(cotangents))
    return fun(*free)


def _marked(fun: Callable[..., Any], *args: Any) -> Any:
    """A function of arrays that vary alike, which is traced as if they did not vary."""
    leaves, tree = jax.tree.flatten(args)
    shapes = [_jax.in_shard_map(jax.ShapeDtypeStruct(jax.numpy.shape(x), x.dtype)) for x in leaves]
    closed, out = jax.make_jaxpr(fun, return_shape=True)(*jax.tree.unflatten(tree, shapes))
    with _varying.marking(leaves):
        results = evaluate(from_jaxpr(closed, "marked"), leaves)
        results = _varying.widened(results, [_varying.axes_of(leaves[0])] * len(results))
    return jax.tree.unflatten(jax.tree.structure(out), results)


def _verbatim(node: Node) -> Flat:
    def fun(*args: Any) -> list[Any]:
        assert node.raw is not None
        return list(node.primitive.bind(*args, **node.primitive.get_bind_params(node.raw)))

    return fun


def _linear_solve(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
    assert node.raw is not None
    closed = [_jax.trace_flat(to_callable(g), [v.aval for v in g.inputs]) for g in node.regions]
    return _bind_new(node, operands, jaxprs=type(node.raw["jaxprs"])(*closed))


def _bind_new(node: Node, operands: Sequence[Any], **new: Any) -> Sequence[Any]:
    """Bind the node's own primitive with new jaxprs, which JAX has just traced."""
    params = node.primitive.get_bind_params({**node.params, **new})
    return node.primitive.bind(*operands, **params)  # type: ignore[no-any-return]


_REBUILD: dict[str, Callable[[Node, Sequence[Any]], Sequence[Any]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "jit": _jit,
    "closed_call": _call,
    "core_call": _call,
    "remat2": _remat,
    "checkpoint": _remat,
    "shard_map": _shard_map,
    "custom_jvp_call": _custom_jvp,
    "custom_vjp_call": _custom_vjp,
    "custom_linear_solve": _linear_solve,
}
