"""Functions of Flax NNX modules: their state is passed in and out, as `nnx.jit` does it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from lepton_jax._inputs import argument_names
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


class ModuleJit:
    """`nnx.jit`: like `jax.jit`, and what the function writes into its modules is seen outside.

    Under transformations of JAX itself, such as `jax.grad`, modules are plain trees of arrays, as for
    `jax.jit`: there NNX does not let anybody write into them.

    Args:
        with_state: stages a call that updates the modules it is given.
        as_trees: stages a call that takes modules as trees.
        options: for `nnx.jit` and `jax.jit`.
    """

    def __init__(
        self, with_state: Callable[..., Any], as_trees: Callable[..., Any], options: Mapping[str, Any]
    ) -> None:
        from flax import nnx

        self._with_state: Any = nnx.jit(with_state, **options)
        self._as_trees: Any = jax.jit(as_trees, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function."""
        return self._either("__call__", args, kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """As `jax.jit(fun).trace`."""
        return self._either("trace", args, kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As `jax.jit(fun).lower`."""
        return self._either("lower", args, kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """As `jax.jit(fun).eval_shape`."""
        return self._either("eval_shape", args, kwargs)

    def clear_cache(self) -> None:
        """Forget the traces of modules as trees; `nnx.jit` keeps its own."""
        self._as_trees.clear_cache()

    def _either(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        way = self._with_state if writable((args, kwargs)) else self._as_trees
        return getattr(way, method)(*args, **kwargs)


def writable(tree: Any) -> bool:
    """Whether NNX lets anybody write into the modules in a tree here: not under a transformation of JAX."""
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        return True
    from flax import nnx
    from flax.errors import TraceContextError

    objects: type = nnx.Pytree
    modules = [
        leaf
        for leaf in jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, objects))
        if isinstance(leaf, objects)
    ]
    try:
        nnx.update(modules, nnx.state(modules))
    except TraceContextError:
        return False
    return True


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
    names = argument_names(fun, len(args))
    moving = {names[i]: value for i, value in enumerate(args) if i not in fixed}
    moving |= {key: value for key, value in kwargs.items() if key not in fixed_names}
    before, state = nnx.split(moving)
    after: Any = None

    def pure(**given: Any) -> Any:
        nonlocal after
        merged = nnx.merge(before, nnx.State(given))
        full = [fixed[i] if i in fixed else merged[name] for i, name in enumerate(names)]
        named = {key: value for key, value in merged.items() if key in kwargs}
        result = fun(*full, **named, **fixed_names)
        after, new_state = nnx.split((merged, result))
        return new_state

    pure.__name__ = getattr(fun, "__name__", "f")
    wanted = tuple(names[each] if isinstance(each, int) else each for each in options.params)
    options = replace(options, params=wanted)
    given = {name: state[name] for name in moving if name in state}  # None and the like have no state
    new_state, program = stage(pure, options, StaticArguments(frozenset(), frozenset()), (), given)
    changed, result = nnx.merge(after, new_state)
    nnx.update(moving, nnx.state(changed))
    return result, program
