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
from lepton_jax.ir.paths import leaf_paths
from lepton_jax.rewrite import PassManager, Pipeline
from lepton_jax.targets import get_target


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
    if _is_a(owner, "equinox", "Module") and not _wraps_function(owner):
        return *_of_equinox(owner, model), tuple(args)
    fun = model.apply if _is_a(model, "flax.linen", "Module") else model
    if not callable(fun):
        raise TypeError(f"lepton expects a function or a module, not {type(model).__name__}")
    if inside := _module_inside(fun):
        raise TypeError(
            f"lepton cannot take parameters out of a transformed {inside}: give a function of the module, "
            "the module, and a sample of each input, as in (lambda module, x: jax.vmap(module)(x), module, x)"
        )
    if not args:
        raise TypeError("the parameters are missing: give function, params, and a sample of each input")
    if _holds_equinox(args[0]):
        return *_of_tree(fun, args[0]), tuple(args[1:])
    return fun, args[0], tuple(args[1:])


def _is_a(model: Any, module: str, name: str) -> bool:
    """Whether something is an instance of a class of a package, if that was imported at all."""
    package = sys.modules.get(module)
    return package is not None and isinstance(model, getattr(package, name))


def _wraps_function(module: Any) -> bool:
    """Whether a module is a function of parameters that a decorator, `eqx.filter_jit` say, has wrapped."""
    inside = getattr(module, "__wrapped__", None)
    return isinstance(inside, types.FunctionType) and not any(map(_is_array, jax.tree.leaves(module)))


def _module_inside(function: Any) -> str | None:
    """The class of the module that JAX has transformed, itself or a method of it, to give a function."""
    while (function := _inner(function)) is not None:
        owner = getattr(function, "__self__", function)
        is_equinox = _is_module(owner) and any(map(_is_array, jax.tree.leaves(owner)))
        if is_equinox or _is_a(owner, "flax.nnx", "Module"):
            return type(owner).__name__
    return None


def _inner(function: Any) -> Any:
    """What a transformation, or `functools.partial`, has made a function of, if it was made of something."""
    if isinstance(function, functools.partial):
        return function.func
    inside = getattr(function, "__wrapped__", None)
    if inside is not None or not str(getattr(function, "__module__", "")).startswith("jax."):
        return inside
    cells = getattr(function, "__closure__", None) or ()  # JAX gives no `__wrapped__` to what has no name
    found = (cell.cell_contents for cell in cells)
    return next((each for each in found if _is_a(each, "flax.nnx", "Module")), None)


def _method_name(owner: Any, model: Any) -> str:
    return "__call__" if model is owner else str(model.__func__.__name__)


def _of_nnx(owner: Any, model: Any) -> tuple[Callable[..., Any], Any]:
    from flax import nnx

    definition, state = nnx.split(owner)
    method = _method_name(owner, model)

    def plain(params: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        module = nnx.merge(definition, params)
        return getattr(module, method)(*args, **kwargs), module

    def call(params: Any, *args: Any, **kwargs: Any) -> Any:
        result, module = plain(params, *args, **kwargs)
        changed = _changed(params, nnx.to_pure_dict(nnx.state(module)))
        if not changed:
            return result
        counts = set(leaf_paths("", nnx.to_pure_dict(nnx.state(module, nnx.RngCount))))
        if written := [path for path in changed if path not in counts]:
            raise PrepareError(
                f"the call changes the module's {_shown(written[0])}: call module.eval() before"
            )
        drawn = leaf_paths("", nnx.to_pure_dict(nnx.state(module, nnx.RngState)))
        if read := _read(lambda params: plain(params, *args, **kwargs)[0], params, drawn):
            raise PrepareError(
                "the result depends on random numbers that the call draws from the module's "
                f"{_shown(read[0])}: call module.eval() before, or draw them outside and hand them over"
            )
        return result

    return _named(call, type(owner).__name__), nnx.to_pure_dict(state)


def _changed(before: Any, after: Any) -> list[str]:
    """The paths of the arrays of a module that a call has written.

    Raises:
        PrepareError: there are more of them than before.
    """
    old, new = jax.tree.leaves(before), jax.tree.leaves(after)
    if len(old) != len(new):
        raise PrepareError("the call adds state to the module: call the module once before")
    triples = zip(leaf_paths("", before), old, new, strict=True)
    return [path for path, left, right in triples if left is not right]


def _read(fun: Callable[[Any], Any], params: Any, among: Sequence[str]) -> list[str]:
    """The paths of those arrays that a function's results depend on.

    A recurrent network draws a key for its first state, which is nothing but zeros.
    """
    manager = PassManager(Pipeline.parse("inline,dce"), get_target(None))
    graph, _ = manager.run(jax.make_jaxpr(fun)(params), "call")
    wanted = set(among)
    pairs = zip(leaf_paths("", params), graph.inputs, strict=True)
    return [path for path, value in pairs if path in wanted and value.uses]


def _shown(path: str) -> str:
    return path.strip("/")


def _holds_equinox(tree: Any) -> bool:
    """Whether there is an Equinox module in a tree, with leaves that are no arrays."""
    if all(map(_is_array, jax.tree.leaves(tree))):
        return False
    return any(map(_is_module, jax.tree.leaves(tree, is_leaf=_is_module)))


def _is_module(x: Any) -> bool:
    return _is_a(x, "equinox", "Module")


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
    method = _method_name(owner, model)

    def call(params: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(params, method)(*args, **kwargs)

    return _of_tree(_named(call, type(owner).__name__), owner)


def _named(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    call.__name__ = name
    return call
