"""Which passes there are: those that installed packages declare, and those registered by hand.

A package declares its passes as entry points of the group `lepton_jax.passes`. They are
looked up when first asked for and imported when first used.
"""

from __future__ import annotations

import functools
import re
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from lepton_jax.rewrite.base import Pass
from lepton_jax.rewrite.errors import PipelineError, RegistryError

GROUP: Final = "lepton_jax.passes"

_REGISTERED: dict[str, type[Pass]] = {}
_NAME: Final = re.compile(r"[A-Za-z_][\w\-]*")
_RESERVED: Final = frozenset({"fixpoint", "none", "cleanup", "default", "deploy", "max"})
"""Names that mean something else in a pipeline's text."""


def register(cls: type[Pass]) -> type[Pass]:
    """Make a pass known by its name, for use in pipelines; works as a decorator.

    Raises:
        RegistryError: it is no pass, another pass has that name, or a pipeline cannot hold that name.

    Example:
        >>> from lepton_jax.rewrite import Pass
        >>> class Nothing(Pass):
        ...     name = "nothing"
        ...     def run(self, graph, ctx):
        ...         pass
        >>> get_pass(register(Nothing).name) is Nothing
        True
        >>> unregister("nothing")
    """
    name = getattr(cls, "name", None)
    if not (isinstance(cls, type) and issubclass(cls, Pass) and isinstance(name, str)):
        raise RegistryError(f"{cls!r} is not a Pass with a name")
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise RegistryError(f"a pass cannot be named {name!r}: a pipeline would not know it for one")
    known = _REGISTERED.get(name)
    declared = _declared().get(name)
    if known is None and declared is not None and declared.value != f"{cls.__module__}:{cls.__qualname__}":
        raise RegistryError(f"there is a pass named {name!r} already: {declared.value}")
    if known is not None and known is not cls:
        raise RegistryError(
            f"there is a pass named {name!r} already: {known.__module__}:{known.__qualname__}"
        )
    _REGISTERED[name] = cls
    return cls


def unregister(name: str) -> None:
    """Forget a pass that `register` made known."""
    _REGISTERED.pop(name, None)


@functools.cache
def _declared() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = found.get(entry.name)
        if other is not None and other.value != entry.value:
            raise RegistryError(
                f"two packages declare a pass {entry.name!r}: {other.value} and {entry.value}"
            )
        found[entry.name] = entry
    return found


@functools.cache
def _load(name: str) -> type[Pass]:
    entry = _declared()[name]
    try:
        cls = entry.load()
    except Exception as error:
        raise RegistryError(
            f"entry point {name!r} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        raise RegistryError(f"entry point {name!r} ({entry.value}) is not a Pass")
    if cls.name != name:
        raise RegistryError(f"entry point {name!r} ({entry.value}) is a pass named {cls.name!r}")
    return cls


def pass_names() -> list[str]:
    """The names of all passes, sorted."""
    return sorted({*_declared(), *_REGISTERED})


def origin_of(name: str) -> str:
    """The package that a pass comes from."""
    entry = _declared().get(name)
    return "registered" if entry is None or entry.dist is None else entry.dist.name


def get_pass(name: str) -> type[Pass]:
    """The pass of that name.

    Raises:
        PipelineError: there is none; the message lists those there are.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in _declared():
        raise PipelineError(f"there is no pass {name!r}; the passes are: {', '.join(pass_names())}")
    return _load(name)
