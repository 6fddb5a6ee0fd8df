"""Which single rewrite breaks a program: bisection over the applications of rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from lepton_jax._options import Options, StaticArguments, make_options
from lepton_jax._stage import dynamic_leaves, trace_call
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
        number: it was the so-manieth application, from 1.
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
    options = make_options(passes, level, target, None, None, None, None, None, False, True, False)
    search = _Search(fun, args, check, options)
    if not search.is_fine(0, reraise=True):
        raise BisectError("the function itself fails the check, with no rule applied")
    total = search.count()
    if search.is_fine(None):
        raise BisectError(f"the check passes with all {total} applications of {passes!r}")
    good, bad = 0, total
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if search.is_fine(middle) else (good, middle)
    return search.culprit(bad, total)


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
            graph, _ = self.manager(most).run(jaxpr, self.name)
            results = evaluate(graph, dynamic_leaves(self.static, args, kwargs))
            return jax.tree.unflatten(tree, results)

        limited.__name__ = limited.__qualname__ = self.name
        return jax.jit(limited)

    def manager(self, most: int | None) -> PassManager:
        """A strict manager that allows so many applications."""

        def gate(number: int, step: str, rule: str) -> bool:
            return most is None or number <= most

        options = self.options
        return PassManager(
            options.pipeline, get_target(options.target), options.level, strict=True, gate=gate
        )

    def is_fine(self, most: int | None, reraise: bool = False) -> bool:
        """Whether the check passes with so many applications."""
        try:
            with without_reproducers():
                return bool(self.check(self.optimised(most)))
        except Exception:
            if reraise:
                raise
            return False

    def run(self, most: int | None) -> tuple[Graph, Report, list[tuple[str, str]]]:
        """The graph and the report after so many applications, and the passes and rules that were allowed."""
        allowed: list[tuple[str, str]] = []

        def gate(number: int, step: str, rule: str) -> bool:
            if most is not None and number > most:
                return False
            allowed.append((step, rule))
            return True

        manager = self.manager(most)
        manager.gate = gate
        with without_reproducers():
            graph, report = manager.run(self.jaxpr, self.name)
        return graph, report, allowed

    def count(self) -> int:
        """How many applications there are; up to the failing one, if a pass fails."""
        reached = 0

        def gate(number: int, step: str, rule: str) -> bool:
            nonlocal reached
            reached = number
            return True

        manager = self.manager(None)
        manager.gate = gate
        try:
            with without_reproducers():
                manager.run(self.jaxpr, self.name)
        except LeptonError:
            pass
        return reached

    def culprit(self, number: int, total: int) -> Culprit:
        """What application `number` is and does."""
        before, _, _ = self.run(number - 1)
        try:
            after, report, allowed = self.run(number)
        except LeptonError:
            ...
        raise NotImplementedError
