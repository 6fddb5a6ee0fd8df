"""What masks and biases are for sure in most blocks, and programs without them there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lepton_jax.ir.graph import Value
from lepton_jax.passes.fuse._attention.axes import Labels
from lepton_jax.passes.fuse._attention.program import Builder, Program, Step
from lepton_jax.passes.fuse._attention.skip import Grid

Same = dict[int, int]
"""Numbers of steps, each with the number of the operand that its result is."""

_UNSURE: Final = -1
_NEUTRAL: Final = {"and": 1, "or": 0, "add": 0, "add_any": 0, "mul": 1}


def known_in_most(
    program: Program, builder: Builder, grid: Grid, block: tuple[int, int], counts: Any
) -> tuple[dict[int, int], Any]:
    """What operands are in most of the blocks that count.

    Args:
        program: what was collected by the builder.
        builder: holds the values behind the program's numbers.
        grid: what is known of them.
        block: how many queries and keys a block has.
        counts: [query blocks, key blocks], whether a block counts.

    Returns:
        The operands' numbers with what they are, and where they are that, [query blocks, key blocks]. Where
        nothing helps, no operands, and all blocks that count.
    """
    wanted: dict[int, set[int]] = {}
    for step in program.steps:
        for number, values in _useful(step):
            wanted.setdefault(number, set()).update(values)
    codes: dict[int, Any] = {}
    for number, helpful in wanted.items():
        low, high = grid.interval(*_value(builder, number), block)
        code = np.full(counts.shape, _UNSURE)
        for value in helpful:
            code[(low == value) & (high == value)] = value
        if (code[counts] != _UNSURE).any():
            codes[number] = code
    if not codes:
        return {}, counts.copy()
    lines = np.stack([code[counts] for code in codes.values()])
    kinds, often = np.unique(lines, axis=1, return_counts=True)
    often[(kinds == _UNSURE).all(0)] = 0
    best = kinds[:, often.argmax()]
    where = counts.copy()
    for code, value in zip(codes.values(), best, strict=True):
        where &= (value == _UNSURE) | (code == value)
    return {n: int(v) for n, v in zip(codes, best, strict=True) if v != _UNSURE}, where


def _value(builder: Builder, number: int) -> tuple[Value, Labels]:
    """What a number stands for."""
    if number < len(builder.values):
        return builder.values[number], builder.labels[number]
    node, labels, _ = builder.steps[number - len(builder.values)]
    return node.result, labels


def _useful(step: Step) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The operands that make a step superfluous if they are one of these numbers."""
    found: list[tuple[int | tuple[Any], tuple[int, ...]]]
    if step.op == "select_n" and len(step.operands) == 3:
        found = [(step.operands[0], (0, 1))]
    elif step.op == "sub":
        found = [(step.operands[1], (0,))]
    elif step.op in _NEUTRAL and (step.dtype == bool or step.op not in ("and", "or")):
        found = [(operand, (_NEUTRAL[step.op],)) for operand in step.operands]
    else:
        return
    yield from ((o, values) for o, values in found if isinstance(o, int))


def known_everywhere(
    program: Program, builder: Builder, grid: Grid, block: tuple[int, int], where: Any
) -> dict[int, int]:
    """What operands are in all of some blocks, [query blocks, key blocks]; see `known_in_most`."""
    known: dict[int, int] = {}
    for step in program.steps:
        for number, values in _useful(step):
            low, high = grid.interval(*_value(builder, number), block)
            found = [v for v in values if ((low == v) & (high == v))[where].all()]
            if found:
                known[number] = found[0]
    return known


def superfluous(program: Program, builder: Builder, known: Mapping[int, int]) -> Same:
    """The steps that are one of their operands, in blocks in which some operands are known."""
    found: Same = {}
    for number, step in enumerate(program.steps, len(program.leaves)):
        same = _same(step, known)
        if same is not None and _value(builder, same)[0].shape == step.shape:
            found[number] = same
    return found


def without(program: Program, same: Same) -> Program:
    """A program without superfluous steps, and without those that nothing reads then."""
    count = len(program.leaves)
    places = list(range(count))
    steps: list[Step] = []
    for number, step in enumerate(program.steps, count):
        if number in same:
            places.append(places[same[number]])
            continue
        operands = tuple(places[o] if isinstance(o, int) else o for o in step.operands)
        places.append(count + len(steps))
        steps.append(step.reading(operands))
    return _read(replace(program, steps=tuple(steps), result=places[program.result]))


def _same(step: Step, known: Mapping[int, int]) -> int | None:
    """The operand that a step's result is."""
    for number, values in _useful(step):
        if known.get(number) not in values:
            continue
        if step.op == "select_n":
            chosen = step.operands[1 + known[number]]
        else:
            chosen = step.operands[1 if step.operands[0] == number else 0]
        if isinstance(chosen, int):
            return chosen
    return None


def _read(program: Program) -> Program:
    """A program without the steps that nothing reads."""
    count = len(program.leaves)
    needed = {program.result}
    for at in range(len(program.steps) - 1, -1, -1):
        if count + at in needed:
            needed.update(o for o in program.steps[at].operands if isinstance(o, int))
    places = {n: n for n in range(count)}
    steps: list[Step] = []
    for at, step in enumerate(program.steps):
        if count + at in needed:
            places[count + at] = count + len(steps)
            operands = tuple(places[o] if isinstance(o, int) else o for o in step.operands)
            steps.append(step.reading(operands))
    return replace(program, steps=tuple(steps), result=places[program.result])
