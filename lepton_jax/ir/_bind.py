"""What a generated program calls: operations by name, and the constants and parameters they take.

Everything goes through primitives that JAX names itself, or through JAX's public functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import _jax, export
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.ir.importer import from_jaxpr

Region = Callable[..., list[Any]]
"""A function of flat arrays that returns a list of arrays and closes over none."""

Params = dict[str, Any]
_Special = Callable[[Sequence[Any], Sequence[Region], Params], Any]

KEY_KINDS: Final = ("threefry2x32", "rbg", "unsafe_rbg")


def bind(op: str, operands: Sequence[Any], /, regions: Sequence[Region] = (), **params: Any) -> Any:
    """Run one operation, eagerly or under any JAX transformation.

    Args:
        op: the name of the primitive, as `Node.op` has it.
        operands: arrays.
        regions: for scan, while, cond, jit, ... the functions that it runs.
        params: its parameters, as `Node.params` has them; those that describe how JAX traced
            it (shardings left open, derivative rules) are left out.

    Returns:
        The result; a list of results if the operation may have several.

    Raises:
        KeyError: JAX has no such primitive.
        TypeError: the operation takes no regions.

    Example:
        >>> float(bind("sub", [3.0, 2.0]))
        1.0
        >>> [total] = bind(
        ...     "scan", [np.float32(0), np.ones(3, np.float32)], [lambda c, x: [bind("add", [c, x])]],
        ...     num_consts=0, num_carry=1, length=3, reverse=False, unroll=1,
        ... )
        >>> float(total)
        3.0
    """
    special = _SPECIAL.get(op)
    if special is not None:
        return special(operands, regions, params)
    if regions:
        raise TypeError(f"{op} takes no regions")
    found = _jax.primitive(op)
    return found.bind(*operands, **found.get_bind_params(params))


# Constants and parameters


def array(values: Any, name: str, shape: tuple[int, ...] = ()) -> np.ndarray:
    """A constant: `values`, flat, as an array of the dtype `name` and of `shape`."""
    return np.asarray(values).astype(dtype(name)).reshape(shape)


def stored(saved: np.ndarray, name: str) -> np.ndarray:
    """A constant of the dtype `name` from the array that `storable` made of it."""
    return saved if str(saved.dtype) == name else saved.view(dtype(name))


def storable(constant: np.ndarray) -> np.ndarray:
    """A form of a constant that `numpy.save` knows: dtypes that are not numpy's own become bytes."""
    if constant.dtype.isbuiltin == 1:
        return constant
    return np.ascontiguousarray(constant).view(np.dtype(f"u{constant.dtype.itemsize}"))


def weak(number: complex, name: str) -> Any:
    """A scalar of a weak type other than that of a Python number."""
    with _jax.eager():
        return _jax.set_weak_type(jnp.asarray(number, dtype(name)), True)


def keys(data: np.ndarray, kind: str) -> Any:
    """An array of typed PRNG keys from its key data, uint32."""
    with _jax.eager():
        return jax.random.wrap_key_data(jnp.asarray(data), impl=kind)


def dtype(name: str) -> Any:
    """A dtype by name: numpy's, `bfloat16` and its small relatives, and `key<...>` of typed keys."""
    if name.startswith("key<"):
        return key_dtype(name[4:-1])
    return jnp.dtype(name)


def key_dtype(kind: str) -> Any:
    """The dtype of typed PRNG keys of the kind `threefry2x32`, `rbg` or `unsafe_rbg`."""
    return jax.eval_shape(lambda: jax.random.key(0, impl=kind)).dtype


def spec(name: str, shape: tuple[int, ...] = (), weak_type: bool = False) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array."""
    return jax.ShapeDtypeStruct(shape, dtype(name), weak_type=weak_type)


def jaxpr(region: Region, avals: Sequence[Any], closed: bool = True) -> Any:
    """A parameter that is a jaxpr: a region traced at abstract values."""
    traced = _jax.trace_flat(region, avals)
    return traced if closed else _jax.open_jaxpr(traced)


def primitive(name: str) -> Any:
    """A parameter that is a primitive."""
    return _jax.primitive(name)


# Operations with regions


def _graph(region: Region, avals: Sequence[Any]) -> Graph:
    return from_jaxpr(_jax.trace_flat(region, avals), region.__name__)


def _rebuild(
    op: str, primitive: Any, operands: Sequence[Any], regions: Sequence[Region], params: Params
) -> list[Any]:
    """Let `export` build an operation whose regions all take its operands (less the predicate of cond)."""
    avals = [jax.typeof(x) for x in operands[1 if op == "cond" else 0 :]]
    node = Node(op, primitive, (), (), params, regions=[_graph(region, avals) for region in regions])
    return list(export.bind(node, operands))


def _scan(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> list[Any]:
    (body,) = regions
    consts, carry = params.pop("num_consts"), params.pop("num_carry")
    fixed = operands[:consts]

    def step(state: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        out = body(*fixed, *state, *xs)
        return out[:carry], out[carry:]

    init, xs = list(operands[consts : consts + carry]), list(operands[consts + carry :])
    state, ys = jax.lax.scan(step, init, xs, **params)
    return [*state, *ys]


def _while(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> list[Any]:
    cond, body = regions
    nc, nb = params["cond_nconsts"], params["body_nconsts"]
    for_cond, for_body, init = operands[:nc], operands[nc : nc + nb], list(operands[nc + nb :])
    return jax.lax.while_loop(
        lambda state: cond(*for_cond, *state)[0],
        lambda state: body(*for_body, *state),
        init,
    )


def _cond(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> list[Any]:
    return _rebuild("cond", _jax.primitive("cond"), operands, regions, params)


def _remat(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> list[Any]:
    return _rebuild("remat2", _jax.primitive("remat2"), operands, regions, params)


def _jit(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> list[Any]:
    (body,) = regions
    body.__name__ = body.__qualname__ = params.pop("name")
    return jax.jit(body, **params)(*operands)  # type: ignore[no-any-return]


def _call(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> list[Any]:
    return regions[0](*operands)


def _custom_jvp(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> list[Any]:
    """The body with the derivative that it has by itself: the custom rule is not to be had."""
    (body,) = regions
    fun = jax.custom_jvp(body)
    fun.defjvp(lambda primals, tangents: jax.jvp(body, primals, tangents))
    return fun(*operands)


def _custom_vjp(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> list[Any]:
    """The body with the derivative that it has by itself."""
    (body,) = regions
    fun = jax.custom_vjp(body)
    fun.defvjp(lambda *args: jax.vjp(body, *args), lambda pull, cotangents: pull(cotangents))
    return fun(*operands)


def _linear_solve(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> list[Any]:
    """`const_lengths` counts the constants of matvec, vecmat, solve and transpose_solve, which come first."""
    consts: list[Sequence[Any]] = []
    start = 0
    for length in params["const_lengths"]:
        consts.append(operands[start : start + length])
        start += length
    matvec, _, solve, transpose_solve = regions
    return jax.lax.custom_linear_solve(  # type: ignore[no-any-return]
        lambda x: matvec(*consts[0], *x),
        list(operands[start:]),
        lambda _, b: solve(*consts[2], *b),
        lambda _, b: transpose_solve(*consts[3], *b),
    )


def _shard_map(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> list[Any]:
    return jax.shard_map(regions[0], **params)(*operands)


# Operations that take what only JAX can make


def _reduce(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> list[Any]:
    half = len(operands) // 2
    (body,) = regions

    def computation(x: list[Any], y: list[Any]) -> list[Any]:
        return body(*x, *y)

    return list(
        jax.lax.reduce(list(operands[:half]), list(operands[half:]), computation, params["dimensions"])
    )


def _random_seed(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> Any:
    def make(seed: Any) -> Any:
        return jax.random.key(seed, impl=params["impl"])

    (seeds,) = operands
    for _ in range(np.ndim(seeds)):
        make = jax.vmap(make)
    return make(seeds)


def _random_wrap(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> Any:
    return jax.random.wrap_key_data(operands[0], impl=params["impl"])


def _random_unwrap(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> Any:
    return jax.random.key_data(operands[0])


def _device_put(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> list[Any]:
    return list(jax.device_put(list(operands)))


def _ragged_dot(operands: Sequence[Any], regions: Sequence[Region], params: Params) -> Any:
    lhs, rhs, sizes = operands
    return jax.lax.ragged_dot_general(lhs, rhs, sizes, **params)


_SPECIAL: Final[Mapping[str, _Special]] = {
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
    "reduce": _reduce,
    "random_seed": _random_seed,
    "random_wrap": _random_wrap,
    "random_unwrap": _random_unwrap,
    "device_put": _device_put,
    "ragged_dot_general": _ragged_dot,
}

SPECIAL: Final = frozenset(_SPECIAL)
