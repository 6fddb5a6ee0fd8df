"""Running rules over a graph: one sweep, or a worklist until nothing fires."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from lepton_jax.ir.cost import node_cost
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.rewrite.context import Level, PassContext
from lepton_jax.rewrite.errors import RewriteLoop
from lepton_jax.rewrite.replacement import Rewrite, write
from lepton_jax.rewrite.rule import Given, Outcome, Rule

_DEEPEST: Final = 64
"""So many rules may build on one another's result before they are taken to fight."""

_REACH: Final = 8
"""A rule looks at most so many nodes up from the one that it starts from."""

_FEW: Final = 4
"""Readers of a value that has lost one are looked at again if there are at most so many."""


def run_rules(
    graph: Graph,
    rules: Sequence[Rule],
    ctx: PassContext,
    *,
    level: Level | None = None,
    fixpoint: bool = True,
    budget: int | None = None,
    since: int = 0,
) -> int:
    """Apply rules to a graph and its regions.

    Args:
        rules: tried on a node in this order; the first that applies wins.
        level: a tighter limit than the context's on the rules' semantics level.
        fixpoint: look again at whatever a rewrite has changed, until nothing fires;
            otherwise look at each node once.
        budget: the most rewrites (default: 20 for each node, and 1,000).
        since: the version of the graph when these rules last ran: only what is near to later changes
            is looked at.

    Returns:
        How many rules fired.

    Raises:
        RewriteLoop: rules undo each other's work; the message names the last two.
    """
    return _Driver(graph, rules, ctx, level, fixpoint, budget, since).run()


class _Driver:
    def __init__(
        self,
        graph: Graph,
        rules: Sequence[Rule],
        ctx: PassContext,
        level: Level | None,
        fixpoint: bool,
        budget: int | None,
        since: int,
    ) -> None:
        self.ctx = ctx
        self.fixpoint = fixpoint
        self.table = _table(tuple(rule for rule in rules if rule.is_enabled(ctx, level)))
        nodes, by_op = ctx.analyses.get(_by_operation, graph)
        self.budget = 20 * len(nodes) + 1000 if budget is None else budget
        if since:
            self.queue = deque(node for node in _near_changes(nodes, since) if node.op in self.table)
        else:
            places = sorted(place for op in self.table for place in by_op.get(op, ()))
            self.queue = deque(nodes[place] for place in places)
        self.queued = set(self.queue)
        self.fired = 0

    def run(self) -> int:
        while self.queue:
            node = self.queue.popleft()
            self.queued.discard(node)
            if node.alive and not node.is_dead:
                self.visit(node)
        return self.fired

    def visit(self, node: Node) -> None:
        ctx = self.ctx
        for given, rules in self.table[node.op]:
            if given is not None and not given(node):
                continue
            for rule in rules:
                if not ctx.is_static and rule.steps_aside(node):
                    continue
                outcome = rule.apply(node, ctx)
                if outcome is None or outcome is node.results[0] or not rule.pays(outcome, node, ctx):
                    continue
                if ctx.fire(rule.name, node):
                    self.apply(rule, node, outcome)
                    return

    def apply(self, rule: Rule, node: Node, outcome: Outcome) -> None:
        self.fired += 1
        self.guard(rule, node)
        users = [user for value in node.results for user in value.users()]
        if isinstance(outcome, Rewrite):
            fresh = write(outcome, node, rule.name)
        else:
            assert isinstance(outcome, Value)
            node.result.replace_uses(outcome)
            fresh = []
        gone = erase_dead(node)
        record = self.ctx.applications[-1] if self.ctx.explain and self.ctx.applications else None
        if record is not None and record.rule == rule.name:
            record.saving = sum(self.cost(n) for n in gone) - sum(self.cost(n) for n in fresh if n.alive)
        if self.fixpoint:
            self.push(fresh)
            self.push(n for region_node in fresh for region in region_node.regions for n in region.walk())
            self.push(users)
            self.push(near for old in gone for near in _neighbours(old))

    def cost(self, node: Node) -> float:
        return self.ctx.seconds(node_cost(node))

    def push(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.op in self.table and node not in self.queued and node.alive:
                self.queued.add(node)
                self.queue.append(node)

    def guard(self, rule: Rule, node: Node) -> None:
        """Stop rules that never end."""
        chain = node.rule
        if chain is not None and chain.depth >= _DEEPEST:
            others: list[str] = []
            while chain is not None and len(others) < _DEEPEST:
                others.append(chain.rule)
                chain = chain.before
            names = sorted({*others[:8], rule.name})
            raise RewriteLoop(f"rules undo each other's work without end: {' and '.join(names)}")
        if self.fired > self.budget:
            raise RewriteLoop(
                f"more than {self.budget} rewrites; the last were {rule.name}"
                + (f" and {node.rule.rule}" if node.rule else "")
            )


def _by_operation(graph: Graph) -> tuple[list[Node], dict[str, list[int]]]:
    """All nodes in order, and the places of those of each operation."""
    nodes = graph.nodes()
    by_op: dict[str, list[int]] = {}
    for place, node in enumerate(nodes):
        by_op.setdefault(node.op, []).append(place)
    return nodes, by_op


_Groups = list[tuple[Given | None, list[Rule]]]


@functools.lru_cache(maxsize=256)
def _table(rules: tuple[Rule, ...]) -> dict[str, _Groups]:
    """The rules for each operation, neighbours that are given the same together."""
    by_op: dict[str, list[Rule]] = {}
    for rule in rules:
        for op in rule.ops():
            by_op.setdefault(op, []).append(rule)
    return {
        op: [(given, list(group)) for given, group in itertools.groupby(found, key=lambda rule: rule.given)]
        for op, found in by_op.items()
    }


def _near_changes(nodes: Sequence[Node], since: int) -> list[Node]:
    """The nodes, in order, that changed after a version, and those near by that read or feed them.

    What reads the inputs of a region is near the node that runs it.
    """
    ring = {n for n in nodes if n.changed > since or any(r.total_version() > since for r in n.regions)}
    near = ring | {value.node for node in ring for value in node.operands if value.node is not None}
    ring |= {user for node in ring if node.changed > since for user in _readers_inside(node)}
    near |= ring
    for _ in range(_REACH):
        ring = {user for node in ring for value in node.results for user, _ in value.uses} - near
        near |= ring
    return [node for node in nodes if node in near]


def _readers_inside(node: Node) -> Iterator[Node]:
    """The nodes that read the inputs of a node's regions."""
    return (user for region in node.regions for value in region.inputs for user, _ in value.uses)


def _neighbours(gone: Node) -> list[Node]:
    """The nodes that made or read what an erased node read: one reader fewer may let a rule fire."""
    found = []
    for value in gone.operands:
        if value.node is not None:
            found.append(value.node)
        if len(value.uses) <= _FEW:
            found += value.users()
    return found


def erase_dead(node: Node) -> list[Node]:
    """Erase a node if nobody reads it, then those that only it read, and so on.

    Returns:
        The erased nodes.
    """
    gone: list[Node] = []
    stack = [node]
    while stack:
        candidate = stack.pop()
        if not candidate.alive or not candidate.is_dead or candidate.graph is None:
            continue
        producers = [value.node for value in candidate.operands if value.node is not None]
        candidate.graph.erase(candidate)
        gone.append(candidate)
        stack += producers
    return gone
