"""Which inputs of a program come back as outputs, and what they change on the way."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.ir.regions import slots


@dataclass(frozen=True)
class Carried:
    """Inputs that come back, and of each output which inputs it depends on.

    Attributes:
        inputs: how many there are.
        returned: of inputs that come back, by position, the position of the output.
        needs: of each output, the inputs that it depends on, as the bits of a number.
        arguments: of each input, its argument.
        whole: whether all inputs come out again, as those of a function of Flax NNX's modules do; `returned`
            then has those arguments that change.
    """

    inputs: int
    returned: dict[int, int]
    needs: tuple[int, ...]
    arguments: tuple[str, ...]
    whole: bool = False

    @property
    def is_step(self) -> bool:
        """Whether it is a step of training, or a gradient: its first argument comes back."""
        return 0 in self.returned or (self.whole and bool(self.returned))

    @cached_property
    def changes(self) -> dict[int, frozenset[int]]:
        """Of each input that comes back the inputs whose next values need it; -1 stands for other outputs."""
        back = {o: i for i, o in self.returned.items()}
        found: dict[int, set[int]] = {i: set() for i in self.returned}
        for output, needs in enumerate(self.needs):
            for i, kept in found.items():
                if needs >> i & 1:
                    kept.add(back.get(output, -1))
        return {i: frozenset(kept) for i, kept in found.items()}

    def params(self) -> set[int]:
        """What comes back and does more than to remember for the update of one other, or for nothing."""
        memory = {i for i, changed in self.changes.items() if changed <= {i}}
        for i in sorted(set(self.returned) - memory, reverse=True):
            others = self.changes[i] - {i}
            if len(others) == 1 and -1 not in others and not others & memory:
                memory.add(i)
        return set(self.returned) - memory

    def owner_of(self, position: int, params: Collection[int]) -> int | None:
        """The one parameter that an input changes, if it comes back and changes no other and nothing else."""
        others = self.changes.get(position, frozenset()) - {position}
        only = [i for i in others if i in params]
        return only[0] if len(only) == 1 and -1 not in others else None


def carried(graph: Graph, arguments: Sequence[str]) -> Carried:
    """What comes back.

    Args:
        arguments: of each input, its argument. An argument comes back whole: outputs have its shapes and
            dtypes in a row.
    """
    returned = _runs(graph, arguments)
    whole = len(returned) == len(graph.inputs)
    if whole:
        touched = {arguments[i] for i, o in returned.items() if graph.outputs[o] is not graph.inputs[i]}
        returned = {i: o for i, o in returned.items() if arguments[i] in touched}
    return Carried(len(graph.inputs), returned, _needs(graph), tuple(arguments), whole)


def _runs(graph: Graph, arguments: Sequence[str]) -> dict[int, int]:
    """Inputs and the outputs that are like them, whole arguments at a time, the longest rows first."""
    kinds = [_kind(value.aval) for value in graph.inputs]
    results = [_kind(value.aval) for value in graph.outputs]
    groups: list[list[int]] = []
    for i, argument in enumerate(arguments):
        if i and argument == arguments[i - 1]:
            groups[-1].append(i)
        else:
            groups.append([i])
    found: dict[int, int] = {}
    free_groups, free = set(range(len(groups))), [True] * len(results)
    while free_groups:
        best: tuple[int, int, int, int] = (0, 0, 0, 0)
        for first in sorted(free_groups):
            for start in range(len(results)):
                count, length = _matches(groups, free_groups, first, kinds, results, free, start)
                if length > best[0]:
                    best = (length, first, count, start)
        length, first, count, start = best
        if not length:
            break
        members = [i for group in groups[first : first + count] for i in group]
        if length == 1 and not _is_updated(graph.outputs[start], graph.inputs[members[0]]):  # alike by chance
            free_groups.discard(first)
            continue
        found.update((i, start + k) for k, i in enumerate(members))
        free_groups -= set(range(first, first + count))
        free[start : start + length] = [False] * length
    return found


_UPDATES: Final = frozenset(
    {"add", "add_any", "sub", "mul", "div", "neg", "select_n", "convert_element_type"}
)


_PRODUCTS: Final = frozenset({"dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"})
_FORMS: Final = frozenset(
    {"transpose", "reshape", "convert_element_type", "squeeze", "slice", "copy", "name"}
)


def _is_updated(output: Value, source: Value) -> bool:
    """Whether an output is an input with something added, element by element."""
    waiting, seen = [output], {output}
    while waiting:
        value = waiting.pop()
        if value is source:
            return True
        if value.node is not None and value.op in _UPDATES:
            fresh = [each for each in value.node.operands if each.shape == value.shape and each not in seen]
            seen.update(fresh)
            waiting += fresh
    return False


def is_multiplied(value: Value) -> bool:
    """Whether a product reads an array, as it is or in another form, in loops and branches too."""
    waiting, seen = [value], {value}
    while waiting:
        for node, place in waiting.pop().uses:
            if node.op in _PRODUCTS:
                return True
            inside = [
                node.regions[region].inputs[index]
                for slot in (slots(node) if node.regions else ())
                if slot.operand == place
                for region, index in slot.inputs
            ]
            onward = [*inside, *(node.results if node.op in _FORMS else ())]
            fresh = [each for each in onward if each not in seen]
            seen.update(fresh)
            waiting += fresh
    return False


def _matches(
    groups: Sequence[Sequence[int]],
    free_groups: Collection[int],
    first: int,
    kinds: Sequence[Any],
    results: Sequence[Any],
    free: Sequence[bool],
    start: int,
) -> tuple[int, int]:
    """How many groups from `first` on are like the results from `start` on, and how many arrays these are."""
    count = length = 0
    for g in range(first, len(groups)):
        here = start + length
        wanted = groups[g]
        if g not in free_groups or here + len(wanted) > len(results):
            break
        if any(kinds[i] != results[here + k] or not free[here + k] for k, i in enumerate(wanted)):
            break
        count, length = count + 1, length + len(wanted)
    return count, length


def _kind(aval: Any) -> tuple[Any, ...]:
    return getattr(aval, "shape", ()), str(getattr(aval, "dtype", ""))


def _needs(graph: Graph) -> tuple[int, ...]:
    """Of each output the inputs it depends on; all operands of a loop are in all its results."""
    known = {value: 1 << i for i, value in enumerate(graph.inputs)}
    for node in graph:
        bits = 0
        for value in node.operands:
            bits |= known.get(value, 0)
        for value in node.results:
            known[value] = bits
    return tuple(known.get(value, 0) for value in graph.outputs)
