"""Does an optimised random program do what the plain one does?"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax._api import optimize
from lepton_jax._options import make_options
from lepton_jax._stage import manager_for
from lepton_jax.fuzz.noise import differs, plain, samples
from lepton_jax.fuzz.program import Program, Type, is_inexact, make_args, make_batch, recorded
from lepton_jax.ir import _jax
from lepton_jax.ir.export import to_callable
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.rewrite import CheckStructure
from lepton_jax.rewrite.profit import disregarded

Outputs = dict[str, list[Any]]
Function = Callable[..., tuple[Any, ...]]
View = Callable[[Function, Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True)
class Failure:
    """What an optimised program does wrong.

    Attributes:
        kind: `value`, `gradient`, `vmap`, `effects`, `twice` (a second run of the passes changes the
            program again), or `error` and the exception's name.
        detail: what was seen.
    """

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class Invalid(Exception):
    """Plain JAX cannot run the program."""


@dataclass(frozen=True)
class Subject:
    """A function to check, with the types and the seed of its arguments; see `Program`."""

    fun: Function
    types: tuple[Type, ...]
    seed: int
    hostile: bool = False
    has_effects: bool = False

    @classmethod
    def of(cls, program: Program) -> Subject:
        """A random program as a subject."""
        return cls(program.function(), program.types, program.seed, program.hostile, program.has_effects)


def check(
    program: Program | Subject,
    passes: str = "default",
    level: str = "reassociate",
    only: str | None = None,
    *,
    target: str | None = None,
    regardless: bool = False,
) -> Failure | None:
    """Compare a program under `lepton.optimize` with itself under `jax.jit`.

    Checked: the structure of the graph after every pass; that a second run of the passes changes
    nothing; values, derivatives (reverse, or forward where it has a loop of unknown length), vmap, and the
    order of effects.

    Args:
        only: look for this kind of failure alone, which is faster.
        target: optimise for this target (default: the backend's); the numbers are computed here.
        regardless: apply rewrites whether or not they pay: small programs then see all of them.

    Returns:
        The first failure, or None.

    Raises:
        Invalid: plain JAX cannot trace or run the program.
    """
    with disregarded() if regardless else nullcontext():
        return _check(program, passes, level, only, target)


def _check(
    program: Program | Subject, passes: str, level: str, only: str | None, target: str | None
) -> Failure | None:
    subject = Subject.of(program) if isinstance(program, Program) else program
    views = _Views(subject, only)
    twice = None
    if only in (None, "twice") or only.startswith("error"):
        twice = _passes_twice(views.closed["value"], passes, level, target)
        if only == "twice" or (twice is not None and twice.kind != "twice"):
            return twice
    optimised = optimize(subject.fun, passes, level=level, target=target, strict=True)

    def both(args: Any, batch: Any) -> tuple[Outputs, Outputs]:
        return views.plain(args, batch), views.of(optimised, args, batch)

    try:
        (want, got), effects = recorded(lambda: jax.jit(both)(views.args, views.batch))
    except Exception as error:
        views.run_plain()
        return _error(error)
    return _compare(views, want, got, level) or _compare_effects(effects) or twice


def _error(error: Exception) -> Failure:
    cause = error.__cause__ or error
    return Failure(f"error {type(cause).__name__}", " ".join(str(error).split())[:600])


def _passes_twice(closed: Any, passes: str, level: str, target: str | None) -> Failure | None:
    """Run the passes with structural checks; run them again on what they made.

    JAX simplifies a little in tracing: a `custom_vjp` loses the constants that its body no longer reads.
    Where it did, the passes may simplify once more, and must be done then.
    """
    options = make_options(passes, level, target, None, None, None, None, False, True, False)
    manager = manager_for(options, instruments=[CheckStructure()])
    try:
        graph, _ = manager.run(closed, "program")
        for _ in range(2):
            made = graph.to_text()
            again = _jax.trace_flat(to_callable(graph), closed.in_avals)
            once = from_jaxpr(again, "program").to_text()
            graph, _ = manager.run(again, "program")
            twice = graph.to_text()
            if once == twice:
                return None
            if made == once:
                break
    except Exception as error:
        return _error(error)
    lines = difflib.unified_diff(
        once.splitlines(), twice.splitlines(), "after once", "after twice", "", "", 3, ""
    )
    return Failure("twice", "the passes change their own result\n" + "\n".join(lines))


class _Views:
    """A program's value, derivative and batched value, as far as it has them.

    Attributes:
        closed: the jaxprs of the plain program's views.
    """

    def __init__(self, subject: Subject, only: str | None) -> None:
        self.inexact = [i for i, kind in enumerate(subject.types) if is_inexact(kind.dtype)]
        self.args = make_args(subject.types, subject.seed, subject.hostile)
        self.batch: list[Any] = []
        self.closed: dict[str, Any] = {}
        self.views: dict[str, View] = {}
        reason = self.add("value", self.value, subject.fun)
        if reason is not None:
            raise Invalid(reason)
        if subject.has_effects or subject.hostile or only in ("value", "effects", "twice"):
            return
        if only != "gradient":
            self.batch = make_batch(subject.types, subject.seed)
            self.add("vmap", self.batched, subject.fun)
        if only != "vmap" and self.add("gradient", self.reverse, subject.fun) is not None:
            self.add("gradient", self.forward, subject.fun)

    def add(self, name: str, view: View, fun: Function) -> str | None:
        """Look at the program in one more way; why plain JAX cannot, if it cannot."""
        try:
            self.closed[name] = jax.make_jaxpr(lambda *flat: tuple(view(fun, flat)))(*self.flat(name))
        except Exception as error:
            return str(error)
        self.views[name] = view
        return None

    def flat(self, name: str, args: Any = None, batch: Any = None) -> Sequence[Any]:
        """The arguments of a view."""
        args, batch = (self.args, self.batch) if args is None else (args, batch)
        return batch if name == "vmap" else args  # type: ignore[no-any-return]

    def of(self, fun: Function, args: Any, batch: Any) -> Outputs:
        """Every view of `fun`."""
        return {name: list(view(fun, self.flat(name, args, batch))) for name, view in self.views.items()}

    def plain(self, args: Any, batch: Any) -> Outputs:
        """Every view of the plain program, from its jaxprs."""
        return {
            name: _jax.eval_jaxpr(closed, _jax.parts(closed)[1], self.flat(name, args, batch))
            for name, closed in self.closed.items()
        }

    def run_plain(self) -> None:
        """Run the plain program alone.

        Raises:
            Invalid: it fails too.
        """
        try:
            jax.block_until_ready(jax.jit(self.plain)(self.args, self.batch))
        except Exception as error:
            raise Invalid(str(error)) from error

    def value(self, fun: Function, args: Sequence[Any]) -> Sequence[Any]:
        """The results."""
        return fun(*args)

    def batched(self, fun: Function, batch: Sequence[Any]) -> Sequence[Any]:
        """The results for a batch."""
        return jax.vmap(fun)(*batch)

    def reverse(self, fun: Function, args: Sequence[Any]) -> Sequence[Any]:
        """The cotangents of the inexact arguments."""
        restricted, some = self.restricted(fun, args)
        results, pull = jax.vjp(restricted, *some)
        return tuple(pull(tuple(map(_direction, results))))

    def forward(self, fun: Function, args: Sequence[Any]) -> Sequence[Any]:
        """The tangents of the inexact results."""
        restricted, some = self.restricted(fun, args)
        return tuple(jax.jvp(restricted, some, [_direction(x) for x in some])[1])

    def restricted(self, fun: Function, args: Sequence[Any]) -> tuple[Function, list[Any]]:
        """`fun` from its inexact arguments to its inexact results, and these arguments."""

        def inexact(*some: Any) -> tuple[Any, ...]:
            filled = list(args)
            for place, x in zip(self.inexact, some, strict=True):
                filled[place] = x
            return tuple(x for x in fun(*filled) if jnp.issubdtype(x.dtype, jnp.inexact))

        return inexact, [args[i] for i in self.inexact]


def _direction(x: Any) -> Any:
    """A cotangent or tangent for an array."""
    size = int(np.prod(x.shape))
    return jnp.asarray(np.cos(1 + np.arange(size)).reshape(x.shape)).astype(x.dtype)


def _compare(views: _Views, want: Outputs, got: Outputs, level: str) -> Failure | None:
    """Compare within a few ulps; what is further off is compared with what noise does."""
    strict_odd = level == "exact"
    for name in views.views:
        noisy: list[list[np.ndarray]] = []
        for i, pair in enumerate(zip(want[name], got[name], strict=True)):
            a, b = (np.asarray(plain(x)) for x in pair)
            if not differs(a, b, None, strict_odd):
                continue
            noisy = noisy or samples(views.closed[name], views.flat(name))
            reason = differs(a, b, [run[i] for run in noisy], strict_odd)
            if reason:
                return Failure(name, f"result {i}: {reason}")
    return None


def _compare_effects(effects: list[tuple[int, np.ndarray]]) -> Failure | None:
    """The plain program recorded the first half, the optimised one the second."""
    half = len(effects) // 2
    first, second = effects[:half], effects[half:]
    if [tag for tag, _ in first] != [tag for tag, _ in second]:
        return Failure("effects", f"{[tag for tag, _ in first]} became {[tag for tag, _ in second]}")
    for (tag, a), (_, b) in zip(first, second, strict=True):
        if not np.allclose(a.astype(np.complex128), b.astype(np.complex128), 1e-2, 1e-2, equal_nan=True):
            return Failure("effects", f"record {tag}: {a} became {b}")
    return None
