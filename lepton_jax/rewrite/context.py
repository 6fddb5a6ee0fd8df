"""What a pass knows while it runs, and the one gate that every change goes through."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import jax

from lepton_jax.ir import _jax
from lepton_jax.ir.analyses import Analyses
from lepton_jax.ir.cost import Cost, Rates, seconds
from lepton_jax.ir.graph import Graph, Node, Value

Level = Literal["exact", "reassociate", "approximate"]

LEVELS: Final[tuple[Level, ...]] = ("exact", "reassociate", "approximate")

_MOST_RECORDS: Final = 10_000


@dataclass(slots=True)
class Application:
    """One change that a pass made.

    Attributes:
        rule: the rule's name.
        op: the operation that it was applied to.
        source: where that operation comes from, as JAX knows it.
        saving: estimated seconds saved on the target, 0 where nothing is estimated.
    """

    rule: str
    op: str
    source: Any
    saving: float = 0.0

    @property
    def where(self) -> str:
        """The user's file and line."""
        return _jax.summarize(self.source)


@dataclass(slots=True)
class Miss:
    """A rule that nearly fired: what it was tried on and the first condition that failed."""

    rule: str
    op: str
    source: Any
    reason: str

    @property
    def where(self) -> str:
        """The user's file and line."""
        return _jax.summarize(self.source)


UNREAD: Final = "no product, convolution or gather of rows reads it"
"""Why nothing was done to a parameter that is no weight."""


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the program that a compression pass has looked at: what it did there, or why nothing.

    Attributes:
        name: the paths of the parameters there, or where none are known the scope.
        op: the operation.
        done: what was done, empty where nothing was.
        reason: why nothing was done, or what else there is to know.
        params: the positions of the parameters there.
        source: where the operation comes from, as JAX knows it.
        by: the name of the pass.
    """

    name: str
    op: str = ""
    done: str = ""
    reason: str = ""
    params: frozenset[int] = frozenset()
    source: Any = None
    by: str = ""

    @property
    def where(self) -> str:
        """The user's file and line."""
        return _jax.summarize(self.source)


@dataclass(frozen=True, slots=True)
class Watch:
    """What a pass has put into the program to be seen in calibration: more outputs of the graph.

    Attributes:
        name: of the site.
        kind: what is seen there.
        observer: merges states and makes sense of them.
        tree: the structure of the state.
        count: how many outputs it takes.
        loops: how many leading axes run over the loops that the site stands in.
        saw: whether anything was seen, of a site in a branch that need not be taken; None: it must be.
    """

    name: str
    kind: str
    observer: Any
    tree: Any
    count: int
    loops: int
    saw: Callable[[Any], bool] | None = None


def over_loops(fun: Callable[..., Any], loops: int) -> Callable[..., Any]:
    """A function of arrays, for arrays that are stacked over so many loops, as `Watch.loops` says."""
    return functools.reduce(lambda inner, _: jax.vmap(inner), range(loops), fun)


@dataclass
class PassContext:
    """The state of one run of a pipeline.

    Attributes:
        rates: what the target is good at.
        level: the loosest semantics level that rules may have.
        gate: asked before each change with (running number, pass, rule); False forbids
            the change. Bisection counts with it.
        explain: whether misses are recorded.
        analyses: cached analyses of the graph at hand.
        counts: how often each rule fired in the pass at hand.
        applications: what was changed, in order (the first ten thousand).
        misses: what nearly fired.
        sites: what compression passes did to weights, and what they left alone.
        watches: what passes have put in to be seen, in the order of the graph's last outputs; None unless
            the program is traced for calibration.
        calibration: what was seen, by the name of the site and the kind; arrays, or only their shapes where
            the parameters have been prepared already.
        seen: what passes have taken from `calibration`, in the order of the graph's last inputs.
        is_bound: whether the program is to be cut into `prepare` and `apply`, rather than run in line.
        turned: for each floating-point weight that `products` might turn, whether it did: `y` or `n`.
        notes: what the user should know whether or not anybody asks, for the report.
        is_static: whether no shape in the program is symbolic.
        params: which inputs of the graph are parameters, by position.
        paths: where each input stands among the caller's arguments, as `params/dense/kernel`; empty where
            nobody said which are parameters.
        settled: the version of the graph that each pass left when it last ran.
        version: the version of the graph after the last pass.
    """

    rates: Rates
    level: Level = "reassociate"
    gate: Callable[[int, str, str], bool] | None = None
    explain: bool = False
    analyses: Analyses = field(default_factory=Analyses)
    counts: Counter[str] = field(default_factory=Counter)
    applications: list[Application] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    watches: list[Watch] | None = None
    calibration: Mapping[tuple[str, str], tuple[Any, ...]] = field(default_factory=dict)
    seen: list[Any] = field(default_factory=list)
    is_bound: bool = False
    turned: str = ""
    is_static: bool = False
    params: frozenset[int] = frozenset()
    paths: tuple[str, ...] = ()
    settled: dict[Any, int] = field(default_factory=dict)
    version: int = 0
    current_pass: str = ""
    fired: int = 0

    def allows(self, level: Level, limit: Level | None = None) -> bool:
        """Whether rules of this semantics level may fire; a pass may have a tighter limit of its own."""
        loosest = LEVELS.index(self.level)
        if limit is not None:
            loosest = min(loosest, LEVELS.index(limit))
        return LEVELS.index(level) <= loosest

    def fire(self, rule: str, node: Node, saving: float = 0.0) -> bool:
        """Ask to make one change; True counts and records it, and the caller must then make it."""
        self.fired += 1
        if self.gate is not None and not self.gate(self.fired, self.current_pass, rule):
            return False
        self.counts[rule] += 1
        if len(self.applications) < _MOST_RECORDS:
            self.applications.append(Application(rule, node.op, node.source, saving))
        return True

    def miss(self, rule: str, node: Node, reason: str) -> None:
        """Record that a rule nearly fired, when somebody wants to know."""
        if self.explain and len(self.misses) < _MOST_RECORDS:
            self.misses.append(Miss(rule, node.op, node.source, reason))

    def note(self, text: str) -> None:
        """Tell the user something in the report, such as a limit that was reached; the same only once."""
        note = f"{self.current_pass}: {text}"
        if note not in self.notes:
            self.notes.append(note)

    def add_input(self, graph: Graph, array: Any, path: str) -> Value:
        """Let the program read an array that calibration has found: one more input, early as they are."""
        value = graph.add_input(jax.typeof(jax.ShapeDtypeStruct(array.shape, array.dtype)))
        self.params |= {value.index}
        self.paths = (*self.paths, path)
        self.seen.append(array)
        return value

    def seconds(self, cost: Cost) -> float:
        """The estimated time of a cost on the target."""
        return seconds(cost, self.rates)
