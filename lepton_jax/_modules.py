"""Models of Flax NNX, Linen and Equinox as functions of their parameters."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lepton_jax._prepared import PrepareError


def as_function(model: Any, args: Sequence[Any]) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    """A function of parameters and samples, its parameters, and the samples.

    Args:
        model: an NNX or Equinox module, or a method of one, whose parameters are in it; a Linen module or
            a plain function, which take their parameters first. Parameters may be Equinox modules, of whose
            leaves those that are no arrays, such as activation functions, stay with the function.
        args: what follows it in the call.

    Raises:
        TypeError: it cannot be called, or its parameters are missing.
    """
    owner = model.__self__ if isinstance(model, types.MethodType) else model
    if _is_a(owner, "flax.nnx", "Module"):
        return *_of_nnx(owner, model), tuple(args)
    if _is_a(owner, "equinox", "Module"):
        return *_of_equinox(owner, model), tuple(args)
    fun = model.apply if _is_a(model, "flax.linen", "Module") else model
    if not callable(fun):
        raise TypeError(f"lepton expects a function or a module, not {type(model).__name__}")
    if not args:
        raise TypeError("the parameters are missing: give function, params, and a sample of each input")
    if _holds_equinox(args[0]):
        return *_of_tree(fun, args[0]), tuple(args[1:])
    return fun, args[0], tuple(args[1:])


def _is_a(model: Any, module: str, name: str) -> bool:
    """Whether something is an instance of a class of a package, if that was imported at all."""
    package = sys.modules.get(module)
    return package is not None and isinstance(model, getattr(package, name))


def _method_name(owner: Any, model: Any) -> str:
    return "__call__" if model is owner else str(model.__func__.__name__)


def _of_nnx(owner: Any, model: Any) -> tuple[Callable[..., Any], Any]:
    from flax import nnx

    definition, state = nnx.split(owner)
    method = _method_name(owner, model)

    def call(params: Any, *args: Any, **kwargs: Any) -> Any:
        module = nnx.merge(definition, params)
        result = getattr(module, method)(*args, **kwargs)
        _check_unchanged(params, nnx.to_pure_dict(nnx.state(module)))
        return result

    return _named(call, type(owner).__name__), nnx.to_pure_dict(state)


def _check_unchanged(before: Any, after: Any) -> None:
    """Raise where a call has written into its module.

    Raises:
        PrepareError: with the path of the first array.
    """
    old, _ = jax.tree_util.tree_flatten_with_path(before)
    new = jax.tree.leaves(after)
    if len(old) != len(new):
        raise PrepareError("the call adds state to the module: call the module once before")
    for (path, left), right in zip(old, new, strict=True):
        if left is not right:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise PrepareError(f"the call changes the module's {name}: call module.eval() before")


def _holds_equinox(tree: Any) -> bool:
    """Whether there is an Equinox module in a tree, with leaves that are no arrays."""
    package = sys.modules.get("equinox")
    if package is None or all(map(_is_array, jax.tree.leaves(tree))):
        return False
    kind: type = package.Module
    return any(
        isinstance(leaf, kind) for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
    )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _of_tree(fun: Callable[..., Any], tree: Any) -> tuple[Callable[..., Any], Any]:
    """A function of the arrays of a tree of Equinox modules, with its own names of arguments."""
    import equinox

    params, rest = equinox.partition(tree, _is_array)

    @functools.wraps(fun)
    def call(params: Any, *args: Any, **kwargs: Any) -> Any:
        return fun(equinox.combine(params, rest), *args, **kwargs)

    return call, params


def _of_equinox(owner: Any, model: Any) -> tuple[Callable[..., Any], Any]:
    import equinox

    params, rest = equinox.partition(owner, _is_array)
    method = _method_name(owner, model)

    def call(params: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(equinox.combine(params, rest), method)(*args, **kwargs)

    return _named(call, type(owner).__name__), params


def _named(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    call.__name__ = name
    return call
