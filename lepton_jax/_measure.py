"""Decisions taken on the arguments of a first call: is it right (`verify`), is it faster (`measure`)?

What was measured is kept on disk (`targets.records`), so that the next process need not measure again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

import jax

from lepton_jax._options import Options
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.numerics.compare import Difference, compare_trees
from lepton_jax.targets import records

_PAIRS: Final = 7
_WORTH: Final = 1.0
_KIND: Final = "faster"


@dataclass
class Choice:
    """Which program runs for one set of shapes.

    Attributes:
        fun: the program.
        notes: why, for the report.
    """

    fun: Callable[..., Any]
    notes: list[str] = field(default_factory=list)


def choose(
    fun: Callable[..., Any],
    optimised: Callable[..., Any],
    options: Options,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Choice:
    """Run both programs on a call's arguments, compare, time them in turn, and say which to keep.

    A program that was timed before on this machine, with the same shapes and pipeline, is not timed again.

    Args:
        fun: the plain function.
        optimised: its optimised form, already behind `jax.jit`.

    Returns:
        The optimised program, or the plain one if they differ or the plain one is faster.
    """
    plain = jax.jit(fun, **options.jit_arguments)
    choice = Choice(optimised)
    if options.verify:
        expected = plain(*_copies(args), **_copies(kwargs))
        difference = compare_trees(expected, optimised(*_copies(args), **_copies(kwargs)))
        note, ok = judged(difference, options)
        if not ok:
            return Choice(plain, [f"verify: the plain program is kept, for {note}"])
        choice.notes.append(f"verify: {note}")
    if options.measure:
        key = program_key(plain, options, args, kwargs)
        known = records.read(_KIND, key)
        ratio = known if isinstance(known, float) else time_ratio(plain, optimised, args, kwargs)
        if ratio is not known:
            records.write(_KIND, key, ratio)
        when = " (measured before on this machine)" if ratio is known else ""
        if ratio < _WORTH:
            note = f"measure: the plain program is kept, {1 / ratio:.2f}× as fast{when}"
            return Choice(plain, [*choice.notes, note])
        choice.notes.append(f"measure: {ratio:.2f}× as fast as the plain program{when}")
    return choice


def judged(difference: Difference, options: Options) -> tuple[str, bool]:
    """What to say of a result that differs so from the plain program's, and whether it may stay."""
    names = options.pipeline.approximate
    if not names:
        return str(difference), difference.ok
    off = f"off by {difference.largest:.2g} at the most" if difference.ok else str(difference)
    return f"{', '.join(names)} approximate: {off}", True


def program_key(plain: Any, options: Options, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What the decision is about: the program with its shapes, and what Lepton is told to do with it."""
    told = (options.pipeline, options.level, options.target, version("lepton-jax"))
    return "\n".join([*map(str, told), from_jaxpr(plain.trace(*args, **kwargs).jaxpr).to_text()])


def time_ratio(plain: Any, optimised: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """Median of plain time over optimised time, of pairs run in turn, both compiled before."""
    for fun in (plain, optimised):
        jax.block_until_ready(fun(*_copies(args), **_copies(kwargs)))
    ratios = []
    for pair in range(_PAIRS):
        times = {}
        for fun in (plain, optimised) if pair % 2 else (optimised, plain):
            given, named = jax.block_until_ready((_copies(args), _copies(kwargs)))
            start = time.perf_counter()
            jax.block_until_ready(fun(*given, **named))
            times[fun] = time.perf_counter() - start
        ratios.append(times[plain] / max(times[optimised], 1e-9))
    return statistics.median(ratios)


def _copies(tree: Any) -> Any:
    """The same arguments in fresh buffers, because a call may be given its arguments to destroy."""
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, tree)
