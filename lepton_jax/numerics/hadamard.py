"""Rotations by Hadamard matrices: they spread outliers evenly and cancel against the rotated weight.

A Hadamard matrix H of order n has entries ±1 and H Hᵀ = n I, so Q = H diag(signs) / √n is orthogonal:
`rotate(x, signs) @ rotate(w, signs, axis=0)` is `x @ w`, while no single feature of the rotated x is large.
As in Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs" (2024), and Chee et al., "QuIP"
(2023).

Orders come from Sylvester's doubling and from Paley's constructions over finite fields (R. E. A. C. Paley,
"On orthogonal matrices", 1933): q + 1 for prime powers q ≡ 3 mod 4, and 2(q + 1) for q ≡ 1 mod 4. Where a
size has none, the rotation is made of equal blocks of the largest order that divides it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Signs: TypeAlias = np.ndarray[Any, np.dtype[np.int8]]

_RADIX = 16  # powers of two are transformed by dots with matrices of at most this order


@cache
def block_order(size: int) -> int:
    """The order of the largest Hadamard matrix here whose order divides `size`; `size` itself if there is
    one.

    Example: 4096 → 4096, 11008 → 11008, 77 → 1.

    Raises:
        ValueError: if `size` is less than one.
    """
    if size < 1:
        raise ValueError(f"the size of a rotation must be at least 1, not {size}")
    return max(n for n in range(1, size + 1) if size % n == 0 and _parts(n) is not None)


def hadamard_matrix(order: int) -> Signs:
    """A Hadamard matrix of this order: entries 1 and -1, H Hᵀ = order · I, int8[order, order].

    Raises:
        ValueError: if no construction here gives this order.
    """
    parts = _parts(order) if order > 0 else None
    if parts is None:
        raise ValueError(f"no Hadamard matrix of order {order} is known here; see block_order({order})")
    odd, twos = parts
    found: Signs = np.kron(_paley(odd), _sylvester(twos))
    return found


def hadamard_transform(x: jax.Array, axis: int = -1, *, inverse: bool = False) -> jax.Array:
    """x times the orthogonal matrix H / √n along one axis, by small dots.

    Sizes without a Hadamard matrix are transformed in blocks of `block_order(size)`.

    Args:
        x: floats of any shape; the dtype is kept.
        axis: the axis along which the n entries of a vector lie.
        inverse: apply the transposed matrix, which undoes the transform.
    """
    axis = axis % x.ndim
    size = x.shape[axis]
    order = block_order(size)
    odd, twos = _parts(order) or (1, 1)
    lead, trail = x.shape[:axis], x.shape[axis + 1 :]
    count = len(lead)
    factors = [_paley(odd)] if odd > 1 else []
    while twos > 1:
        radix = min(_RADIX, twos)
        factors.append(_sylvester(radix))
        twos //= radix
    shape = (size // order, *(len(factor) for factor in factors))
    y = x.reshape(*lead, *shape, *trail)
    rest = order**-0.5
    for i, factor in enumerate(factors):
        part = 2.0 ** -(len(factor).bit_length() // 2)  # exact in every float, and nothing grows much
        rest /= part
        matrix = jnp.asarray((factor.T if inverse else factor) * part, x.dtype)
        at = count + 1 + i
        dims = (((at,), (1,)), ((), ()))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = lax.dot_general(y, matrix, dims, precision=lax.Precision.HIGHEST, preferred_element_type=wide)
        y = jnp.moveaxis(y, -1, at).astype(x.dtype)
    return y.reshape(x.shape) * jnp.asarray(rest, x.dtype)


def random_signs(key: jax.Array, size: int) -> jax.Array:
    """Random signs, f32[size] of 1 and -1, with which no fixed input is likely to suit a rotation badly."""
    return jax.random.rademacher(key, (size,), jnp.float32)


def rotate(x: jax.Array, signs: jax.Array | None = None, axis: int = -1) -> jax.Array:
    """Rotate along an axis: first the signs, then the Hadamard transform.

    The same call rotates activations (at run time, or folded into the weight that makes them) and, offline,
    the weights that read them along the contracted axis; it keeps every inner product along that axis.

    Args:
        x: floats of any shape.
        signs: f32[n] of 1 and -1, or None for no change of signs.
        axis: the axis of length n.

    Raises:
        ValueError: if there are not as many signs as the axis is long.
    """
    if signs is not None:
        x = x * _along(signs, x, axis)
    return hadamard_transform(x, axis)


def unrotate(x: jax.Array, signs: jax.Array | None = None, axis: int = -1) -> jax.Array:
    """Undo `rotate` with the same signs; arguments as there."""
    x = hadamard_transform(x, axis, inverse=True)
    return x if signs is None else x * _along(signs, x, axis)


def _along(signs: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    if signs.shape != (x.shape[axis],):
        raise ValueError(f"{x.shape[axis]} signs are needed for axis {axis} of {x.shape}, not {signs.shape}")
    shape = [1] * x.ndim
    shape[axis] = len(signs)
    return signs.astype(x.dtype).reshape(shape)


@cache
def _parts(order: int) -> tuple[int, int] | None:
    """The order as Paley's part times a power of two, Paley's part as small as possible; None if neither."""
    twos = order & -order
    odd = order // twos
    while twos >= 1:
        part = order // twos
        if part == 1 or _paley_field(part) is not None:
            return part, twos
        if part > 4 * odd * 64:  # larger parts would make dense matrices larger than the saving is worth
            return None
        twos //= 2
    return None


@cache
def _paley_field(order: int) -> tuple[int, int] | None:
    """The size of Paley's field and which of his two constructions gives this order."""
    if order % 4:
        return None
    if (order - 1) % 4 == 3 and _prime_power(order - 1):
        return order - 1, 1
    half = order // 2 - 1
    if half % 4 == 1 and _prime_power(half):
        return half, 2
    return None


@cache
def _paley(order: int) -> Signs:
    if order == 1:
        return np.ones((1, 1), np.int8)
    field, construction = _paley_field(order) or (0, 0)
    residues = _residue_matrix(*(_prime_power(field) or (0, 0)))
    edge = np.ones(field, np.int8)
    if construction == 1:
        skew = np.block([[np.zeros((1, 1), np.int8), edge[None]], [-edge[:, None], residues]])
        return (skew + np.eye(order)).astype(np.int8)
    core = np.block([[np.zeros((1, 1), np.int8), edge[None]], [edge[:, None], residues]])
    there, here = np.array([[1, 1], [1, -1]], np.int8), np.array([[1, -1], [-1, -1]], np.int8)
    both: Signs = (np.kron(core, there) + np.kron(np.eye(field + 1, dtype=np.int8), here)).astype(np.int8)
    return both


def _residue_matrix(prime: int, power: int) -> Signs:
    """Whether a - b is a square in the field of prime^power elements: 1, -1, and 0 for equal a and b."""
    size = prime**power
    digits = (np.arange(size)[:, None] // prime ** np.arange(power)) % prime
    squares = np.unique(_number(_product(digits, digits, _irreducible(prime, power), prime), prime))
    character = np.full(size, -1, np.int8)
    character[squares] = 1
    character[0] = 0
    difference = (digits[:, None] - digits[None]) % prime
    found: Signs = character[_number(difference, prime)]
    return found


def _product(a: Any, b: Any, modulus: Any, prime: int) -> Any:
    """Products of polynomials over the integers modulo a prime, reduced by x^n = modulus."""
    power = a.shape[-1]
    full = np.zeros((*np.broadcast_shapes(a.shape, b.shape)[:-1], 2 * power - 1), np.int64)
    for i in range(power):
        full[..., i : i + power] += a[..., i : i + 1] * b
    for i in range(2 * power - 2, power - 1, -1):
        full[..., i - power : i] += full[..., i : i + 1] * modulus
        full %= prime
    return full[..., :power] % prime


def _number(digits: Any, prime: int) -> Any:
    return (digits * prime ** np.arange(digits.shape[-1])).sum(-1)


@cache
def _irreducible(prime: int, power: int) -> Any:
    """Coefficients c with x^power = c(x) such that no two polynomials but zero multiply to zero."""
    size = prime**power
    digits = (np.arange(size)[:, None] // prime ** np.arange(power)) % prime
    if power == 1:
        return digits[0]
    for modulus in digits:
        products = _product(digits[1:, None], digits[None, 1:], modulus, prime)
        if products.any(-1).all():
            return modulus
    raise AssertionError(f"a field of {size} elements exists")


@cache
def _prime_power(number: int) -> tuple[int, int] | None:
    """The prime and the power whose power this is; None if there is none."""
    if number < 2:
        return None
    prime = next((p for p in range(2, int(number**0.5) + 1) if number % p == 0), number)
    power = round(np.log(number) / np.log(prime))
    return (prime, power) if prime**power == number else None


@cache
def _sylvester(order: int) -> Signs:
    matrix = np.ones((1, 1), np.int8)
    while len(matrix) < order:
        matrix = np.kron(np.array([[1, 1], [1, -1]], np.int8), matrix)
    return matrix
