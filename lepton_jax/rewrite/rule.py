"""Rules: what a rewrite is called, when it holds, and what it does.

`@node_rule` is a Python function that looks at one node and its facts. `@rule` is a pair of
JAX functions, pattern and replacement. Both give a `Rule`, which the driver runs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lepton_jax.ir.graph import Node, Value
from lepton_jax.rewrite import matcher, profit
from lepton_jax.rewrite.context import Level, PassContext
from lepton_jax.rewrite.replacement import Rewrite, rewrite

ALL_BACKENDS: Final = frozenset({"cpu", "gpu", "tpu"})

Outcome = Value | Rewrite | None
"""What a rule makes of a node: an existing value to read instead, a traced function, or nothing."""

Given = Callable[[Node], bool]
"""A cheap condition on a node. Rules that share one stand together: it is asked once for all of them."""

Guard = Callable[[Node, PassContext], str | None]
"""Says why a rule does not pay here, or None when it does."""


@dataclass(frozen=True, eq=False)
class Rule:
    """One rewrite rule.

    Attributes:
        name: unique within its pass; what reports and bisection call it.
        ops: gives the operations that it can start from (asked late: nothing is traced on import).
        apply: makes the outcome for a node.
        level: its semantics level: `exact`, `reassociate` or `approximate`.
        backends: where it pays.
        given: what must hold of a node before it is tried, or None.
        guard: why it does not pay at a node, or None.
        must_pay: whether it fires only where the cost model says that it saves time (see `profit`).
        needs_static: whether it steps aside for symbolic shapes.
        doc: what it does, before and after.
        where: file and line of its definition.
    """

    name: str
    ops: Callable[[], frozenset[str]]
    apply: Callable[[Node, PassContext], Outcome]
    level: Level = "exact"
    backends: frozenset[str] = ALL_BACKENDS
    given: Given | None = None
    guard: Guard | None = None
    must_pay: bool = False
    needs_static: bool = True
    doc: str = ""
    where: str = ""

    def steps_aside(self, node: Node) -> bool:
        """Whether the node has symbolic shapes, and the rule needs static ones."""
        return self.needs_static and not _is_static(node)

    def pays(self, outcome: Outcome, node: Node, ctx: PassContext) -> bool:
        """Whether the rule's guard and its cost allow an outcome; why not goes to `ctx`."""
        reason = None if self.guard is None else self.guard(node, ctx)
        if reason is None and self.must_pay and outcome is not None:
            reason = profit.why_not(outcome, node, ctx)
        if reason is not None:
            ctx.miss(self.name, node, reason)
        return reason is None

    def is_enabled(self, ctx: PassContext, level: Level | None) -> bool:
        """Whether its level and its backends allow it in this run."""
        return ctx.allows(self.level, level) and ctx.rates.platform in self.backends


def _is_static(node: Node) -> bool:
    return all(v.is_static for v in node.operands) and all(v.is_static for v in node.results)


def _where(fun: Callable[..., Any]) -> str:
    code = inspect.unwrap(fun).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def node_rule(
    *ops: str,
    level: Level = "exact",
    backends: Iterable[str] = ALL_BACKENDS,
    given: Given | None = None,
    guard: Guard | None = None,
    must_pay: bool = False,
    needs_static: bool = True,
) -> Callable[[Callable[[Node, PassContext], Outcome]], Rule]:
    """Make a rule of a function that takes a node and the context.

    The function returns a `Value` to read instead of the node's result, a traced
    replacement made with `rewrite(fun, *values, **static)`, or None. Its name, with dashes, is
    the rule's; its docstring gives before and after.

    Example:
        >>> @node_rule("neg")
        ... def neg_of_neg(node, ctx):
        ...     '''-(-x) → x'''
        ...     inner = node.operands[0].node
        ...     return inner.operands[0] if inner is not None and inner.op == "neg" else None
        >>> neg_of_neg.name
        'neg-of-neg'
    """

    def make(fun: Callable[[Node, PassContext], Outcome]) -> Rule:
        return Rule(
            name=fun.__name__.replace("_", "-"),
            ops=lambda: frozenset(ops),
            apply=fun,
            level=level,
            backends=frozenset(backends),
            given=given,
            guard=guard,
            must_pay=must_pay,
            needs_static=needs_static,
            doc=inspect.getdoc(fun) or "",
            where=_where(fun),
        )

    return make


@dataclass(eq=False)
class PatternRule:
    """A rule being written as two JAX functions; see `rule`."""

    pattern: Callable[..., Any]
    examples: Callable[[], Sequence[Sequence[Any]]]
    attributes: Mapping[str, Any]
    options: Sequence[Mapping[str, Any]]
    level: Level
    backends: frozenset[str]
    guard: Guard | None
    must_pay: bool
    single_use: bool
    _condition: Callable[[matcher.Match], str | None] | None = field(default=None, init=False)

    def where(self, condition: Callable[[matcher.Match], str | None]) -> PatternRule:
        """A condition on a match: the reason why the rule must not fire, or None."""
        self._condition = condition
        return self

    def replacement(self, fun: Callable[..., Any]) -> Rule:
        """The JAX function that replaces the pattern: same parameters, same result."""
        name = self.pattern.__name__.replace("_", "-")
        compiled = functools.cache(self._compile)

        def apply(node: Node, ctx: PassContext) -> Outcome:
            for template in compiled():
                match = self._match(template, node, ctx, name)
                if match is not None:
                    return rewrite(fun, *match.values.values(), **match.static)
            return None

        return Rule(
            name=name,
            ops=lambda: frozenset(template.root.op for template in compiled()),
            apply=apply,
            level=self.level,
            backends=self.backends,
            guard=self.guard,
            must_pay=self.must_pay,
            doc=inspect.getdoc(self.pattern) or "",
            where=_where(self.pattern),
        )

    def _compile(self) -> list[matcher.Template]:
        return [
            matcher.compile_template(self.pattern, example, self.attributes, options)
            for options in self.options
            for example in self.examples()
        ]

    def _match(
        self, template: matcher.Template, node: Node, ctx: PassContext, name: str
    ) -> matcher.Match | None:
        match = matcher.match(template, node)
        if isinstance(match, str):
            if match:
                ctx.miss(name, node, match)
            return None
        reason = self._why_not(match)
        if reason is not None:
            ctx.miss(name, node, reason)
            return None
        return match

    def _why_not(self, match: matcher.Match) -> str | None:
        if self.single_use and (shared := match.shared_interior()) is not None:
            return f"the {shared.op} in it is also read elsewhere"
        return None if self._condition is None else self._condition(match)


def rule(
    examples: Callable[[], Sequence[Sequence[Any]]],
    *,
    attributes: Mapping[str, Any] | None = None,
    options: Sequence[Mapping[str, Any]] = ({},),
    level: Level = "exact",
    backends: Iterable[str] = ALL_BACKENDS,
    guard: Guard | None = None,
    must_pay: bool = False,
    single_use: bool = True,
) -> Callable[[Callable[..., Any]], PatternRule]:
    """Write a rule as two JAX functions.

    The pattern is traced at the example shapes to find out which operations it is made of.
    Where a program has these operations, the pattern is traced again at the program's own
    shapes, dtypes and attributes, and the rule fires only if that is exactly what the
    program says.

    Args:
        examples: makes example arguments for the pattern (`jax.ShapeDtypeStruct`s), one
            sequence for each form in which the pattern may appear.
        attributes: keyword arguments that stand for parameters of operations, such as a
            permutation, with example values that differ from one another. In a match
            they have the program's values.
        options: alternatives: sets of further keyword arguments, tried in turn.
        level: its semantics level.
        backends: where it pays.
        guard: why it does not pay at a node, or None.
        must_pay: whether it fires only where the cost model says that it saves time.
        single_use: whether inner values of the pattern may not be read from outside.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> @rule(lambda: [[jax.ShapeDtypeStruct((2, 3), jnp.float32)]], level="reassociate")
        ... def log_of_exp(x):
        ...     '''log(exp(x)) → x'''
        ...     return jnp.log(jnp.exp(x))
        >>> @log_of_exp.replacement
        ... def log_of_exp(x):
        ...     return x
        >>> log_of_exp.name
        'log-of-exp'
    """

    def make(pattern: Callable[..., Any]) -> PatternRule:
        return PatternRule(
            pattern,
            examples,
            attributes or {},
            options,
            level,
            frozenset(backends),
            guard,
            must_pay,
            single_use,
        )

    return make
