"""A user's call as a function of a flat list of arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax

from lepton_jax import _nnx
from lepton_jax._options import StaticArguments
from lepton_jax._sharded.naming import Leaf, name_leaves
from lepton_jax._stage import kind_of
from lepton_jax.ir import _jax

if TYPE_CHECKING:
    from lepton_jax._sharded.carrying import Served


@dataclass(frozen=True)
class Call:
    """A call, flat.

    Attributes:
        key: what tells one program from another: trees, abstract values, static arguments.
        leaves: the arrays.
        names: says what the arrays are called, in order.
        run: the function of the leaves; it returns the results as a tree of arrays.
        finish: makes what the caller gets of that tree, and of what the run that was traced has noted.
        restore: the arguments given by position, with other arrays in them; modules are updated.
        arguments: what the user's function calls the arguments given by position.
        has_modules: whether there are modules among the arguments, which `finish` updates.
        noted: receives what `finish` needs to know of the run.
        served: the parameters among the arrays that were prepared, if any were.
    """

    key: Any
    leaves: list[Any]
    names: Callable[[], list[Leaf]]
    run: Callable[..., Any]
    finish: Callable[[Any, list[Any]], Any]
    restore: Callable[[Sequence[Any]], tuple[Any, ...]]
    arguments: tuple[str, ...] = ()
    has_modules: bool = False
    noted: list[Any] = field(default_factory=list)
    served: Served | None = None


def flatten(
    fun: Callable[..., Any],
    static: StaticArguments,
    names: Sequence[str],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    as_trees: bool = False,
) -> Call:
    """A call of `fun`; NNX modules among its arguments are updated when it is finished.

    Args:
        names: of the arguments given by position.
        as_trees: take modules as trees of arrays, which nobody writes into.
    """
    fixed = {i: value for i, value in enumerate(args) if i in static.positions}
    fixed_names = {key: kwargs[key] for key in sorted(kwargs) if key in static.names}
    moving = [(names[i], value) for i, value in enumerate(args) if i not in fixed]
    moving += [(key, kwargs[key]) for key in sorted(kwargs) if key not in fixed_names]
    free = len(args) - len(fixed)

    def positional(values: Sequence[Any]) -> tuple[Any, ...]:
        given = iter(values[:free])
        return tuple(fixed[i] if i in fixed else next(given) for i in range(len(args)))

    def call(values: Sequence[Any]) -> Any:
        named = {name: value for (name, _), value in zip(moving[free:], values[free:], strict=True)}
        return fun(*positional(values), **named, **fixed_names)

    constants = (tuple(fixed.items()), tuple(fixed_names.items()), len(args), _jax.x64_enabled())
    given = tuple(names)
    if not as_trees and _nnx.holds_modules((args, kwargs)) and _nnx.writable((args, kwargs)):
        return replace(_of_modules(call, positional, moving, constants), arguments=given)
    leaves, tree = jax.tree.flatten([value for _, value in moving])

    def run(*arrays: Any) -> Any:
        return call(jax.tree.unflatten(tree, arrays))

    def restore(arrays: Sequence[Any]) -> tuple[Any, ...]:
        return positional(jax.tree.unflatten(tree, arrays))

    key = (constants, tuple(name for name, _ in moving[free:]), tree, tuple(map(kind_of, leaves)))
    return Call(key, leaves, lambda: _names(moving), run, lambda results, _: results, restore, given)


def _names(moving: Sequence[tuple[str, Any]]) -> list[Leaf]:
    return [leaf for name, tree in moving for leaf in name_leaves(name, tree)]


def _of_modules(
    call: Callable[[Sequence[Any]], Any],
    positional: Callable[[Sequence[Any]], tuple[Any, ...]],
    moving: Sequence[tuple[str, Any]],
    constants: Any,
) -> Call:
    """A call with modules: their state goes in and comes out, as with `nnx.jit`."""
    from flax import nnx

    # NNX sorts what stands in a dictionary: by their places, arguments stay in the order of the signature
    keys = [f"{place:04}" for place in range(len(moving))]
    given = {key: value for key, (_, value) in zip(keys, moving, strict=True)}
    before, state = nnx.split(given)
    leaves, tree = jax.tree.flatten(state)
    noted: list[Any] = []

    def run(*arrays: Any) -> Any:
        merged = nnx.merge(before, jax.tree.unflatten(tree, arrays))
        result = call([merged[key] for key in keys])
        definition, new_state = nnx.split((merged, result))
        noted[:] = [definition]
        return new_state

    def finish(new_state: Any, noted: list[Any]) -> Any:
        changed, result = nnx.merge(noted[0], new_state)
        nnx.update(given, nnx.state(changed))
        return result

    def restore(arrays: Sequence[Any]) -> tuple[Any, ...]:
        placed = jax.tree.unflatten(tree, arrays)
        nnx.update(given, placed)
        merged = nnx.merge(before, placed)
        objects: type = nnx.Pytree
        return positional([v if isinstance(v, objects) else merged[key] for key, v in given.items()])

    def names() -> list[Leaf]:
        return [
            leaf
            for key, (name, _) in zip(keys, moving, strict=True)
            if key in state
            for leaf in name_leaves(name, state[key])
        ]

    key = (constants, tuple(name for name, _ in moving), before, tree, tuple(map(kind_of, leaves)))
    return Call(key, leaves, names, run, finish, restore, has_modules=True, noted=noted)
