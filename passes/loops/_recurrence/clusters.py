"""Logarithms of sums of exponentials, however they are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lepton_jax.ir.graph import Graph, Node, Value

_VIEWS: Final = frozenset({"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "stop_gradient", "copy"})
_MOST_TERMS: Final = 8

Frame = tuple[tuple[int, int], ...]
"""Pairs of axes, longer than one, of a value and of what it is a view of."""


@dataclass(frozen=True, slots=True)
class LogSum:
    """log(Σ exp(term)), a sum over all the terms and over axes of each.

    Attributes:
        terms: what is summed, all of the same shape.
        axes: the axes over which each is summed.
        kept: whether these axes stay, with size 1.
    """

    terms: tuple[Value, ...]
    axes: tuple[int, ...] = ()
    kept: bool = False


def log_sum(node: Node) -> LogSum | None:
    """What a node is the logarithm of, if it is one of a sum of exponentials.

    Knows `jnp.logaddexp`, `jax.nn.logsumexp`, m + log(Σ exp(x - m)) for any m that is the same all along the
    sum, and max(x, y) + log1p(exp(-|x - y|)).
    """
    if node.op == "custom_jvp_call":
        return LogSum(tuple(node.operands)) if _is_logaddexp(node) else None
    if node.op == "select_n":
        pair = _chosen_terms(node)
        return None if pair is None or any(v.shape != node.result.shape for v in pair) else LogSum(pair)
    if node.op != "add":
        return None
    return _written_out(node, *node.operands) or _written_out(node, *node.operands[::-1])


def _made(value: Value, *ops: str) -> Node | None:
    return value.node if value.node is not None and value.node.op in ops else None


def _is_logaddexp(node: Node) -> bool:
    graph: Graph = node.regions[0]
    if len(node.operands) != 2 or len(node.results) != 1:
        return False
    if any(v.shape != node.result.shape or v.dtype != node.result.dtype for v in node.operands):
        return False
    only = graph.outputs[0].node
    if only is not None and only.op == "jit" and list(only.operands) == list(graph.inputs):
        graph = only.regions[0]
    root = _made(graph.outputs[0], "select_n")
    return root is not None and _chosen_terms(root) == tuple(graph.inputs)


def _chosen_terms(root: Node) -> tuple[Value, ...] | None:
    """x and y of where(x - y is NaN, x + y, max(x, y) + log1p(exp(-|x - y|)))."""
    if len(root.operands) != 3:
        return None
    test, total, other = (v.node for v in root.operands)
    if test is None or total is None or other is None or test.op != "ne" or total.op != "add":
        return None
    pair = _log1p_terms(*total.operands)
    if pair is None or other.op != "add" or set(other.operands) != set(pair):
        return None
    tested, again = test.operands
    difference = _made(tested, "sub") if tested is again else None
    return pair if difference is not None and set(difference.operands) == set(pair) else None


def _log1p_terms(top: Value, rest: Value) -> tuple[Value, ...] | None:
    """x and y of max(x, y) + log1p(exp(-|x - y|))."""
    chain: list[Node] = []
    for op in ("log1p", "exp", "neg", "abs", "sub"):
        node = _made(rest, op)
        if node is None:
            return None
        chain.append(node)
        rest = node.operands[0]
    most = _made(top, "max")
    if most is None or set(most.operands) != set(chain[-1].operands):
        return None
    return tuple(most.operands)


def _written_out(node: Node, top: Value, rest: Value) -> LogSum | None:
    pair = _log1p_terms(top, rest) if rest.node is not None and rest.node.op == "log1p" else None
    if pair is not None:
        return LogSum(pair) if all(v.shape == node.result.shape for v in pair) else None
    log = _made(rest, "log")
    if log is None or log.result.shape != node.result.shape:
        return None
    inner = _bare(log.operands[0])
    total = _made(inner, "reduce_sum")
    if total is None:
        return _sum_of_few(node, top, log.operands[0])
    (source,), axes = total.operands, tuple(total.params["axes"])
    kept = tuple(1 if d in axes else n for d, n in enumerate(source.shape))
    shapes = [tuple(total.result.shape), kept]
    if tuple(node.result.shape) not in shapes or tuple(log.operands[0].shape) != tuple(node.result.shape):
        return None
    term = _shifted(source)
    if term is None or term[0].shape != source.shape:
        return None
    found = LogSum((term[0],), axes, tuple(node.result.shape) == kept and bool(axes))
    places = {d: d if found.kept else d - sum(a < d for a in axes) for d in range(source.ndim)}
    return found if _same(top, term[1], places) else None


def _sum_of_few(node: Node, top: Value, total: Value) -> LogSum | None:
    """m + log(exp(x - m) + exp(y - m) + …)."""
    parts: list[tuple[Value, Value]] = []
    stack = [total]
    while stack:
        value = stack.pop()
        more = _made(value, "add")
        if more is not None and len(parts) + len(stack) < _MOST_TERMS:
            stack += more.operands
            continue
        part = _shifted(value)
        if part is None or part[0].shape != node.result.shape:
            return None
        parts.append(part)
    places = {d: d for d in range(node.result.ndim)}
    if len(parts) < 2 or not all(_same(top, by, places) for _, by in parts):
        return None
    return LogSum(tuple(term for term, _ in parts))


def _shifted(value: Value) -> tuple[Value, Value] | None:
    """x and m of exp(x - m)."""
    power = _made(value, "exp")
    difference = None if power is None else _made(power.operands[0], "sub")
    return None if difference is None else (difference.operands[0], difference.operands[1])


def _same(top: Value, by: Value, places: dict[int, int]) -> bool:
    """Whether two views are of the same array, and lie alike.

    Args:
        places: which axis of `top` belongs to an axis of `by`.
    """
    (source, frame), (other, also) = _origin(top), _origin(by)
    if source is not other or source.is_const:
        return False
    return set(frame) == {(places[axis], of) for axis, of in also}


def _origin(value: Value) -> tuple[Value, Frame]:
    """What a value is a view of, and which of its axes are which of that."""
    axes = {d: d for d, n in enumerate(value.shape) if n != 1}
    while (node := _made(value, *_VIEWS)) is not None and len(node.operands) == 1:
        source = node.operands[0]
        if node.op == "broadcast_in_dim":
            dims = node.params["broadcast_dimensions"]
            inside = {d: k for k, d in enumerate(dims) if source.shape[k] != 1}
        else:
            long = [[d for d, n in enumerate(v.shape) if n != 1] for v in (value, source)]
            if [value.shape[d] for d in long[0]] != [source.shape[d] for d in long[1]]:
                break
            inside = dict(zip(*long, strict=True))
        axes = {d: inside[k] for d, k in axes.items() if k in inside}
        value = source
    return value, tuple(axes.items())


def _bare(value: Value) -> Value:
    """A value without axes of size one that were put in."""
    while (node := _made(value, *_VIEWS)) is not None and len(node.operands) == 1:
        if node.operands[0].aval.size != value.aval.size:
            break
        value = node.operands[0]
    return value
