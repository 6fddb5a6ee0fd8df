"""What goes in and comes out: trees of all kinds, weak types, empty arrays, constants, inputs given back."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from ._program import Program, floats, integers


class Particle(NamedTuple):
    """A point with an optional charge."""

    position: Any
    charge: Any = None


@jax.tree_util.register_dataclass
@dataclass
class Settings:
    """A dataclass with a static field."""

    rate: Any
    extra: Any = None
    mode: str = field(default="fast", metadata={"static": True})


@jax.tree_util.register_pytree_with_keys_class
class Interval:
    """A node with a class of its own."""

    def __init__(self, low: Any, high: Any) -> None:
        self.low, self.high = low, high

    def tree_flatten_with_keys(self) -> tuple[Any, None]:
        return (
            (jax.tree_util.GetAttrKey("low"), self.low),
            (jax.tree_util.GetAttrKey("high"), self.high),
        ), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> Interval:
        return cls(*children)


def containers(particle: Particle, settings: Settings, table: Any) -> dict[str, Any]:
    """Named tuples, dataclasses, None, ordered and nested dictionaries."""
    moved = particle._replace(position=particle.position * settings.rate)
    if settings.mode == "fast":
        table = OrderedDict(reversed([(name, value + 1) for name, value in table.items()]))
    return {
        "moved": moved,
        "settings": Settings(settings.rate / 2, {"none": None, "list": [moved.position, ()]}, "slow"),
        "table": table,
        "none": None,
    }


def intervals(a: Interval, b: Interval) -> tuple[Interval, Interval]:
    """Arithmetic of intervals: a class of one's own in and out, and through a loop."""

    def multiply(a: Interval, b: Interval) -> Interval:
        corners = jnp.stack([a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high])
        return Interval(corners.min(0), corners.max(0))

    total = lax.fori_loop(0, 3, lambda i, c: Interval(c.low + b.low, c.high + b.high), a)
    return multiply(a, b), total


def weak_types(x: jax.Array, n: int, rate: float, flag: bool) -> dict[str, Any]:
    """Python numbers as arguments and in expressions; some results are weakly typed."""
    return {
        "n": n,
        "sum": n + 1,
        "rate": rate * 2,
        "mixed": x * rate + n,
        "half": x.astype(jnp.bfloat16) * rate,
        "bytes": x.astype(jnp.int8) + n,
        "not": ~jnp.asarray(flag),
        "chosen": jnp.where(flag, n, rate),
        "full": jnp.full((2,), 3),
        "loop": lax.fori_loop(0, n, lambda i, c: c + i, 0),
        "root": jnp.sqrt(2) + jnp.pi,
        "strong": jnp.float32(rate),
    }


def empty_arrays(x: jax.Array, none: jax.Array) -> dict[str, Any]:
    """Sums, products, loops and joins of arrays with no elements."""
    total, steps = lax.scan(lambda c, v: (c + v.sum(), v * 2), jnp.float32(0), none)
    return {
        "sum": none.sum(0) + x.sum(),
        "product": x[:, :0] @ none,
        "joined": jnp.concatenate([x, none.T.reshape(0, x.shape[1])]),
        "scan": (total, steps),
        "all": jnp.all(none > 0, axis=0),
        "taken": jnp.take(x, jnp.zeros((0, 2), jnp.int32), axis=1),
        "where": jnp.where(none.sum() == 0, 1.0, none.prod()),
    }


def given_back(x: jax.Array, y: dict[str, jax.Array], unused: jax.Array) -> tuple[Any, ...]:
    """Inputs as outputs, one value twice, constants, an unused input, and identities that do nothing."""
    twice = x + y["a"]
    same = x.reshape(x.shape).astype(x.dtype).T.T
    return x, twice, y, twice, same, 0, True, jnp.zeros(2), np.arange(3), (x * 1, x + 0)


def constants(x: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays closed over: of NumPy, computed at trace time, a lookup table, an iota."""
    table = np.sin(np.arange(12, dtype=np.float32)).reshape(3, 4)
    basis = jnp.eye(4) * 2 + jnp.asarray(table.T @ table)
    twiddle = np.exp(2j * np.pi * np.arange(4) / 4).astype(np.complex64)
    mask = np.array([True, False, True, True])
    return (
        x @ basis,
        jnp.where(mask, x, table[0]),
        jnp.abs(x * twiddle),
        table[np.array([2, 0])] + jnp.arange(4.0) * x,
    )


def function_argument(fun: Any, x: jax.Array) -> jax.Array:
    """A function with its data as an argument, by `jax.tree_util.Partial`."""
    return jnp.asarray(jax.vmap(fun)(x))


def scaled_difference(scale: jax.Array, offset: jax.Array, x: jax.Array) -> jax.Array:
    return scale * jnp.sum(jnp.square(x - offset))


def half_precision(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """Mixed precision: bfloat16 products, float32 masters, a loss scale, gradients in two types."""

    def loss(params: Any) -> jax.Array:
        low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        hidden = jax.nn.relu(x.astype(jnp.bfloat16) @ low["up"])
        return 128.0 * jnp.mean((hidden @ low["down"]).astype(jnp.float32) ** 2)

    value, gradient = jax.value_and_grad(loss)(params)
    return value / 128, jax.tree.map(lambda g: (g / 128).astype(jnp.float16), gradient)


def tree_statistics(tree: Any) -> dict[str, Any]:
    """Work over a tree by its paths and leaves: flattening, transposing, reducing, ravelling."""
    flat, rebuild = ravel_pytree(tree)
    by_name = {jax.tree_util.keystr(path): leaf.mean() for path, leaf in jax.tree.leaves_with_path(tree)}
    zero: Any = 0.0
    total = jax.tree.reduce(lambda total, leaf: total + jnp.sum(leaf), tree, zero)
    return {
        "rebuilt": rebuild(flat - flat.mean()),
        "names": by_name,
        "total": total,
        "norm": jnp.linalg.norm(flat),
    }


def container_args() -> tuple[Any, ...]:
    table = OrderedDict([("z", np.int32(3)), ("a", np.array([1, 2], np.uint8))])
    return Particle(floats(3)), Settings(np.float32(0.5)), table


def interval_args() -> tuple[Interval, Interval]:
    low, other = floats(4), floats(4, seed=1)
    return Interval(low, low + 1), Interval(other, other + 2)


PROGRAMS = [
    Program("containers", containers, container_args, vmappable=True),
    Program("own_tree_class", intervals, interval_args, (0, 1), vmappable=True),
    Program("weak_types", weak_types, lambda: (floats(3), 3, 0.25, True), exportable=True),
    Program("empty_arrays", empty_arrays, lambda: (floats(2, 3), floats(0, 3)), (0,), exportable=True),
    Program(
        "inputs_given_back",
        given_back,
        lambda: (floats(2, 3), {"a": floats(2, 3, seed=1), "b": integers(2, high=5)}, floats(4)),
        vmappable=True,
        exportable=True,
    ),
    Program("closed_over_constants", constants, lambda: (floats(4),), (0,), vmappable=True, exportable=True),
    Program(
        "function_argument",
        function_argument,
        lambda: (jax.tree_util.Partial(scaled_difference, np.float32(2), floats(3)), floats(4, 3, seed=1)),
        (0, 1),
    ),
    Program(
        "half_precision",
        half_precision,
        lambda: ({"up": floats(4, 6), "down": floats(6, 2, seed=1)}, floats(3, 4)),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "tree_statistics",
        tree_statistics,
        lambda: ({"a": [floats(2, 3), floats(4, seed=1)], "b": Particle(floats(3, seed=2), floats(seed=3))},),
        (0,),
        vmappable=True,
    ),
]
