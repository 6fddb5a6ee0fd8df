"""Saturating an island with egglog, within limits."""

from __future__ import annotations

import importlib
import json
import time
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from lepton_jax.ir.facts import facts_of
from lepton_jax.passes.simplify._saturate.islands import Island, leaf_shape
from lepton_jax.passes.simplify._saturate.language import PROGRAM

_ROUND: Final = "(push) (run-schedule (run algebra) (saturate (run shapes))) (print-size)"


class ENode(NamedTuple):
    """An operation on classes of equal terms.

    Attributes:
        op: an operation of the language.
        children: the numbers of the classes that it is applied to.
        payload: the number of a leaf, or the number that a `Num` is; else None.
    """

    op: str
    children: tuple[int, ...]
    payload: int | float | None = None


@dataclass(frozen=True)
class EGraph:
    """Classes of equal terms.

    Attributes:
        classes: the operations in each, in an order that depends on nothing but the terms.
        roots: the classes of an island's outputs, in order.
        size: how many operations there are.
    """

    classes: tuple[tuple[ENode, ...], ...]
    roots: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Saturated:
    """What an island equals.

    Attributes:
        before: its terms as the program has them.
        after: those and all that the rules found.
        stopped: why the rules did not run to the end, or None.
    """

    before: EGraph
    after: EGraph
    stopped: str | None


def program(island: Island) -> str:
    """The island in egglog's language, rules left out; the same text for islands that are alike."""
    lines = []
    for i, (op, *parts) in enumerate(island.terms):
        if op in ("Leaf", "Num"):
            lines.append(f"(let $t{i} ({op} {parts[0]!r}))")
        else:
            lines.append(f"(let $t{i} ({op} {' '.join(f'$t{part}' for part in parts)}))")
        if op == "Leaf":
            value = island.leaves[parts[0]]
            rows, columns = leaf_shape(value, island.frame)
            lines += [f"(one-row $t{i})"] * (rows == 1) + [f"(one-column $t{i})"] * (columns == 1)
            if value.ndim == 2 and rows == columns and facts_of(value).identity:
                lines.append(f"(identity $t{i})")
    lines += [f"(let $o{i} (Output {i} $t{number}))" for i, (_, number) in enumerate(island.outputs)]
    return "\n".join(lines)


def saturate(text: str, nodes: int, deadline: float) -> Saturated:
    """Run the rules on an island until they find nothing new.

    Args:
        text: what `program` gives.
        nodes: at most so many operations; where a round of the rules makes more, it is taken back.
        deadline: when to stop, as `time.perf_counter` tells it.
    """
    bindings = importlib.import_module("egglog.bindings")  # an optional package

    egg = bindings.EGraph()

    def run(commands: str) -> list[Any]:
        return list(egg.run_program(*egg.parse_program(commands)))

    run(f"{PROGRAM}\n{text}\n(run-schedule (saturate (run shapes)))")
    before = _classes(egg.serialize([]).to_json())
    while True:
        if time.perf_counter() > deadline:
            return _stopped(before, egg, "the time is over")
        report, sizes = run(_ROUND)
        if sum(count for name, count in sizes.sizes if name[0].isupper()) > nodes:
            run("(pop)")
            return _stopped(before, egg, f"more than {nodes} operations")
        if not report.report.updated:
            return Saturated(before, _classes(egg.serialize([]).to_json()), None)


def _stopped(before: EGraph, egg: Any, reason: str) -> Saturated:
    return Saturated(before, _classes(egg.serialize([]).to_json()), reason)


def _classes(serialised: str) -> EGraph:
    """The classes of a serialised e-graph, numbered by the smallest term in each."""
    nodes: dict[str, dict[str, Any]] = json.loads(serialised)["nodes"]
    found: dict[str, list[tuple[str, tuple[str, ...], int | float | None]]] = {}
    outputs: dict[int, str] = {}
    for node in nodes.values():
        children, op = [nodes[child] for child in node["children"]], node["op"]
        if op == "Output":
            outputs[int(children[0]["op"])] = children[1]["eclass"]
        elif op in ("Leaf", "Num"):
            text = children[0]["op"]
            payload = int(text) if op == "Leaf" else float(text)
            found.setdefault(node["eclass"], []).append((op, (), payload))
        elif op[0].isupper() and not node["subsumed"]:
            kept = tuple(child["eclass"] for child in children)
            found.setdefault(node["eclass"], []).append((op, kept, None))
    smallest = _smallest(found)
    number = {name: i for i, name in enumerate(sorted(found, key=smallest.__getitem__))}
    classes = tuple(
        tuple(
            sorted(
                (
                    ENode(op, tuple(map(number.__getitem__, children)), payload)
                    for op, children, payload in found[name]
                ),
                key=lambda node: (node.op, node.children, node.payload or 0),
            )
        )
        for name in number
    )
    roots = tuple(number[outputs[i]] for i in range(len(outputs)))
    return EGraph(classes, roots, sum(map(len, classes)))


def _smallest(classes: dict[str, list[tuple[str, tuple[str, ...], Any]]]) -> dict[str, tuple[int, str]]:
    """For each class its smallest term, as size and text."""
    best: dict[str, tuple[int, str]] = {}
    changed = True
    while changed:
        changed = False
        for name, nodes in classes.items():
            for op, children, payload in nodes:
                if not all(child in best for child in children):
                    continue
                parts = [best[child] for child in children]
                head = op if payload is None else f"{op}{payload!r}"
                text = f"({' '.join((head, *(part[1] for part in parts)))})"
                term = (1 + sum(part[0] for part in parts), text)
                if name not in best or term < best[name]:
                    best[name], changed = term, True
    return best
