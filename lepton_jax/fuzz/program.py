"""Random programs as data: they are printed as Python, run, and cut down statement by statement."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

KEY: Final = "key"
"""The dtype name of typed PRNG keys."""

HEADER: Final = """\
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import io_callback

from lepton_jax.fuzz.program import flat, record, split, thrice_the_cotangent, twice_the_tangent
"""


@dataclass(frozen=True)
class Type:
    """The shape and dtype (by name) of an array."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape))

    def spec(self) -> jax.ShapeDtypeStruct:
        """As JAX takes it for an abstract argument."""
        dtype = jax.eval_shape(jax.random.key, 0).dtype if self.dtype == KEY else jnp.dtype(self.dtype)
        return jax.ShapeDtypeStruct(self.shape, dtype)


def type_of(array: Any) -> Type:
    """The type of an array or `jax.ShapeDtypeStruct`."""
    dtype = KEY if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else array.dtype.name
    return Type(tuple(array.shape), dtype)


@dataclass(frozen=True)
class Statement:
    """`results = template`, where the template reads `{0}`, `{1}`, ... and regions `{f0}`, `{f1}`, ...

    Attributes:
        results: the names that it defines, unique in the program; none for an effect.
        types: their types.
        template: a Python expression; with several results, or regions, one that gives a pytree.
        operands: the names that it reads.
        regions: functions that it runs; they may read names from outside.
        kind: which maker made it.
    """

    results: tuple[str, ...]
    types: tuple[Type, ...]
    template: str
    operands: tuple[str, ...] = ()
    regions: tuple[Block, ...] = ()
    kind: str = ""

    def lines(self) -> list[str]:
        """Its source: the regions as functions, then the statement."""
        expression = self.expression()
        if not self.results:
            return [*self.functions(), expression]
        if len(self.results) == 1 and not self.regions:
            return [*self.functions(), f"{self.results[0]} = {expression}"]
        return [*self.functions(), f"{', '.join(self.results)}, = flat({expression})"]

    def functions(self) -> list[str]:
        """The source of its regions."""
        return [line for region in self.regions for line in region.lines()]

    def expression(self) -> str:
        """The template filled in."""
        names = {f"f{i}": region.name for i, region in enumerate(self.regions)}
        return self.template.format(*self.operands, **names)


@dataclass(frozen=True)
class Block:
    """A function: names and types of its inputs, statements, names of its outputs."""

    name: str
    inputs: tuple[tuple[str, Type], ...]
    statements: tuple[Statement, ...]
    outputs: tuple[str, ...]

    def lines(self) -> list[str]:
        """Its source."""
        inner = [line for statement in self.statements for line in statement.lines()]
        result = "return (" + "".join(f"{name}, " for name in self.outputs).rstrip() + ")"
        head = f"def {self.name}({', '.join(name for name, _ in self.inputs)}):"
        return [head, *("    " + line for line in [*inner, result])]

    def free(self) -> set[str]:
        """The names that it reads from outside."""
        return free_names(self.statements, self.outputs) - {name for name, _ in self.inputs}

    def walk(self) -> Iterator[Statement]:
        """Every statement, those of regions after the statement that holds them."""
        for statement in self.statements:
            yield statement
            for region in statement.regions:
                yield from region.walk()


def free_names(statements: Sequence[Statement], outputs: Sequence[str]) -> set[str]:
    """The names that statements and outputs read and do not define."""
    needed = set(outputs)
    for statement in reversed(statements):
        needed -= set(statement.results)
        needed |= set(statement.operands)
        for region in statement.regions:
            needed |= region.free()
    return needed


@dataclass(frozen=True)
class Program:
    """A random program.

    Attributes:
        body: its function.
        seed: of its arguments.
        hostile: whether its arguments hold nan, infinities and zeros.
    """

    body: Block
    seed: int
    hostile: bool = False

    @property
    def types(self) -> tuple[Type, ...]:
        """The types of its inputs."""
        return tuple(kind for _, kind in self.body.inputs)

    @property
    def size(self) -> int:
        """How many statements it has, regions included."""
        return sum(1 for _ in self.body.walk())

    @property
    def has_effects(self) -> bool:
        """Whether it records values in order."""
        return any(not statement.results for statement in self.body.walk())

    def source(self) -> str:
        """The program as a Python module with a function `program`."""
        return "\n".join([HEADER, "", *self.body.lines(), ""])

    def function(self) -> Callable[..., tuple[Any, ...]]:
        """The program as a function, from its source."""
        scope: dict[str, Any] = {}
        exec(compile(self.source(), f"<random program {self.seed}>", "exec"), scope)
        made: Callable[..., tuple[Any, ...]] = scope[self.body.name]
        return made

    def with_body(self, body: Block) -> Program:
        """The same with another body."""
        return replace(self, body=body)


def make_args(types: Sequence[Type], seed: int, hostile: bool = False) -> list[Any]:
    """Arrays of these types, the same at every call. Hostile floats hold nan, infinities and zeros too."""
    rng = np.random.default_rng(seed)
    return [_array(kind, rng, hostile) for kind in types]


def make_batch(types: Sequence[Type], seed: int, size: int = 2) -> list[Any]:
    """Arrays of these types with a new leading axis, for vmap."""
    rows = [make_args(types, seed + 1 + i) for i in range(size)]
    columns = zip(types, zip(*rows, strict=True), strict=True)
    return [jnp.stack(column) if kind.dtype == KEY else np.stack(column) for kind, column in columns]


def _array(kind: Type, rng: np.random.Generator, hostile: bool) -> Any:
    if kind.dtype == KEY:
        data = rng.integers(0, 2**32, (*kind.shape, 2), dtype=np.uint32)
        return jax.random.wrap_key_data(jnp.asarray(data))
    dtype = jnp.dtype(kind.dtype)
    if kind.dtype == "bool":
        return np.asarray(rng.integers(0, 2, kind.shape)).astype(dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        low = 0 if jnp.issubdtype(dtype, jnp.unsignedinteger) else -9
        return np.asarray(rng.integers(low, 10, kind.shape)).astype(dtype)
    values = rng.standard_normal(kind.shape)
    if hostile:
        odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e30, 1e-30])
        values = np.where(rng.random(kind.shape) < 0.3, rng.choice(odd, kind.shape), values)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * rng.standard_normal(kind.shape)
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(dtype)


# What printed programs call


def flat(tree: Any) -> tuple[Any, ...]:
    """The leaves of a pytree."""
    return tuple(jax.tree.leaves(tree))


def split(count: int, values: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The first `count` values, and the rest: a scan's carry and outputs."""
    return tuple(values[:count]), tuple(values[count:])


def twice_the_tangent(fun: Callable[..., Any]) -> Any:
    """`fun` with a custom forward rule: its tangents are twice what they should be."""

    def rule(primals: Any, tangents: Any) -> Any:
        results, found = jax.jvp(fun, primals, tangents)
        return results, jax.tree.map(lambda t: 2 * t, found)

    made = jax.custom_jvp(fun)
    made.defjvp(rule)
    return made


def thrice_the_cotangent(fun: Callable[..., Any]) -> Any:
    """`fun` with a custom backward rule: its cotangents are three times what they should be."""
    made = jax.custom_vjp(fun)
    made.defvjp(lambda *args: jax.vjp(fun, *args), lambda pull, g: tuple(3 * x for x in pull(g)))
    return made


_RECORDED: list[tuple[int, np.ndarray]] = []


def record(tag: int, value: Any) -> None:
    """What programs with effects call back, in order."""
    _RECORDED.append((int(tag), np.array(value)))


def recorded(run: Callable[[], Any]) -> tuple[Any, list[tuple[int, np.ndarray]]]:
    """The result of `run()`, and what was recorded during it."""
    jax.effects_barrier()
    _RECORDED.clear()
    result = jax.block_until_ready(run())
    jax.effects_barrier()
    found = list(_RECORDED)
    _RECORDED.clear()
    return result, found


@functools.cache
def is_inexact(dtype: str) -> bool:
    """Whether values of a dtype are rounded."""
    return dtype != KEY and bool(jnp.issubdtype(jnp.dtype(dtype), jnp.inexact))
