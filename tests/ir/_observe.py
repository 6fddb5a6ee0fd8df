"""What values really hold: a graph run node by node, regions too, and facts held against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.export import bind
from lepton_jax.ir.facts import Facts, facts_of
from lepton_jax.ir.graph import Graph, Node, Value

Array = np.ndarray[Any, Any]
Seen = list[tuple[Value, Any]]


def observe(graph: Graph, args: Sequence[Any]) -> Seen:
    """Every value of a graph with what it holds; values of regions once for each run."""
    seen: Seen = []
    _run(graph, args, seen)
    return seen


def _run(graph: Graph, args: Sequence[Any], seen: Seen) -> list[Any]:
    env: dict[Value, Any] = dict(zip(graph.inputs, args, strict=True))
    seen.extend(env.items())

    def read(value: Value) -> Any:
        if value.is_const:
            seen.append((value, jnp.asarray(value.const, value.dtype)))
            return seen[-1][1]
        return env[value]

    for node in graph:
        operands = [read(value) for value in node.operands]
        results = _run_regions(node, operands, seen) if node.regions else bind(node, operands)
        for value, result in zip(node.results, results, strict=True):
            env[value] = result
            seen.append((value, result))
    return [read(value) for value in graph.outputs]


def _run_regions(node: Node, operands: list[Any], seen: Seen) -> list[Any]:
    if node.op == "cond":
        branch = int(np.clip(int(operands[0]), 0, len(node.regions) - 1))
        return _run(node.regions[branch], operands[1:], seen)
    if node.op == "scan":
        return _run_scan(node, operands, seen)
    if node.op == "while":
        return _run_while(node, operands, seen)
    return _run(node.regions[0], operands, seen)


def _run_scan(node: Node, operands: list[Any], seen: Seen) -> list[Any]:
    consts, carry, length = (node.params[name] for name in ("num_consts", "num_carry", "length"))
    state = operands[consts : consts + carry]
    rows: list[list[Any]] = [[] for _ in range(length)]
    for i in reversed(range(length)) if node.params["reverse"] else range(length):
        xs = [x[i] for x in operands[consts + carry :]]
        out = _run(node.regions[0], [*operands[:consts], *state, *xs], seen)
        state, rows[i] = out[:carry], out[carry:]
    if not length:
        return [*state, *bind(node, operands)[carry:]]
    return [*state, *(jnp.stack(column) for column in zip(*rows, strict=True))]


def _run_while(node: Node, operands: list[Any], seen: Seen) -> list[Any]:
    nc, nb = node.params["cond_nconsts"], node.params["body_nconsts"]
    state = operands[nc + nb :]
    while bool(_run(node.regions[0], [*operands[:nc], *state], seen)[0]):
        state = _run(node.regions[1], [*operands[nc : nc + nb], *state], seen)
    return state


def wrong_facts(seen: Seen) -> list[str]:
    """The facts that do not hold, each with the operation that made the value."""
    found = []
    for value, held in seen:
        if isinstance(held, jax.Array) and not jax.dtypes.issubdtype(held.dtype, jax.dtypes.extended):  # type: ignore[attr-defined]
            facts = facts_of(value)
            faults = list(violations(facts, np.asarray(held)))
            found += [f"{value!r} of {value.op}: {fault}, said {facts}" for fault in faults]
    return found


def violations(facts: Facts, array: Array) -> Iterator[str]:
    """What the facts say that is not so of an array."""
    if array.size == 0:
        return
    plain = _computable(array)
    yield from _of_elements(facts, array, plain)
    yield from _of_dimensions(facts, plain)
    if plain.ndim > 1:
        yield from _of_matrix(facts, plain)


def _computable(array: Array) -> Array:
    if array.dtype.kind == "c":
        return array
    if array.dtype == np.bool_ or jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(np.int64) if array.dtype != np.uint64 else array.astype(object)
    return array.astype(np.float64)


def _of_elements(facts: Facts, array: Array, plain: Array) -> Iterator[str]:
    numbers = plain[plain == plain]
    is_complex = array.dtype.kind == "c"
    if facts.constant is not None and facts.constant.tobytes() != array.tobytes():
        yield "constant"
    if facts.splat is not None:
        if np.asarray(facts.splat).dtype != array.dtype:
            yield "dtype of splat"
        if array.tobytes() != np.asarray(facts.splat).tobytes() * array.size:
            yield "splat"
    if facts.no_nan and numbers.size < plain.size:
        yield "no_nan"
    if facts.finite and plain.dtype != object and not np.isfinite(plain).all():
        yield "finite"
    if facts.nonzero and (plain == 0).any():
        yield "nonzero"
    if not is_complex and (numbers < facts.least).any():
        yield "least"
    if not is_complex and (numbers > facts.most).any():
        yield "most"
    if facts.low is not None and (array.dtype.kind == "f" or not isinstance(facts.high, int)):
        yield "low of a float"


def _of_dimensions(facts: Facts, plain: Array) -> Iterator[str]:
    if facts.iota is not None:
        dimension, start, step = facts.iota
        shape = [plain.shape[d] if d == dimension else 1 for d in range(plain.ndim)]
        line = np.array([start + step * i for i in range(plain.shape[dimension])]).reshape(shape)
        if not (plain == line).all():
            yield "iota"
    for d in facts.uniform:
        if not _close(plain, np.broadcast_to(plain.take([0], d), plain.shape)):
            yield f"uniform {d}"
    if facts.one_hot is not None:
        ones = plain == 1
        if not (ones | (plain == 0)).all() or (ones.sum(facts.one_hot) > 1).any():
            yield "one_hot"


def _of_matrix(facts: Facts, plain: Array) -> Iterator[str]:
    rows, columns = plain.shape[-2:]
    offset = np.arange(columns) - np.arange(rows)[:, None]
    for name, zeros in (("lower", offset > 0), ("upper", offset < 0), ("diagonal", offset != 0)):
        if getattr(facts, name) and not (plain[..., zeros] == 0).all():
            yield name
    if facts.band is not None:
        low = -rows if facts.band.low is None else facts.band.low
        high = columns if facts.band.high is None else facts.band.high
        inside = (low <= offset) & (offset <= high)
        if not (plain == (inside == facts.band.inside)).all():
            yield "band"
    if facts.identity and (rows != columns or not (plain == (offset == 0)).all()):
        yield "identity"
    if facts.permutation:
        binary = ((plain == 0) | (plain == 1)).all()
        if rows != columns or not binary or not ((plain.sum(-1) == 1) & (plain.sum(-2) == 1)).all():
            yield "permutation"
    yield from _of_symmetry(facts, plain)


def _of_symmetry(facts: Facts, plain: Array) -> Iterator[str]:
    if not (facts.symmetric or facts.exactly_symmetric):
        return
    if plain.shape[-1] != plain.shape[-2]:
        yield "symmetric, not square"
        return
    other = plain.swapaxes(-1, -2)
    if facts.exactly_symmetric and not ((plain == other) | ((plain != plain) & (other != other))).all():
        yield "exactly_symmetric"
    if not _close(plain, other):
        yield "symmetric"


def _close(a: Array, b: Array) -> bool:
    """Equal up to rounding, in half precision too."""
    if a.dtype == object:
        return bool((a == b).all())
    with np.errstate(all="ignore"):
        finite = np.abs(a[np.isfinite(a)])
        scale = float(finite.max()) if finite.size else 0.0
        return bool(((a == b) | ((a != a) & (b != b)) | (np.abs(a - b) <= 0.05 * scale)).all())
