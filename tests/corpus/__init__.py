"""A corpus of ordinary JAX programs, as people write them; `tests/test_corpus.py` runs every one.

To add a program: write the function in the module of its theme, and add a `Program` to that module's
`PROGRAMS`, with a unique name and a function that builds small arguments (a program should compile and run in
well under a second). Say by which arguments it is differentiable, and whether it may be batched and exported.
A new theme is a new module here with a `PROGRAMS` list; it is found by its place. Do no array work when the
module is imported: build arrays in `make_args`, and constants in the function.
"""

from __future__ import annotations

import importlib
import pkgutil

from ._program import Program

__all__ = ["Program", "programs"]


def programs() -> list[Program]:
    """The programs of all modules, in the order of the modules' names."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [program for module in modules for program in module.PROGRAMS]
