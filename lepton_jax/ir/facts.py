"""What is known about values: `facts_of`.

Facts hold whatever the inputs of the program are, and for as long as a value lives: a
rewrite may replace a value by another that holds the same, it never changes what a value
holds. So they are found out once, on demand, and kept on the value; `renew` finds out more
where more is known of a replacement.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import reduce
from typing import Final, TypeAlias

from lepton_jax.ir._facts import arithmetic as _arithmetic
from lepton_jax.ir._facts import functions as _functions
from lepton_jax.ir._facts import indexing as _indexing
from lepton_jax.ir._facts import logic as _logic
from lepton_jax.ir._facts import movement as _movement
from lepton_jax.ir._facts import reductions as _reductions
from lepton_jax.ir._facts import selection as _selection
from lepton_jax.ir._facts.closing import close, of_aval, with_axis, without_axis
from lepton_jax.ir._facts.contents import of_array as of_array
from lepton_jax.ir._facts.contents import of_constant
from lepton_jax.ir._facts.lattice import CONSTANT_LIMIT as CONSTANT_LIMIT
from lepton_jax.ir._facts.lattice import UNKNOWN, meet, says_more
from lepton_jax.ir._facts.lattice import Band as Band
from lepton_jax.ir._facts.lattice import Facts as Facts
from lepton_jax.ir._facts.registry import TRANSFERS
from lepton_jax.ir.graph import RETURN, Graph, Node, Value
from lepton_jax.ir.regions import Slot, slots

# Importing them has filled the table of transfer functions.
_TABLES: Final = (_arithmetic, _functions, _indexing, _logic, _movement, _reductions, _selection)

_Owner: TypeAlias = Node | Graph
"""What defines a value: its node, or the graph whose input it is."""


def facts_of(value: Value) -> Facts:
    """What is known about a value.

    Finds out what it needs about the values that it is made of, without recursion; each
    value is looked at once in its life. Inside a region, inputs have the facts that hold
    for every node that runs the region.

    Example:
        >>> import jax.numpy as jnp
        >>> from lepton_jax.ir import trace
        >>> graph = trace(lambda x: jnp.tril(x) + jnp.eye(3), jnp.ones((3, 3)))
        >>> facts_of(graph.outputs[0]).lower
        True
    """
    if value.facts is None:
        _settle(value)
    assert value.facts is not None
    return value.facts


def renew(graph: Graph) -> None:
    """Find out anew what follows from values of which more is known than of those that they have replaced.

    Nodes that read a value of which more is known now count as changed.
    """
    for inner in graph.graphs():
        replaced, inner.replaced = inner.replaced, {}
        for old, new in replaced.items():
            while new in replaced:
                new = replaced[new]
            if old.facts is not None and new.uses and says_more(facts_of(new), old.facts):
                _renew_behind(new)


def _renew_behind(value: Value) -> None:
    """Find out anew what follows from a value, as far as more is known, and a few times at the most."""
    queue, left = [value], defaultdict[Value, int](lambda: _MOST_TIMES)
    for value in queue:
        for node in value.users():
            node.touch()
            for dependent in _dependents(node, value):
                before, dependent.facts = dependent.facts, None
                if before is None:
                    continue
                if not says_more(facts_of(dependent), before):
                    dependent.facts = before
                elif left[dependent]:
                    left[dependent] -= 1
                    queue.append(dependent)


def _dependents(node: Node, value: Value) -> list[Value]:
    """The values whose facts follow from those of a value that a node reads."""
    if node.op == RETURN:
        return [] if node.graph is None else [v for parent in node.graph.parents for v in parent.results]
    if not node.regions:
        return node.results
    fed = [s for s in slots(node) if s.operand is not None and node.operands[s.operand] is value]
    return [*(node.regions[r].inputs[i] for s in fed for r, i in s.inputs), *node.results]


_MOVES: Final = frozenset(
    {"broadcast_in_dim", "convert_element_type", "copy", "reshape", "rev", "slice", "squeeze", "transpose"}
)
_FURTHEST: Final = 4
_MOST_TIMES: Final = 4


def number_facts(value: Value) -> Facts:
    """The facts of a value that may be one number; nothing of any other, to save the time of finding out.

    A number is a constant, a constant moved about, or an input of a region; what arithmetic
    makes of numbers is a number only after folding.
    """
    if value.node is not None and value.node.op not in _MOVES:  # most values
        return UNKNOWN
    here = value
    for _ in range(_FURTHEST):
        if here.is_const:
            return facts_of(value)
        if here.node is None:
            fed = _fed_by(here)
            if fed is None:
                return UNKNOWN
            here = fed
        elif here.node.op in _MOVES:
            here = here.node.operands[0]
        else:
            return UNKNOWN
    return UNKNOWN


def _fed_by(value: Value) -> Value | None:
    """The operand that an input of a region is, or starts from; None where it is not that simple."""
    parents = [] if value.graph is None else value.graph.parents
    if len(parents) != 1 or parents[0].op == "while":
        return None
    place = value.index + (parents[0].op == "cond")
    return parents[0].operands[place] if place < len(parents[0].operands) else None


def _settle(value: Value) -> None:
    """Find out the facts of a value, those of its sources first."""
    owner = _owner(value)
    if owner is None:
        value.facts = of_constant(value) if value.is_const else of_aval(value.aval)
        return
    if isinstance(owner, Node) and not owner.regions and not any(_unsettled(v) for v in owner.operands):
        _conclude_node(owner)  # the common case
        return
    active: set[_Owner] = {owner}
    stack: list[tuple[_Owner, Iterator[Value]]] = [(owner, _sources(owner))]
    while stack:
        current, sources = stack[-1]
        pushed = False
        for source in sources:
            if source.facts is not None:
                continue
            above = _owner(source)
            if above is None:
                source.facts = of_constant(source) if source.is_const else of_aval(source.aval)
            elif above not in active:
                # A shared region may be fed by its own result: then less is known, never more.
                active.add(above)
                stack.append((above, _sources(above)))
                pushed = True
                break
        if pushed:
            continue
        stack.pop()
        _conclude(current)
    if value.facts is None:
        value.facts = of_aval(value.aval)


def _unsettled(value: Value) -> bool:
    """Whether a value's facts are not known; those of constants are found out at once."""
    if value.facts is None and value.is_const:
        value.facts = of_constant(value)
    return value.facts is None


def _owner(value: Value) -> _Owner | None:
    if value.is_const:
        return None
    return value.node if value.node is not None else value.graph


def _known(value: Value) -> Facts:
    """The facts of a source; those of its shape and dtype where it depends on what asks."""
    return of_aval(value.aval) if value.facts is None else value.facts


def _assign(value: Value, facts: Facts) -> None:
    if value.facts is None:
        value.facts = facts


# Where the facts of an owner's values come from


def _sources(owner: _Owner) -> Iterator[Value]:
    if isinstance(owner, Graph):
        return iter(dict.fromkeys(_feeding(owner)))
    if owner.regions:
        return iter([*owner.operands, *(v for region in owner.regions for v in region.outputs)])
    return iter(owner.operands if owner.op in TRANSFERS else ())


def _feeding(graph: Graph) -> Iterator[Value]:
    for parent in graph.parents:
        for slot in slots(parent):
            if slot.operand is not None and any(parent.regions[r] is graph for r, _ in slot.inputs):
                yield parent.operands[slot.operand]


def _conclude(owner: _Owner) -> None:
    if isinstance(owner, Graph):
        _conclude_inputs(owner)
    elif owner.regions:
        _conclude_regions(owner)
    else:
        _conclude_node(owner)


_ONE: Final = frozenset({"neg", "reduce_sum"})
_TWO: Final = frozenset({"add", "add_any", "div", "mul", "sub"})


def _comes_of_nothing(node: Node) -> bool:
    """Whether it is plain that nothing is known of the result, since nothing is known of the operands."""
    if node.op in _ONE:
        return node.operands[0].facts is UNKNOWN
    if node.op not in _TWO:
        return False
    a, b = node.operands
    if a is b or a.facts is not UNKNOWN or b.facts is not UNKNOWN or a.shape != b.shape:
        return False
    return a.op != "transpose" and b.op != "transpose"


def _conclude_node(node: Node) -> None:
    if _comes_of_nothing(node):
        _assign(node.results[0], of_aval(node.results[0].aval))
        return
    transfer = TRANSFERS.get(node.op)
    claims = [] if transfer is None else transfer(node, [_known(v) for v in node.operands])
    for value, claim in zip(node.results, claims, strict=False):
        _assign(value, close(value.aval, claim))
    for value in node.results[len(claims) :]:
        _assign(value, of_aval(value.aval))


def _conclude_inputs(graph: Graph) -> None:
    """Inputs of a region: what holds for every node that runs it."""
    found: dict[Value, Facts] = {}
    for parent in graph.parents:
        for slot in slots(parent):
            for r, i in slot.inputs:
                if parent.regions[r] is graph:
                    value = graph.inputs[i]
                    facts = _input_facts(parent, slot, value)
                    found[value] = meet(found[value], facts) if value in found else facts
    for value in graph.inputs:
        _assign(value, found.get(value, of_aval(value.aval)))


def _input_facts(node: Node, slot: Slot, value: Value) -> Facts:
    if slot.operand is None:
        return of_aval(value.aval)
    operand = _known(node.operands[slot.operand])
    if slot.kind in ("constant", "argument") or (slot.kind == "carry" and _unchanged(node, slot)):
        return operand
    return without_axis(operand, value.aval) if slot.kind == "scanned" else of_aval(value.aval)


def _unchanged(node: Node, slot: Slot) -> bool:
    """Whether a loop hands a carry on as it is."""
    (r, out), (_, place) = slot.outputs[0], slot.inputs[-1]
    region = node.regions[r]
    return region.outputs[out] is region.inputs[place]


def _conclude_regions(node: Node) -> None:
    """Results of a node with regions."""
    for slot in slots(node):
        if slot.result is not None:
            value = node.results[slot.result]
            _assign(value, _result_facts(node, slot, value))


def _result_facts(node: Node, slot: Slot, value: Value) -> Facts:
    inner = [_known(node.regions[r].outputs[i]) for r, i in slot.outputs]
    if slot.kind == "result" and inner:
        return reduce(meet, inner)
    if slot.kind == "stacked":
        return with_axis(inner[0], value.aval)
    if slot.kind == "carry" and slot.operand is not None and _unchanged(node, slot):
        return _known(node.operands[slot.operand])
    return of_aval(value.aval)
