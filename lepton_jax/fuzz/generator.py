"""Writes random programs, one well-typed statement after another."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import io_callback

from lepton_jax.fuzz.program import (
    KEY,
    Block,
    Statement,
    Type,
    flat,
    free_names,
    record,
    split,
    thrice_the_cotangent,
    twice_the_tangent,
    type_of,
)

FLOATS: Final = ("float32", "bfloat16", "float16")
INTS: Final = ("int32", "int8", "uint8")
COMPLEX: Final = "complex64"
BOOL: Final = "bool"

Maker = Callable[["Generator"], None]
"""Adds one random statement, if it finds operands for it."""


class Generator:
    """Writes statements into the block at hand.

    Attributes:
        rng: the source of all choices.
        dims: the sizes of axes that the program is about.
        scope: the names that can be read, outer ones first, with their types.
        statements: those of the block at hand.
        left: how many more statements to write.
        depth: how many regions the block at hand is in.
        closed: whether the block at hand reads nothing from outside.
        quiet: whether it may have no effects.
        straight: whether it may have no loop of unknown length, so that it has a reverse derivative.
        focus: a name to read wherever it fits.
        failed: how many statements JAX refused, by maker.
    """

    def __init__(self, rng: random.Random, size: int, makers: Sequence[tuple[Maker, float]]) -> None:
        self.rng = rng
        self.dims = [*rng.sample([1, 2, 3, 4, 5], 3), *([0] if rng.random() < 0.1 else [])]
        self.scope: list[tuple[str, Type]] = []
        self.statements: list[Statement] = []
        self.left = size
        self.depth = 0
        self.closed = False
        self.quiet = rng.random() < 0.8
        self.straight = rng.random() < 0.6
        self.own = 0
        self.focus = ""
        self.kind = ""
        self.makers = [made for made, _ in makers]
        self.weights = [weight for _, weight in makers]
        self.failed: dict[str, int] = {}
        self.count = 0

    # Blocks

    def program(self) -> Block:
        """A whole program."""
        types = [Type(self.shape(least=1), "float32")]
        types += [self.type() for _ in range(self.rng.randint(1, 4))]
        if self.rng.random() < 0.25:
            types.append(Type((), KEY))
        return self.block(types, self.left, name="program")

    def block(
        self,
        inputs: Sequence[Type],
        size: int,
        outputs: Sequence[Type] | None = None,
        *,
        name: str | None = None,
        closed: bool = False,
        quiet: bool = False,
        straight: bool = False,
    ) -> Block:
        """A function of these inputs with about `size` statements.

        Args:
            outputs: the types that it must return (default: whatever comes).
            closed: it reads nothing from outside.
            quiet: it has no effects.
            straight: it has a reverse derivative.
        """
        kept = (self.scope, self.statements, self.own, self.closed, self.quiet, self.straight, self.kind)
        named = [(self.fresh("a"), kind) for kind in inputs]
        self.scope = [*([] if closed else self.scope), *named]
        self.own = len(self.scope) - len(named)
        self.statements = []
        self.closed, self.quiet, self.straight = (
            self.closed or closed,
            self.quiet or quiet,
            self.straight or straight,
        )
        self.depth += 1
        stop = self.left - size
        for _ in range(4 * size):
            if self.left <= stop:
                break
            self.statement()
        self.kind = "coerce"
        results = self.outputs() if outputs is None else tuple(self.coerce(kind) for kind in outputs)
        made = Block(name or self.fresh("f"), tuple(named), tuple(self.statements), results)
        self.depth -= 1
        self.scope, self.statements, self.own, self.closed, self.quiet, self.straight, self.kind = kept
        return made

    def statement(self) -> None:
        """One random statement, unless its maker finds no operands."""
        make = self.rng.choices(self.makers, self.weights)[0]
        self.kind = make.__name__
        make(self)

    def outputs(self) -> tuple[str, ...]:
        """Some values of the block: most that nobody reads, now and then an input or the same twice."""
        own = [name for name, _ in self.scope[self.own :]]
        unread = [name for name in self.unread() if self.rng.random() < 0.95]
        picked = self.rng.sample(unread, min(len(unread), 6))
        picked += [own[-1 - min(int(self.rng.expovariate(0.4)), len(own) - 1)] for _ in range(not picked)]
        picked += [self.rng.choice(own)] if self.rng.random() < 0.2 else []
        return tuple(picked if self.rng.random() < 0.2 else dict.fromkeys(picked))

    def unread(self) -> list[str]:
        """The results of the block's statements that none of its statements reads."""
        read = free_names([replace(s, results=()) for s in self.statements], ())
        return [name for s in self.statements for name in s.results if name not in read]

    # Statements

    def fresh(self, letter: str) -> str:
        """A name that is not taken."""
        self.count += 1
        return f"{letter}{self.count}"

    def emit(self, template: str, *operands: str, regions: Sequence[Block] = ()) -> list[str]:
        """Write a statement; the names of its results, none if JAX refuses it."""
        draft = Statement(("_",), (), template, operands, tuple(regions), self.kind)
        types = self.infer(draft)
        if types is None:
            self.failed[self.kind] = self.failed.get(self.kind, 0) + 1
            return []
        names = [self.fresh("v") for _ in types]
        self.statements.append(Statement(tuple(names), types, template, operands, tuple(regions), self.kind))
        self.scope += zip(names, types, strict=True)
        self.left -= 1
        return names

    def effect(self, template: str, *operands: str) -> None:
        """Write a statement without results."""
        self.statements.append(Statement((), (), template, operands, (), self.kind))
        self.left -= 1

    def infer(self, draft: Statement) -> tuple[Type, ...] | None:
        """The types of a statement's results, from JAX; None if it refuses, or if they are too large."""
        names = sorted(free_names([draft], ()))
        types = dict(self.scope)
        lines = [f"def infer({', '.join(names)}):"]
        lines += ["    " + line for line in [*draft.functions(), f"return flat({draft.expression()})"]]
        scope = dict(_SCOPE)
        exec("\n".join(lines), scope)
        try:
            found = jax.eval_shape(scope["infer"], *(types[name].spec() for name in names))
        except (TypeError, ValueError, NotImplementedError, IndexError, ZeroDivisionError):
            return None
        inferred = tuple(type_of(leaf) for leaf in found)
        return None if any(kind.size > 200 for kind in inferred) else inferred

    # Operands

    def pick(self, wanted: Callable[[Type], bool]) -> tuple[str, Type] | None:
        """A value of a wanted type, late ones more likely; None if there is none."""
        found = [(name, kind) for name, kind in self.scope if kind.dtype != KEY and wanted(kind)]
        if not found:
            return None
        if self.focus and (focused := [pair for pair in found if pair[0] == self.focus]):
            return focused[0]
        return found[-1 - min(int(self.rng.expovariate(0.25)), len(found) - 1)]

    def pick_dtype(self, *dtypes: str, least: int = 0) -> tuple[str, Type] | None:
        """A value of one of these dtypes with at least so many axes."""
        return self.pick(lambda kind: kind.dtype in dtypes and kind.ndim >= least)

    def pick_any(self, least: int = 0) -> tuple[str, Type] | None:
        """A value of any dtype but keys, with at least so many axes."""
        return self.pick(lambda kind: kind.ndim >= least)

    def pick_key(self) -> tuple[str, Type] | None:
        """A single PRNG key."""
        found = [(name, kind) for name, kind in self.scope if kind == Type((), KEY)]
        return self.rng.choice(found) if found else None

    def mate(self, kind: Type) -> str | None:
        """A value of the same dtype whose shape broadcasts with `kind`."""
        found = self.pick(lambda other: other.dtype == kind.dtype and broadcasts(kind.shape, other.shape))
        return None if found is None else found[0]

    def index(self, most: int, place: int) -> tuple[str, list[str]]:
        """A template for an index below `most`, and its operands: a number, or operand `place` clipped."""
        found = self.pick(lambda kind: kind == Type((), "int32"))
        if found is None or self.rng.random() < 0.4:
            return str(self.rng.randrange(max(most, 1))), []
        return f"jnp.clip({{{place}}}, 0, {max(most - 1, 0)})", [found[0]]

    def coerce(self, wanted: Type) -> str:
        """The name of a value of exactly this type: made in the block, made from another, or an old one."""
        made = [name for name, _ in self.scope[self.own :] if name.startswith("v")]
        types = dict(self.scope)
        fresh = [name for name in made if types[name] == wanted]
        if fresh and self.rng.random() < 0.6:
            return fresh[-1 - min(int(self.rng.expovariate(0.7)), len(fresh) - 1)]
        unread = [name for name in self.unread() if types[name].dtype != KEY]
        if unread and wanted.dtype != KEY and self.rng.random() < 0.8:
            return self.converted(self.rng.choice(unread), wanted)
        same = [name for name, kind in self.scope if kind == wanted]
        if same:
            return same[-1 - min(int(self.rng.expovariate(0.7)), len(same) - 1)]
        other = self.pick_any()
        if other is not None:
            return self.converted(other[0], wanted)
        return self.emit(f"jnp.zeros({wanted.shape}, '{wanted.dtype}')")[0]

    def converted(self, name: str, wanted: Type) -> str:
        """A value made of another, of a type that is not a key."""
        kind = dict(self.scope)[name]
        if kind == wanted:
            return name
        made = self.emit(convert(kind, wanted), name)
        return made[0] if made else self.emit(f"jnp.zeros({wanted.shape}, '{wanted.dtype}')")[0]

    # Types

    def shape(self, least: int = 0, most: int = 3) -> tuple[int, ...]:
        """A shape of the program's dimensions."""
        return tuple(self.rng.choice(self.dims) for _ in range(self.rng.randint(least, most)))

    def type(self) -> Type:
        """A type, float32 most likely."""
        dtypes = ("float32", "bfloat16", "float16", "int32", "int8", "uint8", "bool", "complex64")
        return Type(self.shape(), self.rng.choices(dtypes, (10, 2, 1, 4, 1, 1, 2, 1))[0])

    def choice(self, options: Sequence[str]) -> str:
        """One of some templates."""
        return self.rng.choice(options)


def broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes broadcast together."""
    return all(x == y or x == 1 or y == 1 for x, y in zip(reversed(a), reversed(b), strict=False))


def convert(source: Type, wanted: Type) -> str:
    """A template that makes a value of one type of another; floats are clipped to become integers."""
    text = "{0}"
    if source.dtype == COMPLEX and wanted.dtype != COMPLEX:
        text = f"jnp.real({text})"
    if source.dtype in (*FLOATS, COMPLEX) and wanted.dtype in INTS:
        low, high = (0, 100) if wanted.dtype == "uint8" else (-100, 100)
        text = f"jnp.clip(jnp.nan_to_num({text}), {low}, {high})"
    if source.dtype != wanted.dtype:
        text = f"{text}.astype('{wanted.dtype}')"
    if source.shape == wanted.shape:
        return text
    if source.size == wanted.size:
        return f"jnp.reshape({text}, {wanted.shape})"
    if (
        broadcasts(source.shape, wanted.shape)
        and np.broadcast_shapes(source.shape, wanted.shape) == wanted.shape
    ):
        return f"jnp.broadcast_to({text}, {wanted.shape})"
    total = f"jnp.any({text})" if wanted.dtype == BOOL else f"jnp.sum({text}, dtype='{wanted.dtype}')"
    return f"jnp.broadcast_to({total}, {wanted.shape})"


_SCOPE: Final[dict[str, Any]] = {
    "jax": jax,
    "jnp": jnp,
    "np": np,
    "lax": lax,
    "io_callback": io_callback,
    "flat": flat,
    "record": record,
    "split": split,
    "thrice_the_cotangent": thrice_the_cotangent,
    "twice_the_tangent": twice_the_tangent,
}
