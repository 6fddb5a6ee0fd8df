"""A key/value cache kept in codes: a scale for each token and head.

The pass `kv-cache` keeps caches that loops carry in codes by itself. Where a cache is an argument and a
result of a decoding step, its codes are part of the step's signature, and `with_coded_cache` makes such a
step of an ordinary one. As it stands it decodes the cache, runs the step, and encodes what it returns; the
pass takes both out, so that only new tokens are rounded, each once, when they are written.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lepton_jax.numerics.formats import get_format
from lepton_jax.numerics.quantize import Scheme, decode, quantize

CODES: Final = "lepton.cache.codes"
SCALE: Final = "lepton.cache.scale"
DECODED: Final = "lepton.cache.decoded"
ENCODED: Final = "lepton.cache.encoded"
"""Marks by which the pass knows the codes, the scales, and the arrays that they stand for."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["codes", "scale"], meta_fields=["dtype"])
class Coded:
    """One array of a cache in codes: a pytree of both arrays.

    Attributes:
        codes: int8 or float8, of the array's shape [..., features].
        scale: float32 [..., 1], one for each token and head.
        dtype: the name of the array's dtype.
    """

    def __init__(self, codes: Any, scale: Any, dtype: str = "float32") -> None:
        self.codes = codes
        self.scale = scale
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """The bytes of codes and scales."""
        return int(self.codes.nbytes + self.scale.nbytes)

    def __repr__(self) -> str:
        return f"Coded({self.codes!r}, {self.scale!r})"


def cache_scheme(format: str | Any) -> Scheme:
    """How a cache is rounded: one scale along the last axis.

    Args:
        format: `int8`, `fp8_e4m3`, `fp8_e5m2`, or the dtype of such codes.

    Raises:
        ValueError: codes of the format are not numbers that can be multiplied as they are.
    """
    name = {"float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"}.get(str(format), str(format))
    form = get_format(name)
    if form.block or form.bits != 8:
        raise ValueError(f"a cache is kept in int8, fp8_e4m3 or fp8_e5m2, not in {form}")
    return Scheme(form, shared=(-1,))


def encode_tokens(x: jax.Array, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
    """Codes and scales of tokens; one that is zero has scale 0, so that it is small among others' scales."""
    q = quantize(x, scheme)
    some = jnp.any(x != 0, axis=scheme.shared, keepdims=True)
    return q.codes, jnp.where(some, q.scale, 0.0)


def encode_cache(cache: Any, format: str = "int8") -> Any:
    """A cache in codes: each array of floats [..., features] becomes `Coded`, all else stays.

    The last axis is what a token's key or value consists of in one head. Arrays of fewer axes than two stay.

    Args:
        cache: a pytree of arrays.
        format: `int8`, `fp8_e4m3` or `fp8_e5m2`.

    Raises:
        ValueError: another format.

    Example:
        >>> cache = encode_cache({"k": jnp.ones((2, 16, 4)), "length": jnp.int32(0)})
        >>> cache["k"].codes.dtype, cache["k"].scale.shape
        (dtype('int8'), (2, 16, 1))
    """
    scheme = cache_scheme(format)

    def encoded(x: Any) -> Any:
        x = jnp.asarray(x)
        if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        codes, scale = encode_tokens(checkpoint_name(x, ENCODED), scheme)
        return Coded(checkpoint_name(codes, CODES), checkpoint_name(scale, SCALE), str(x.dtype))

    return jax.tree.map(encoded, cache)


def decode_cache(cache: Any) -> Any:
    """The cache that codes stand for, in the dtypes that its arrays had.

    Example:
        >>> decode_cache(encode_cache(jnp.array([[1.0, -2.0]]))).round(3).tolist()
        [[1.0080000162124634, -2.0]]
    """

    def decoded(x: Any) -> Any:
        if not isinstance(x, Coded):
            return x
        codes, scale = checkpoint_name(x.codes, CODES), checkpoint_name(x.scale, SCALE)
        floats = decode(codes, scale, None, cache_scheme(x.codes.dtype), jnp.dtype(x.dtype))
        return checkpoint_name(floats, DECODED)

    return jax.tree.map(decoded, cache, is_leaf=lambda x: isinstance(x, Coded))


def with_coded_cache(
    step: Callable[..., Any], cache: str = "cache", *, result: int | None = -1
) -> Callable[..., Any]:
    """A step that takes and returns its cache in codes, of one that does so in floats.

    Args:
        step: a function of a cache and other arguments that returns a tuple, or the new cache alone.
        cache: the name of the argument.
        result: where the new cache stands among the results; None: it is the result.

    Returns:
        The same function of codes, as `encode_cache` makes them.

    Raises:
        TypeError: the step has no argument of that name; when called, the cache holds no codes.

    Example:
        >>> def step(x, cache):
        ...     return x.sum(), jax.lax.dynamic_update_slice(cache, x, (0, 0))
        >>> total, cache = with_coded_cache(step)(jnp.ones((1, 4)), encode_cache(jnp.zeros((8, 4))))
        >>> cache.codes[0].tolist(), cache.scale.shape
        ([127, 127, 127, 127], (8, 1))
    """
    signature = inspect.signature(step)
    if cache not in signature.parameters:
        raise TypeError(f"{getattr(step, '__name__', step)} has no argument {cache!r}: {signature}")

    @functools.wraps(step)
    def coded(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        format = _format_of(given.arguments[cache], cache)
        given.arguments[cache] = decode_cache(given.arguments[cache])
        found = step(*given.args, **given.kwargs)
        if result is None:
            return encode_cache(found, format)
        results = list(found)
        results[result] = encode_cache(results[result], format)
        return tuple(results)

    return coded


def _format_of(cache: Any, name: str) -> Any:
    leaves = jax.tree.leaves(cache, is_leaf=lambda x: isinstance(x, Coded))
    found = [leaf.codes.dtype for leaf in leaves if isinstance(leaf, Coded)]
    if not found:
        raise TypeError(f"the argument {name!r} holds no codes: give it encode_cache({name})")
    return found[0]
