"""Random shapes, dtypes and numbers for programs in which a rule fires."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.numerics.samples import sample

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Flavour = Literal["random", "ties", "special", "extreme", "zeros", "ones"]

FLAVOURS: Final[tuple[Flavour, ...]] = ("random", "ties", "special", "extreme", "zeros", "ones")
"""What fills the arguments of a program: see `values`."""

TAME: Final[tuple[Flavour, ...]] = ("random", "ties", "ones")
"""Flavours without infinities, NaN and extremes, for what has no meaning there."""

SIMPLIFIED: Final = "inline,dce,fixpoint(fold,algebra,movement,cse,dce)"
"""What runs in front of most passes."""

SIZES: Final = (0, 1, 2, 3, 5, 8)


@dataclass(frozen=True)
class Program:
    """A program to try a rule on.

    Attributes:
        fun: a function of arrays that returns an array or a tree of them.
        args: `jax.ShapeDtypeStruct`s, which are filled with numbers of every flavour, and arrays, which stay.
        prepare: passes that run before.
        passes: the pass that the rule is in, with options; default: the family's.
        target: what it is rewritten for. It runs on the CPU all the same.
        flavours: what the arguments are filled with.
        drops: why NaN and infinities that come in may vanish; empty where they must not.
        grad: whether gradients are compared.
        kinks: why the derivative may be another one where numbers are equal; empty where it must not.
        along: how large numbers on the way to a smaller result are, whose rounding is not the rule's fault.
        rounds: why an exact rule's result may be rounded otherwise on this backend; empty where it must not.
        overflows: why finite results may become infinite or NaN on inputs of extreme magnitude; empty where
            they must not.
    """

    fun: Callable[..., Any]
    args: tuple[Any, ...]
    prepare: str = "inline,dce"
    passes: str = ""
    target: str = "cpu"
    flavours: tuple[Flavour, ...] = FLAVOURS
    drops: str = ""
    grad: bool = True
    kinks: str = ""
    along: float = 0.0
    rounds: str = ""
    overflows: str = ""


def P(fun: Callable[..., Any], *args: Any, **how: Any) -> Program:
    """A program, written shortly."""
    return Program(fun, args, **how)


Maker = Callable[["Draw"], Program]
"""Draws a program in which its rule fires, or, where it is to look alike, does not."""

Makers = Mapping[str, Sequence[Maker]]
"""For each rule, by name, its makers."""


class Draw:
    """A source of random programs.

    Args:
        seed: where the randomness starts.
        x64: whether types of 64 bits are among those drawn; JAX must have them enabled.
    """

    def __init__(self, seed: Sequence[int], x64: bool = False) -> None:
        self.rng = np.random.default_rng(list(seed))
        self.x64 = x64

    def pick(self, *options: Any) -> Any:
        """One of several."""
        return options[int(self.rng.integers(len(options)))]

    def whole(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    def size(self, least: int = 0, most: int = 8) -> int:
        """A length of a dimension."""
        return int(self.pick(*(n for n in SIZES if least <= n <= most)))

    def shape(self, least: int = 0, most: int = 3, size: int = 0) -> Shape:
        """A shape of `least` to `most` dimensions, each of at least `size`; seldom with a zero in it."""
        rank = self.whole(least, most)
        sizes = [n for n in SIZES if n >= size]
        weights = np.array([0.3 if n == 0 else 1.0 for n in sizes])
        return tuple(int(n) for n in self.rng.choice(sizes, rank, p=weights / weights.sum()))

    def axis(self, shape: Shape) -> int:
        """A dimension of a shape."""
        return self.whole(0, len(shape) - 1)

    def order(self, rank: int) -> Shape:
        """A permutation of dimensions."""
        return tuple(int(d) for d in self.rng.permutation(rank))

    def like(self, shape: Shape | None, dtype: Any) -> jax.ShapeDtypeStruct:
        """An argument of a dtype."""
        return jax.ShapeDtypeStruct(self.shape() if shape is None else shape, jnp.dtype(dtype))

    def floats(self, shape: Shape | None = None, *dtypes: str) -> jax.ShapeDtypeStruct:
        """An argument of real floating-point numbers."""
        return self.like(shape, self.pick(*(dtypes or self.float_types())))

    def wide(self, shape: Shape | None = None) -> jax.ShapeDtypeStruct:
        """An argument of real floating-point numbers of at least 32 bits."""
        return self.floats(shape, *(("float32", "float64") if self.x64 else ("float32",)))

    def float_types(self) -> tuple[str, ...]:
        """Names of real floating-point types, float32 as often as all others together."""
        wide = ("float64", "float64") if self.x64 else ()
        return ("float32", "float32", "bfloat16", "float16", *wide)

    def ints(self, shape: Shape | None = None, *dtypes: str) -> jax.ShapeDtypeStruct:
        """An argument of integers."""
        wide = ("int64", "uint64") if self.x64 else ()
        kinds = dtypes or ("int32", "int32", "int8", "int16", "uint8", "uint32", *wide)
        return self.like(shape, self.pick(*kinds))

    def signed(self, shape: Shape | None = None) -> jax.ShapeDtypeStruct:
        """An argument of integers with a sign."""
        return self.ints(shape, "int32", "int8", "int16", *(("int64",) if self.x64 else ()))

    def bools(self, shape: Shape | None = None) -> jax.ShapeDtypeStruct:
        """An argument of booleans."""
        return self.like(shape, "bool")

    def complexes(self, shape: Shape | None = None) -> jax.ShapeDtypeStruct:
        """An argument of complex numbers."""
        return self.like(shape, self.pick("complex64", *(("complex128",) if self.x64 else ())))

    def reals(self, shape: Shape | None = None) -> jax.ShapeDtypeStruct:
        """An argument of integers or of real floating-point numbers."""
        return self.ints(shape) if self.rng.random() < 0.3 else self.floats(shape)

    def numbers(self, shape: Shape | None = None) -> jax.ShapeDtypeStruct:
        """An argument of integers, of real or of complex numbers."""
        return self.complexes(shape) if self.rng.random() < 0.15 else self.reals(shape)

    def discrete(self, shape: Shape | None = None) -> jax.ShapeDtypeStruct:
        """An argument of integers or booleans."""
        return self.bools(shape) if self.rng.random() < 0.3 else self.ints(shape)

    def anything(self, shape: Shape | None = None) -> jax.ShapeDtypeStruct:
        """An argument of any type."""
        return self.bools(shape) if self.rng.random() < 0.15 else self.numbers(shape)

    def places(self, shape: Shape, count: int, outside: bool = False) -> Array:
        """Indices below `count`, with repetitions; also some that are out of bounds."""
        low, high = (-2, count + 2) if outside else (0, max(count, 1))
        return self.rng.integers(low, high, shape).astype(np.int32)

    def of(self, x: Any, number: Any) -> Any:
        """A number in the dtype of an array: a scalar or of its shape, constant or broadcast."""
        scalar = np.asarray(number).astype(x.dtype)
        way = self.whole(0, 3) if 0 not in x.shape else 3
        if way == 0:
            return np.full(x.shape, scalar)
        return jnp.full(x.shape, scalar) if way == 1 else scalar

    def either(self, op: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
        """A commutative operation on two operands in either order."""
        return op(a, b) if self.rng.random() < 0.5 else op(b, a)


def on(kind: str | Callable[[Draw], Any], fun: Callable[..., Any], count: int = 1, **how: Any) -> Maker:
    """A maker of programs of `count` arguments of one type.

    Args:
        kind: a method of `Draw`, or what draws the argument.
        fun: takes the `Draw` too, and may draw while it is traced, which happens once.
    """

    def make(d: Draw) -> Program:
        arg = getattr(d, kind)() if isinstance(kind, str) else kind(d)
        return P(lambda *args: fun(d, *args), *[arg] * count, **how)

    return make


def bounded(d: Draw, whole: Any) -> Any:
    """Integers as floats between -1 and 1, which are therefore known to be finite."""
    return jnp.tanh(whole.astype(d.pick(*d.float_types())))


def values(aval: Any, flavour: Flavour, rng: np.random.Generator) -> Any:
    """Numbers for an argument; an array is itself.

    `random`: normal floats, small integers; `ties`: floats and integers from -2 to 2; `special`: NaN,
    infinities, signed zeros and subnormals among normal floats, limits of integers; `extreme`: finite
    magnitudes from the least to the greatest, limits of integers; `zeros`; `ones`.
    """
    if not isinstance(aval, jax.ShapeDtypeStruct):
        return aval
    if jnp.issubdtype(aval.dtype, np.integer) and flavour in ("random", "ties"):
        reach = 9 if flavour == "random" else 2
        low = 0 if jnp.iinfo(aval.dtype).min == 0 else -reach
        return jnp.asarray(rng.integers(low, reach + 1, aval.shape).astype(aval.dtype))
    if flavour == "special" and jnp.issubdtype(aval.dtype, np.inexact):
        return jnp.asarray(_special(aval, rng))
    if flavour != "ties":
        return sample(aval, flavour, rng)
    if aval.dtype == np.bool_:
        return sample(aval, "random", rng)
    whole: Any = rng.integers(-2, 3, aval.shape).astype(np.float64)
    if jnp.issubdtype(aval.dtype, np.complexfloating):
        whole = whole + 1j * rng.integers(-2, 3, aval.shape)
    return jnp.asarray(whole.astype(aval.dtype))


def _special(aval: Any, rng: np.random.Generator) -> Array:
    """Normal numbers, a third of them something special; nothing overflows but what is infinite."""
    if jnp.issubdtype(aval.dtype, np.complexfloating):
        part = jax.ShapeDtypeStruct(aval.shape, np.zeros((), aval.dtype).real.dtype)
        return np.asarray(lax.complex(*(jnp.asarray(_special(part, rng)) for _ in range(2))))
    tiny = float(jnp.finfo(aval.dtype).tiny)
    few = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, tiny / 2, -tiny / 2])
    numbers = rng.standard_normal(aval.shape)
    mixed: Array = np.where(rng.random(aval.shape) < 0.35, rng.choice(few, aval.shape), numbers)
    return mixed.astype(aval.dtype)
