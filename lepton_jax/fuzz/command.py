"""The command `lepton fuzz`."""

from __future__ import annotations

import argparse
import sys
import time

from lepton_jax.fuzz.check import Failure
from lepton_jax.fuzz.run import run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lepton fuzz`."""
    parser.add_argument("--count", type=int, default=1000, help="how many programs (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first program; the others follow")
    parser.add_argument("--seconds", type=float, default=None, help="stop after so long")
    parser.add_argument("--out", default="fuzz-failures", help="folder for files that show the failures")
    parser.add_argument("--passes", default="default", help="the pipeline (default: default)")
    parser.add_argument("--level", default="reassociate", help="the semantics level (default: reassociate)")
    parser.add_argument("--target", default=None, help="what to optimise for (default: the backend)")
    parser.add_argument("--regardless", action="store_true", help="apply rewrites whether or not they pay")
    parser.add_argument("--size", type=int, default=16, help="about how many statements a program has")


def fuzz_command(args: argparse.Namespace) -> int:
    """Run the fuzzer as `lepton fuzz` does.

    Returns:
        0 if no program failed, else 1.
    """
    start = time.monotonic()
    done = failed = 0

    def tell(seed: int, failure: Failure | None) -> None:
        nonlocal done, failed
        done += 1
        failed += failure is not None
        if failure is not None:
            print(f"\rseed {seed}: {str(failure).splitlines()[0][:160]}", file=sys.stderr)
        spent = time.monotonic() - start
        print(f"\r{done} programs, {failed} failed, {spent:.0f} s", end="", file=sys.stderr, flush=True)

    result = run(
        args.count,
        args.seed,
        seconds=args.seconds,
        passes=args.passes,
        level=args.level,
        target=args.target,
        regardless=args.regardless,
        size=args.size,
        out=args.out,
        on_program=tell,
    )
    print(file=sys.stderr)
    print(result)
    return 0 if result.ok else 1
