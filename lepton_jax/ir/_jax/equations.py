"""What surrounds an equation: the user's line that it comes from, and the context that it was traced in."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
from jax._src import config as _config
from jax._src import source_info_util as _source_info


def inlined_source(source: Any, outer: Any, name: str | None) -> Any:
    """The source of an inlined equation: the call's name stack, the function's name, its own."""
    stack = outer.name_stack
    if name is not None:
        stack = stack.extend(name)
    return source.replace(name_stack=stack + source.name_stack)


class Placement:
    """Restores source information and equation contexts while a graph is re-evaluated.

    Entering a context is slow, so neighbours that share one enter it once.
    """

    def __init__(self) -> None:
        self._base = _source_info.current_name_stack()
        self._stacks: dict[int, tuple[Any, Any]] = {}
        self._context: Any = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Placement:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._open.__exit__(*error)

    def at(self, source: Any, context: Any) -> contextlib.AbstractContextManager[Any]:
        """A context manager in which to bind an equation from `source` in `context`."""
        if context is not self._context:
            self._open.close()
            self._context = context
            if context is not None:
                self._open.enter_context(context.manager)
        if source is None:
            return contextlib.nullcontext()
        known = self._stacks.get(id(source.name_stack))
        if known is None:
            known = (source.name_stack, self._base + source.name_stack)
            self._stacks[id(source.name_stack)] = known
        manager: contextlib.AbstractContextManager[Any] = _source_info.user_context(
            source.traceback, name_stack=known[1]
        )
        return manager


def summarize(source: Any) -> str:
    """The user's file and line of an equation."""
    return "unknown" if source is None else str(_source_info.summarize(source))


def hide_frames(file: str) -> None:
    """Where an equation comes from, say the line of the caller of the functions in a file."""
    _source_info.register_exclusion(file)


def without_places() -> contextlib.AbstractContextManager[None]:
    """While it lasts, programs do not say from which lines of which files they were traced."""
    return _config.traceback_in_locations_limit(0)  # type: ignore[no-any-return]


def context_off_mesh(context: Any) -> Any:
    """The context that an equation has with no mesh around it, otherwise the same; JAX has one of each."""
    if context is None or context.cur_abstract_mesh.empty:
        return context
    with context.manager, jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        return type(context)()
