"""Which single rewrite breaks a program: bisection over the applications of rules."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax._difference import difference
from lepton_jax._options import Options, StaticArguments, make_options
from lepton_jax._stage import dynamic_leaves, trace_call
from lepton_jax.ir import _jax
from lepton_jax.ir.export import evaluate
from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import LeptonError, PassManager, Report
from lepton_jax.rewrite.reproducer import without_reproducers
from lepton_jax.targets import get_target

Check = Callable[[Callable[..., Any]], bool]


class BisectError(LeptonError):
    """There is nothing to find: the plain function fails the check, or the optimised one passes it."""


@dataclass(frozen=True)
class Culprit:
    """The rewrite that breaks a check.

    Attributes:
        pass_name: the pass that made it.
        rule: its rule.
        number: which application it was, from 1.
        total: how many applications there are without bisection.
        op: the operation that it was applied to.
        where: the file and line that this operation comes from.
        diff: what it changed in the graph's text.
    """

    pass_name: str
    rule: str
    number: int
    total: int
    op: str
    where: str
    diff: str

    def __str__(self) -> str:
        return (
            f"application {self.number} of {self.total} breaks the check: "
            f"rule {self.rule} of pass {self.pass_name}\n"
            f"on {self.op} from {self.where}\n{self.diff}"
        )


def bisect(
    fun: Callable[..., Any],
    *args: Any,
    check: Check,
    passes: str = "default",
    level: str = "reassociate",
    target: str | None = None,
) -> Culprit:
    """Find the first application of a rule that makes a check fail.

    The passes ask before every change, so a function can be optimised up to the N-th change and no
    further. A binary search over N finds one where the check passes with N - 1 changes and
    fails with N.

    Args:
        fun: the function.
        args: example arguments; they say how many changes there are.
        check: is given functions with the signature of `fun` and says whether they are fine. A
            function that cannot be traced, compiled or checked (an exception) counts as not fine.
        passes: the pipeline's text.
        level: the semantics level.
        target: what to optimise for.

    Returns:
        The culprit, with what it changed.

    Raises:
        BisectError: the check fails with no change made, or passes with all.

    Example:
        >>> bisect(lambda x: x * 1.0, jnp.ones(3), check=lambda f: True, passes="algebra")
        Traceback (most recent call last):
        lepton_jax._bisect.BisectError: the check passes with all 1 applications of 'algebra'
    """
    options = make_options(passes, level, target, None, None, None, None, False, True, False)
    search = _Search(fun, args, check, options)
    if not search.is_fine(0, reraise=True):
        raise BisectError("the function itself fails the check, with no rule applied")
    total = len(search.run(None).allowed)
    if search.is_fine(None):
        raise BisectError(f"the check passes with all {total} applications of {passes!r}")
    good, bad = 0, total
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if search.is_fine(middle) else (good, middle)
    return search.culprit(bad, total)


@dataclass
class _Run:
    """One run of the passes: the graph and the report, or why there are none, and what was allowed."""

    graph: Graph | None = None
    report: Report | None = None
    error: LeptonError | None = None
    allowed: list[tuple[str, str]] = field(default_factory=list)


class _Search:
    """Runs the passes up to a certain application."""

    def __init__(
        self, fun: Callable[..., Any], args: tuple[Any, ...], check: Check, options: Options
    ) -> None:
        self.fun = fun
        self.args = args
        self.check = check
        self.options = options
        self.static = StaticArguments.of(fun, options)
        self.name = getattr(fun, "__name__", "f")
        self.jaxpr = trace_call(fun, self.static, args, {})[0]

    def optimised(self, most: int | None) -> Callable[..., Any]:
        """The function with at most so many applications (None: all)."""

        def limited(*args: Any, **kwargs: Any) -> Any:
            jaxpr, tree = trace_call(self.fun, self.static, args, kwargs)
            run = self.run(most, jaxpr)
            if run.graph is None:
                raise run.error or AssertionError
            return jax.tree.unflatten(tree, evaluate(run.graph, dynamic_leaves(self.static, args, kwargs)))

        limited.__name__ = limited.__qualname__ = self.name
        return jax.jit(limited)

    def is_fine(self, most: int | None, reraise: bool = False) -> bool:
        """Whether the check passes with so many applications."""
        try:
            return bool(self.check(self.optimised(most)))
        except Exception:
            if reraise:
                raise
            return False

    def run(self, most: int | None, jaxpr: Any = None) -> _Run:
        """Run the passes up to so many applications (None: all)."""
        found = _Run()

        def gate(number: int, step: str, rule: str) -> bool:
            if most is not None and number > most:
                return False
            found.allowed.append((step, rule))
            return True

        options = self.options
        target = get_target(options.target)
        manager = PassManager(options.pipeline, target, options.level, strict=True, gate=gate)
        try:
            with without_reproducers():
                found.graph, found.report = manager.run(self.jaxpr if jaxpr is None else jaxpr, self.name)
        except LeptonError as error:
            found.error = error
        return found

    def culprit(self, number: int, total: int) -> Culprit:
        """What application `number` is and does."""
        before, after = self.run(number - 1), self.run(number)
        step, rule = after.allowed[-1]
        op, where = "an operation", "unknown"
        if after.report is not None and len(after.report.applications) >= number:
            record = after.report.applications[number - 1]
            op, where = record.op, record.where
        if before.graph is None or after.graph is None:
            diff = str(before.error or after.error)
        else:
            diff = difference(before.graph.to_text(), after.graph.to_text())
        return Culprit(step, rule, number, total, op, where, diff)


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lepton bisect`."""
    parser.add_argument("function", metavar="module:function", help="the function that goes wrong")
    parser.add_argument(
        "--args",
        required=True,
        metavar="module:make_args",
        help="a function that makes its arguments, a tuple",
    )
    parser.add_argument(
        "--check",
        metavar="module:check",
        help="a function that is given a function and says whether it is fine (default: compare results)",
    )
    parser.add_argument("--passes", default="default", help="the pipeline (default: default)")
    parser.add_argument("--level", default="reassociate", help="the semantics level (default: reassociate)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="how far results may be off, relative to the largest"
    )


def bisect_command(args: argparse.Namespace) -> int:
    """Bisect as `lepton bisect` does, and print the culprit.

    Returns:
        0 if there is one, else 1.
    """
    try:
        fun = _find(args.function)
        values = tuple(_find(args.args)())
        check = close_to(fun, values, args.tolerance) if args.check is None else _find(args.check)
        print(bisect(fun, *values, check=check, passes=args.passes, level=args.level))
    except (LeptonError, ImportError, ValueError) as error:
        print(f"lepton bisect: {error}", file=sys.stderr)
        return 1
    return 0


def _find(name: str) -> Callable[..., Any]:
    """The function that `module:function` names; modules of the working directory are found too.

    Raises:
        ValueError: it is not of that form, or the module has no such function.
    """
    module, _, path = name.partition(":")
    if not module or not path:
        raise ValueError(f"expected module:function, got {name!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module} has no {path}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{name} is not a function")
    return found  # type: ignore[no-any-return]


def close_to(fun: Callable[..., Any], args: tuple[Any, ...], tolerance: float) -> Check:
    """A check that compares results with those of `fun` under `jax.jit`.

    Args:
        tolerance: how far floats may be off, relative to the largest of an array; for small
            floats at least four units in the last place. All else has to be equal.
    """
    want = jax.tree.map(_plain, jax.jit(fun)(*args))

    def check(optimised: Callable[..., Any]) -> bool:
        got = jax.tree.map(_plain, optimised(*args))
        same = jax.tree.map(lambda a, b: _is_close(a, b, tolerance), want, got)
        return all(jax.tree.leaves(same))

    return check


def _plain(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if _jax.is_extended(x.dtype) else x)


def _is_close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return bool((a == b).all())
    wide = np.complex128 if jnp.issubdtype(a.dtype, jnp.complexfloating) else np.float64
    allowed = max(tolerance, 4 * float(jnp.finfo(a.dtype).eps))
    x, y = a.astype(wide), b.astype(wide)
    largest = np.abs(x[np.isfinite(x)]).max(initial=0.0)
    return bool(np.allclose(x, y, 0, allowed * largest, equal_nan=True))
