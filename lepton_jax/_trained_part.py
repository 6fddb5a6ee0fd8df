"""Which leaves of a tree of parameters are trained, and the tree without the others."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax._inputs import argument_names
from lepton_jax.ir.paths import choose, leaf_paths
from lepton_jax.rewrite import UsageError


def trained_leaves(
    model: Any, fun: Callable[..., Any], params: Any, frozen: str | Sequence[str] | None
) -> list[bool]:
    """Whether each leaf of the parameters is trained, in the order of `jax.tree.leaves`.

    Args:
        model: what the user gave: a module, or a method of one, says which of its state is trained.
        fun: the function of the parameters; its first argument names them.
        frozen: patterns of paths of what is not trained.

    Raises:
        UsageError: a pattern chooses nothing, or nothing is left.
    """
    (name,) = argument_names(fun, 1)
    paths = leaf_paths(name, params)
    patterns = (frozen,) if isinstance(frozen, str) else tuple(frozen or ())
    try:
        held = choose(patterns, paths, "frozen") if patterns else frozenset()
    except ValueError as error:
        raise UsageError(str(error)) from error
    of_model = _of_model(model, name, paths)
    found = [
        i not in held and path in of_model and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        for i, (path, leaf) in enumerate(zip(paths, jax.tree.leaves(params), strict=True))
    ]
    if not any(found):
        raise UsageError("there is nothing to train: no parameter is an array of floats that is not frozen")
    return found


def _of_model(model: Any, name: str, paths: list[str]) -> set[str]:
    """The paths of what a module trains; all paths of what is none."""
    owner = model.__self__ if isinstance(model, types.MethodType) else model
    nnx, linen = sys.modules.get("flax.nnx"), sys.modules.get("flax.linen")
    if nnx is not None and isinstance(owner, nnx.Module):
        return set(leaf_paths(name, nnx.to_pure_dict(nnx.state(owner, nnx.Param))))
    if linen is not None and isinstance(model, linen.Module):
        return {path for path in paths if path.split("/")[1:2] == ["params"]}
    return set(paths)


class TrainedPart:
    """A tree of parameters in two: what is trained, and what stays as it is.

    Args:
        params: the tree.
        is_trained: for each leaf whether it is trained.

    Attributes:
        start: the tree, with None in the place of what is not trained.
    """

    def __init__(self, params: Any, is_trained: Sequence[bool]) -> None:
        leaves = jax.tree.leaves(params, is_leaf=_is_none)
        self._tree: Any = jax.tree.structure(params, is_leaf=_is_none)
        flags = iter(is_trained)
        keep = [leaf is not None and next(flags) for leaf in leaves]
        self._fixed = [None if kept else leaf for leaf, kept in zip(leaves, keep, strict=True)]
        started = [leaf if kept else None for leaf, kept in zip(leaves, keep, strict=True)]
        self.start = jax.tree.unflatten(self._tree, started)

    def whole(self, trained: Any) -> Any:
        """The whole tree, of what was trained.

        Raises:
            UsageError: it is another tree than `start`.
        """
        leaves, tree = jax.tree.flatten(trained, is_leaf=_is_none)
        if self._tree != tree:
            raise UsageError(
                f"these are not the parameters that are trained: {tree} in place of {self._tree}"
            )
        pairs = zip(self._fixed, leaves, strict=True)
        return jax.tree.unflatten(self._tree, [given if fixed is None else fixed for fixed, given in pairs])


def _is_none(leaf: Any) -> bool:
    return leaf is None
