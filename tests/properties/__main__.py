"""Many random programs for every rule: `python -m tests.properties --seconds 600 --seed 1`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext

import tests.conftest as settings  # before JAX is imported  # isort: skip
import jax

from tests.properties._families import FAMILIES, check_alike, check_family


def main(argv: Sequence[str] | None = None) -> int:
    """Draw programs until the time is over; returns how many promises were broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.properties", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, about")
    parser.add_argument("--seed", type=int, default=0, help="where to start; every round takes the next")
    parser.add_argument("--rounds", type=int, default=0, help="stop after so many rounds, whatever the time")
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="FAMILY", help="files in tests/properties/makers"
    )
    parser.add_argument("--x64", action="store_true", help="with types of 64 bits")
    options = parser.parse_args(argv)
    assert settings.__doc__
    chosen = [family for family in FAMILIES if not options.only or family.name in options.only]
    if not chosen:
        parser.error(f"the families are: {', '.join(family.name for family in FAMILIES)}")
    end = time.monotonic() + options.seconds
    programs = broken = rounds = 0
    with jax.enable_x64(True) if options.x64 else nullcontext():
        while time.monotonic() < end and (not options.rounds or rounds < options.rounds):
            for family in chosen:
                if time.monotonic() >= end:
                    break
                for check in (check_family, check_alike):
                    count, failures = check(family, options.seed + rounds, options.x64)
                    programs += count
                    broken += len(failures)
                    for failure in failures:
                        print(f"{family.name}: {failure}\n", flush=True)
                jax.clear_caches()
            rounds += 1
    print(
        f"{programs} programs, {broken} broken promises, seeds {options.seed} to {options.seed + rounds - 1}"
    )
    return min(broken, 1)


if __name__ == "__main__":
    raise SystemExit(main())
