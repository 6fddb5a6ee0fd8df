"""Makes a failing program small."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from lepton_jax.fuzz.program import KEY, Block, Program, Statement, Type, free_names

_T = TypeVar("_T")

_CALLS: Final = frozenset({"jit", "checkpoint", "custom_jvp", "custom_vjp", "cond", "switch"})
_LOOPS: Final = frozenset({"fori_loop", "while_loop"})


def shrink(program: Program, fails: Callable[[Program], bool], seconds: float = 60.0) -> Program:
    """A smaller program that still fails.

    Results are dropped, statements replaced by arguments and constants, regions written into their
    caller, unused arguments removed and axes shortened, for as long as it fails and there is time.

    Args:
        program: a program for which `fails` says True.
        fails: whether a candidate fails in the same way; False for one that is not valid.
    """
    stop = time.monotonic() + seconds
    program = program.with_body(_tidy(program.body))
    improved = True
    while improved and time.monotonic() < stop:
        improved = False
        for candidate in _candidates(program):
            if time.monotonic() > stop:
                break
            if _weight(candidate) < _weight(program) and fails(candidate):
                program = candidate
                improved = True
                break
    return program


def _weight(program: Program) -> tuple[int, ...]:
    """What a smaller program has less of; earlier entries count first."""
    statements = list(program.body.walk())
    constants = sum(1 for s in statements if s.kind == "constant")
    return (
        len(statements) - constants,
        len(program.body.outputs),
        constants,
        len(program.body.inputs),
        sum(sum(kind.shape) + kind.ndim for kind in program.types),
        len(program.source()),
        int(program.hostile),
    )


def _candidates(program: Program) -> Iterator[Program]:
    """Smaller programs, the boldest first."""
    body = program.body
    for outputs in _fewer(body.outputs):
        yield program.with_body(_tidy(replace(body, outputs=outputs)))
    count = len(body.statements)
    step = count // 2
    while step > 1:
        for start in range(0, count, step):
            constants = _constants(body, range(start, min(start + step, count)))
            yield program.with_body(_tidy(constants))
        step //= 2
    for edited in _edits(body):
        yield program.with_body(_tidy(edited))
    used = free_names(body.statements, body.outputs)
    yield program.with_body(replace(body, inputs=tuple(pair for pair in body.inputs if pair[0] in used)))
    yield from _shorter(program)
    yield replace(program, hostile=False)


def _fewer(outputs: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if len(outputs) > 1:
        for name in outputs:
            yield (name,)
        for i in range(len(outputs)):
            yield outputs[:i] + outputs[i + 1 :]


def _tidy(block: Block) -> Block:
    """A block without the statements whose results nobody reads; effects stay."""
    kept: list[Statement] = []
    needed = set(block.outputs)
    for statement in reversed(block.statements):
        if statement.results and not needed.intersection(statement.results):
            continue
        statement = _narrowed(statement, needed)
        tidy = replace(statement, regions=tuple(_tidy(region) for region in statement.regions))
        kept.append(tidy)
        needed |= free_names([tidy], ())
    return replace(block, statements=tuple(reversed(kept)))


def _narrowed(statement: Statement, needed: set[str]) -> Statement:
    """A call, branch, vmap or scan without the results that nobody reads; a loop's carries stay."""
    if not statement.regions:
        return statement
    if statement.kind == "scan":
        first = int(re.findall(r"split\((\d+)", statement.template)[0])
    elif statement.kind in _CALLS or statement.kind == "vmap":
        first = 0
    else:
        return statement
    kept = [i for i, name in enumerate(statement.results) if i < first or name in needed]
    if not kept or any(len(region.outputs) != len(statement.results) for region in statement.regions):
        return statement
    return replace(
        statement,
        results=tuple(statement.results[i] for i in kept),
        types=tuple(statement.types[i] for i in kept),
        regions=tuple(replace(r, outputs=tuple(r.outputs[i] for i in kept)) for r in statement.regions),
    )


def _constant(name: str, kind: Type) -> Statement:
    return Statement((name,), (kind,), f"jnp.ones({kind.shape}, '{kind.dtype}')", kind="constant")


def _constants(block: Block, places: Sequence[int]) -> Block:
    """A block with constants in place of some statements."""
    statements: list[Statement] = []
    for i, statement in enumerate(block.statements):
        if (
            i in places
            and statement.kind != "constant"
            and all(kind.dtype != KEY for kind in statement.types)
        ):
            statements += map(_constant, statement.results, statement.types)
        else:
            statements.append(statement)
    return replace(block, statements=tuple(statements))


def _edits(block: Block) -> Iterator[Block]:
    """A block with one change: a statement gone, replaced, written out, or with a change in a region."""
    known = list(block.inputs)
    for i, statement in enumerate(block.statements):
        before, after = block.statements[:i], block.statements[i + 1 :]
        for renamed in _stand_ins(statement, known):
            yield _with(block, before, (), after, renamed)
        if statement.kind != "constant" or not statement.results:
            yield _constants(block, [i])
        for inner, renamed in _written_out(statement):
            yield _with(block, before, inner, after, renamed)
        for loop, renamed in _fewer_carries(statement):
            yield _with(block, before, (loop,), after, renamed)
        for r, region in enumerate(statement.regions):
            for edited in _edits(region):
                regions = (*statement.regions[:r], edited, *statement.regions[r + 1 :])
                yield replace(block, statements=(*before, replace(statement, regions=regions), *after))
        known += zip(statement.results, statement.types, strict=True)


def _stand_ins(statement: Statement, known: Sequence[tuple[str, Type]]) -> Iterator[dict[str, str]]:
    """Earlier values of the same types to read instead of a statement's results."""
    stand_ins: dict[str, str] = {}
    for name, kind in zip(statement.results, statement.types, strict=True):
        same = [other for other, its_kind in known if its_kind == kind]
        if not same:
            return
        stand_ins[name] = same[0]
        last = same[-1]
    yield stand_ins
    if len(statement.results) == 1 and last != stand_ins[statement.results[0]]:
        yield {statement.results[0]: last}


def _written_out(statement: Statement) -> Iterator[tuple[tuple[Statement, ...], dict[str, str]]]:
    """Bodies of calls, branches and loops (run once) in place of a statement; what its results become."""
    for region in statement.regions:
        extra: tuple[Statement, ...] = ()
        names = [name for name, _ in region.inputs]
        if statement.kind in _CALLS and len(statement.operands) >= len(names):
            operands = statement.operands[len(statement.operands) - len(names) :]
        elif statement.kind in _LOOPS:
            extra = (_constant(names[0], Type((), "int32")),)
            names = names[1:]
            operands = statement.operands[: len(names)]
        else:
            return
        if len(region.outputs) == len(statement.results):
            into = dict(zip(names, operands, strict=True))
            inner = tuple(_renamed(s, into) for s in region.statements)
            outputs = (into.get(name, name) for name in region.outputs)
            yield extra + inner, dict(zip(statement.results, outputs, strict=True))


def _fewer_carries(statement: Statement) -> Iterator[tuple[Statement, dict[str, str]]]:
    """A loop with one carry less: its body and its readers read the initial value instead."""
    if not statement.regions or statement.kind not in ("scan", *_LOOPS):
        return
    (body,) = statement.regions
    skipped = 0 if statement.kind == "scan" else 1  # the body's first input is the counter
    counted = re.findall(r"split\((\d+)", statement.template)
    carries = int(counted[0]) if counted else len(statement.results)
    for i in range(carries):
        template = re.sub(rf"\{{{i}\}}, ?", "", statement.template, count=1)
        if f"{{{i}}}" in template:
            continue
        template = re.sub(r"\{(\d+)\}", lambda m, i=i: f"{{{int(m[1]) - (int(m[1]) > i)}}}", template)  # type: ignore[misc]
        template = re.sub(r"split\(\d+", f"split({carries - 1}", template)
        start = statement.operands[i]
        inner = _renamed(
            replace(statement, regions=(_dropped(body, i + skipped, i),)),
            {body.inputs[i + skipped][0]: start},
        )
        loop = replace(
            inner,
            template=template,
            operands=_without(statement.operands, i),
            results=_without(statement.results, i),
            types=_without(statement.types, i),
        )
        if loop.results:
            yield loop, {statement.results[i]: start}


def _dropped(body: Block, place: int, output: int) -> Block:
    return replace(body, inputs=_without(body.inputs, place), outputs=_without(body.outputs, output))


def _without(values: tuple[_T, ...], place: int) -> tuple[_T, ...]:
    return values[:place] + values[place + 1 :]


def _with(
    block: Block,
    before: tuple[Statement, ...],
    inner: tuple[Statement, ...],
    after: tuple[Statement, ...],
    renamed: Mapping[str, str],
) -> Block:
    rest = tuple(_renamed(statement, renamed) for statement in after)
    outputs = tuple(renamed.get(name, name) for name in block.outputs)
    return replace(block, statements=(*before, *inner, *rest), outputs=outputs)


def _renamed(statement: Statement, names: Mapping[str, str]) -> Statement:
    """A statement that reads other names, in its regions too."""
    regions = tuple(
        replace(
            region,
            statements=tuple(_renamed(s, names) for s in region.statements),
            outputs=tuple(names.get(name, name) for name in region.outputs),
        )
        for region in statement.regions
    )
    operands = tuple(names.get(name, name) for name in statement.operands)
    return replace(statement, operands=operands, regions=regions)


def _shorter(program: Program) -> Iterator[Program]:
    """Axes made shorter, in the arguments alone and wherever the number is written."""
    for old in sorted({d for kind in program.types for d in kind.shape}, reverse=True):
        for new in (1, 2, old - 1):
            if not 0 < new < old:
                continue
            inputs = tuple((name, _resized(kind, old, new)) for name, kind in program.body.inputs)
            body = replace(program.body, inputs=inputs)
            yield program.with_body(body)
            yield program.with_body(_rewritten(body, rf"\b{old}\b(?!\}})", str(new)))


def _resized(kind: Type, old: int, new: int) -> Type:
    return replace(kind, shape=tuple(new if d == old else d for d in kind.shape))


def _rewritten(block: Block, pattern: str, text: str) -> Block:
    statements = tuple(
        replace(
            s,
            template=re.sub(pattern, text, s.template),
            regions=tuple(_rewritten(region, pattern, text) for region in s.regions),
        )
        for s in block.statements
    )
    return replace(block, statements=statements)
