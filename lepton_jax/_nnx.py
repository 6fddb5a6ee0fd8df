"""Functions of Flax NNX modules: their state is passed in and out, as `nnx.jit` does it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from lepton_jax._options import Options, StaticArguments
from lepton_jax._stage import Program, stage


def holds_modules(tree: Any) -> bool:
    """Whether there is an NNX module, optimiser or other NNX object among the arguments."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return False
    objects: type = nnx.Pytree
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, objects))
    return any(isinstance(leaf, objects) for leaf in leaves)


def jit(fun: Callable[..., Any], **options: Any) -> Any:
    """`nnx.jit`: like `jax.jit`, and what the function writes into its modules is seen outside."""
    from flax import nnx

    return nnx.jit(fun, **options)


def stage_modules(
    fun: Callable[..., Any],
    options: Options,
    static: StaticArguments,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> tuple[Any, Program]:
    """Optimise a call whose arguments hold modules, and evaluate it; the modules are updated in place.

    Raises: as `stage`.
    """
    from flax import nnx

    fixed = {i: value for i, value in enumerate(args) if i in static.positions}
    fixed_names = {key: value for key, value in kwargs.items() if key in static.names}
    moving = (
        [value for i, value in enumerate(args) if i not in fixed],
        {key: value for key, value in kwargs.items() if key not in fixed_names},
    )
    before, state = nnx.split(moving)
    after: Any = None

    def pure(state: Any) -> Any:
        nonlocal after
        rest, named = nnx.merge(before, state)
        given = iter(rest)
        full = [fixed[i] if i in fixed else next(given) for i in range(len(args))]
        result = fun(*full, **named, **fixed_names)
        after, new_state = nnx.split(((rest, named), result))
        return new_state

    pure.__name__ = getattr(fun, "__name__", "f")
    new_state, program = stage(pure, options, StaticArguments(frozenset(), frozenset()), (state,), {})
    changed, result = nnx.merge(after, new_state)
    nnx.update(moving, nnx.state(changed))
    return result, program
