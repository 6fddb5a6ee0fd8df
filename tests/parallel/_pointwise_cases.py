"""Operations on each element, on matrices, and that make arrays, for `test_factors`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.parallel.factors.elementwise import ONE, SEVERAL
from tests.parallel._factor_arrays import INTS, KEYS, MASK, MORE, ONE_ARRAY, TWO_ARRAYS, Case, V, X, Y, real

_ARGS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("clz", "population_count", "not"), (INTS,)),
    **dict.fromkeys(("and", "or", "xor", "mulhi"), (INTS, MORE)),
    **dict.fromkeys(("shift_left", "shift_right_logical", "shift_right_arithmetic"), (INTS, MORE)),
    "acosh": (X + 1,),
}
_CALLED = {"not": "bitwise_not", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"}
_OTHERWISE = {"integer_pow", "polynomial", "reduce_precision", "clamp", "random_gamma_grad"}


SLOW = {"igamma", "igammac", "igamma_grad_a", "polygamma", "zeta", "digamma", "lgamma", "erf_inv", "erfc"}
SLOW |= {
    "bessel_i0e",
    "bessel_i1e",
    "regularized_incomplete_beta",
    "atan2",
    "nextafter",
    "pow",
    "erf",
    "cbrt",
}
SLOW |= {
    "sinh",
    "cosh",
    "asin",
    "acos",
    "atan",
    "asinh",
    "acosh",
    "atanh",
    "tan",
    "exp2",
    "log2",
    "expm1",
    "log1p",
}
SLOW |= {"random_split", "random_fold_in", "lu", "cholesky", "select_and_scatter_add"}
"""What takes long to compile: only their rules are looked at."""


def pointwise() -> list[Case]:
    """What `jax.lax` has by the name of the primitive, on arrays of one shape."""
    cases: list[Case] = []
    for names, text, args in ((ONE, ONE_ARRAY, (X,)), (SEVERAL, TWO_ARRAYS, (X, Y))):
        for name in names:
            fun = getattr(lax, _CALLED.get(name, name), None)
            if fun is not None and name not in _OTHERWISE:
                cases.append((name, fun, _ARGS.get(name, args), text, []))
    return cases


def other_pointwise() -> list[Case]:
    """Elementwise operations with linear sets, scalars, more operands or more results."""
    keys, zero = jax.random.split(KEYS[0], (4, 6)), jnp.zeros
    return [
        ("integer_pow", lambda x: lax.integer_pow(x, 3), (X,), ONE_ARRAY, []),
        ("reduce_precision", lambda x: lax.reduce_precision(x, 5, 7), (X,), ONE_ARRAY, []),
        ("clamp", lambda x: lax.clamp(0.3, x, 0.6), (X,), "((), ab, ()) -> (ab)", []),
        ("regularized_incomplete_beta", lax.betainc, (X, Y, X), "(ab, ab, ab) -> (ab)", []),
        ("add", lax.add, (X, Y), TWO_ARRAYS, [{0, 1}]),
        ("add", lambda x: lax.add(x, zero((4, 6))), (X,), TWO_ARRAYS, [{0, 1}, {0}]),
        ("add", lambda x: x + 2.0, (X,), "(ab, ()) -> (ab)", [{0, 1}]),
        ("sub", lax.sub, (INTS, MORE), TWO_ARRAYS, [{0, 1}]),
        ("mul", lax.mul, (X, Y), TWO_ARRAYS, [{0}, {1}]),
        ("mul", lambda x: x * x, (X,), TWO_ARRAYS, [{0}, {1}]),
        ("div", lax.div, (X, Y), TWO_ARRAYS, [{0}]),
        ("div", lax.div, (INTS, MORE), TWO_ARRAYS, []),
        ("neg", lax.neg, (X,), ONE_ARRAY, [{0}]),
        ("complex", lax.complex, (X, Y), TWO_ARRAYS, [{0, 1}]),
        ("real", lambda x: lax.real(x), (X + 1j * Y,), ONE_ARRAY, [{0}]),
        ("imag", lambda x: lax.imag(x), (X + 1j * Y,), ONE_ARRAY, [{0}]),
        ("convert_element_type", lambda x: x.astype(jnp.complex64), (X,), ONE_ARRAY, [{0}]),
        ("convert_element_type", lambda x: x.astype(jnp.int32), (X,), ONE_ARRAY, []),
        ("convert_element_type", lambda x: x.astype(jnp.float32), (INTS,), ONE_ARRAY, []),
        ("select_n", lax.select, (MASK, X, Y), "(ab, ab, ab) -> (ab)", [{1, 2}]),
        (
            "select_n",
            lambda m, x: lax.select(m, x, zero((4, 6))),
            (MASK, X),
            "(ab, ab, ab) -> (ab)",
            [{1, 2}, {2}],
        ),
        ("select_n", lax.select, (MASK, MASK, MASK), "(ab, ab, ab) -> (ab)", []),
        ("select_n", lambda x: lax.select_n(True, x, x + 1), (X,), "((), ab, ab) -> (ab)", [{1, 2}]),
        (
            "optimization_barrier",
            lambda x, v: lax.optimization_barrier((x, v)),
            (X, V),
            "(ab, c) -> (ab, c)",
            [{0, 1}],
        ),
        ("random_fold_in", jax.vmap(jax.vmap(jax.random.fold_in)), (keys, INTS), TWO_ARRAYS, []),
        ("stop_gradient", lax.stop_gradient, (X,), ONE_ARRAY, [{0}]),
        ("copy", jnp.copy, (X,), ONE_ARRAY, [{0}]),
    ]


def made() -> list[Case]:
    """Arrays made of nothing or of keys, and linear algebra."""
    square = np.stack([np.eye(3, dtype=np.float32) * 2 + real(3, 3, seed=i) / 9 for i in range(4)])
    return [
        ("iota", lambda: lax.broadcasted_iota(np.int32, (4, 6), 0), (), "() -> (ab)", []),
        ("random_unwrap", jax.random.key_data, (KEYS,), "(a) -> (ab) whole b", []),
        ("random_wrap", jax.random.wrap_key_data, (jax.random.key_data(KEYS),), "(ab) -> (a) whole b", []),
        ("random_split", jax.vmap(lambda k: jax.random.split(k, 6)), (KEYS,), "(a) -> (ab) whole b", []),
        (
            "cholesky",
            lambda x: lax.linalg.cholesky(x, symmetrize_input=False),
            (square,),
            "(abc) -> (ade) whole bcde",
            [],
        ),
        ("lu", lax.linalg.lu, (square,), "(abc) -> (ade, af, ag) whole bcdefg", []),
        (
            "triangular_solve",
            lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True, lower=True),
            (square, real(4, 3, 2)),
            "(abc, ade) -> (afg) whole bcdefg",
            [{1}],
        ),
    ]
