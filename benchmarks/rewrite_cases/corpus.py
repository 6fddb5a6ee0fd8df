"""The ordinary programs of the tests: nothing to gain is expected, and nothing may be lost.

They are small, so most of their time is that of calling them.
"""

from __future__ import annotations

from typing import Final

from benchmarks.rewrite_cases._case import Case
from tests.corpus import programs

_WITH_EFFECTS: Final = "effects"

CASES: Final = [
    Case(program.name, program.fun, program.fun, program.make_args)
    for program in programs()
    if not program.fun.__module__.endswith(_WITH_EFFECTS)
]
