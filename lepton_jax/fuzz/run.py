"""Many random programs, one after another; failures made small and written to files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from lepton_jax.fuzz.check import Failure, Invalid, Subject, check
from lepton_jax.fuzz.generate import generate
from lepton_jax.fuzz.program import Program, Type
from lepton_jax.fuzz.shrink import shrink

_HOSTILE_EVERY = 8
_FORGET_EVERY = 64


@dataclass(frozen=True)
class Found:
    """A program that fails.

    Attributes:
        program: as small as it became.
        failure: what it does wrong.
        file: a runnable file that shows it, or None where none was asked for.
    """

    program: Program
    failure: Failure
    file: Path | None


@dataclass
class FuzzResult:
    """What a run of the fuzzer found.

    Attributes:
        programs: how many were checked.
        invalid: how many plain JAX could not run; these are not counted as checked.
        failures: those that fail.
        seconds: how long it took.
    """

    programs: int = 0
    invalid: int = 0
    failures: list[Found] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether none failed."""
        return not self.failures

    def __str__(self) -> str:
        head = f"{self.programs} programs in {self.seconds:.0f} s, {len(self.failures)} failed"
        lines = [
            head + (f" ({self.invalid} that plain JAX cannot run were left out)" if self.invalid else "")
        ]
        for found in self.failures:
            what = str(found.failure).splitlines()[0]
            lines.append(f"  seed {found.program.seed}: {what}" + (f" -> {found.file}" if found.file else ""))
        return "\n".join(lines)


def run(
    count: int = 100,
    seed: int = 0,
    *,
    seconds: float | None = None,
    passes: str = "default",
    level: str = "reassociate",
    target: str | None = None,
    regardless: bool = False,
    size: int = 16,
    out: str | Path | None = None,
    shrink_seconds: float = 60.0,
    on_program: Callable[[int, Failure | None], None] | None = None,
) -> FuzzResult:
    """Check random programs.

    Every eighth gets hostile arguments (nan, infinities, zeros) and is held to the level `exact`.

    Args:
        count: how many programs.
        seed: of the first; the others follow.
        seconds: stop after so long, whatever the count.
        passes: the pipeline's text.
        level: the level that friendly programs are held to.
        target: what to optimise for (default: the backend); see `check`.
        regardless: apply rewrites whether or not they pay; see `check`.
        size: about how many statements a program has.
        out: a folder for files that show the failures.
        shrink_seconds: how long to make one failure smaller.
        on_program: told each seed and its failure, if any.
    """
    start = time.monotonic()
    result = FuzzResult()
    how: dict[str, Any] = {"target": target, "regardless": regardless}
    for number in range(seed, seed + count):
        if seconds is not None and time.monotonic() - start > seconds:
            break
        hostile = number % _HOSTILE_EVERY == 0
        program = generate(number, size, hostile)
        held_to = "exact" if hostile else level
        try:
            failure = check(program, passes, held_to, **how)
        except Invalid:
            result.invalid += 1
            continue
        result.programs += 1
        if on_program is not None:
            on_program(number, failure)
        if failure is not None:
            result.failures.append(_found(program, failure, passes, held_to, how, out, shrink_seconds))
        if result.programs % _FORGET_EVERY == 0:
            jax.clear_caches()
    result.seconds = time.monotonic() - start
    return result


def _found(
    program: Program,
    failure: Failure,
    passes: str,
    level: str,
    how: Mapping[str, Any],
    out: str | Path | None,
    seconds: float,
) -> Found:
    last = failure

    def fails(candidate: Program) -> bool:
        nonlocal last
        try:
            seen = check(candidate, passes, level, failure.kind, **how)
        except Invalid:
            return False
        if seen is None or seen.kind != failure.kind:
            return False
        last = seen
        return True

    small = shrink(program, fails, seconds)
    if out is None:
        return Found(small, last, None)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"seed{program.seed}_{failure.kind.replace(' ', '_')}.py"
    file.write_text(script(small, last, passes, level, how))
    return Found(small, last, file)


def script(
    program: Program, failure: Failure, passes: str, level: str, how: Mapping[str, Any] = MappingProxyType({})
) -> str:
    """A runnable file that shows a failure."""
    types = "".join(f'Type({kind.shape}, "{kind.dtype}"), ' for kind in program.types).rstrip()
    comment = "\n".join(f"# {line}".rstrip() for line in str(failure).splitlines())
    options = f"seed={program.seed}, hostile={program.hostile}, has_effects={program.has_effects}"
    options += "".join(f", {key}={value!r}" for key, value in how.items() if value)
    return (
        f"# Found by `lepton fuzz`. Run this file to see:\n{comment}\n"
        f"{program.source()}\n\n"
        f'if __name__ == "__main__":\n'
        f"    from lepton_jax.fuzz import Type, replay\n\n"
        f'    replay(program, ({types}), "{passes}", "{level}", {options})\n'
    )


def replay(
    program: Callable[..., tuple[object, ...]],
    types: tuple[Type, ...],
    passes: str,
    level: str,
    *,
    seed: int,
    hostile: bool,
    has_effects: bool,
    target: str | None = None,
    regardless: bool = False,
) -> None:
    """Check one program again and say what is wrong with it.

    Raises:
        SystemExit: it still fails.
    """
    subject = Subject(program, types, seed, hostile, has_effects)
    failure = check(subject, passes, level, target=target, regardless=regardless)
    if failure is not None:
        raise SystemExit(f"still fails: {failure}")
    print("does not fail any more")
