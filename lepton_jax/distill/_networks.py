"""Teachers and students, whatever they are, as functions of parameters."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from lepton_jax._compile import Model
from lepton_jax._modules import as_function
from lepton_jax._trainable import Trainable
from lepton_jax._trained_part import TrainedPart, trained_leaves
from lepton_jax.rewrite import UsageError


@dataclass(frozen=True)
class Student:
    """A function that is trained.

    Attributes:
        call: from what is trained, the state, and inputs, to the output and the new state.
        trained: what is trained, at the start: a tree; None stands where something is not.
        state: what the function changes itself, such as running means; None if nothing.
        whole: the user's tree of parameters, of what is trained.
        name: of the function.
    """

    call: Callable[..., tuple[Any, Any]]
    trained: Any
    state: Any
    whole: Callable[[Any], Any]
    name: str


@dataclass(frozen=True)
class Teacher:
    """A function that is not trained.

    Attributes:
        call: from parameters and inputs to the output.
        params: its parameters; None where the function has them in it.
        name: of the function.
    """

    call: Callable[..., Any]
    params: Any
    name: str


def as_student(student: Any, frozen: Any) -> Student:
    """What is trained, of anything that can be.

    Args:
        student: `(fun, params)` or `(fun, params, state)`, a Trainable, an NNX or Equinox module, or what
            has a `fun` and `params`.
        frozen: patterns of paths of what is not trained.

    Raises:
        UsageError: it has no parameters to train.
    """
    if isinstance(student, Model):
        raise UsageError(
            "a compiled model cannot be trained: give lepton.trainable(...), or what it was made of"
        )
    if isinstance(student, Trainable):
        if frozen is not None:
            raise UsageError("say what is frozen to lepton.trainable")
        return Student(_stateless(student), student.params, None, lambda trained: trained, _name(student))
    if isinstance(student, tuple):
        return _of_tuple(student, frozen)
    if _is_a(student, "flax.nnx"):
        return _of_nnx(student, frozen)
    if _is_a(student, "equinox"):
        fun, params, _ = as_function(student, ())
        return _of_function(student, fun, params, frozen)
    if callable(getattr(student, "fun", None)) and hasattr(student, "params"):
        return _of_function(student.fun, student.fun, student.params, frozen)
    raise UsageError(
        f"a {type(student).__name__} has no parameters to train: "
        "give (fun, params), (linen_module, variables), a module with parameters, or lepton.trainable(...)"
    )


def as_teacher(teacher: Any) -> Teacher:
    """A function and its parameters, of a function of inputs, a module, or `(fun, params)`.

    Raises:
        UsageError: it cannot be called.
    """
    if isinstance(teacher, tuple) and len(teacher) == 2:
        fun, params, _ = as_function(teacher[0], (teacher[1],))
        return Teacher(fun, params, _name(teacher[0]))
    if isinstance(teacher, Trainable):
        return Teacher(teacher, teacher.params, _name(teacher))
    if isinstance(teacher, Model):
        return Teacher(lambda model, *inputs: model(*inputs), teacher, _name(teacher))
    if _is_a(teacher, "flax.nnx") or _is_a(teacher, "equinox"):
        fun, params, _ = as_function(teacher, ())
        return Teacher(fun, params, _name(teacher))
    if callable(teacher):
        return Teacher(lambda _, *inputs: teacher(*inputs), None, _name(teacher))
    raise UsageError(
        f"a teacher is a function of inputs, (fun, params), or a module, not a {type(teacher).__name__}"
    )


def _of_tuple(student: tuple[Any, ...], frozen: Any) -> Student:
    if len(student) not in (2, 3):
        raise UsageError(f"a student is (fun, params) or (fun, params, state), not {len(student)} things")
    fun, params, *state = student
    if not state:
        function, params, _ = as_function(fun, (params,))
        return _of_function(fun, function, params, frozen)
    part = TrainedPart(params, trained_leaves(fun, fun, params, frozen))

    def call(trained: Any, state: Any, *inputs: Any) -> tuple[Any, Any]:
        result = fun(part.whole(trained), state, *inputs)
        if not isinstance(result, tuple) or len(result) != 2:
            raise UsageError("a student with a state returns (output, new state)")
        return result

    return Student(call, part.start, state[0], part.whole, _name(fun))


def _of_function(given: Any, fun: Callable[..., Any], params: Any, frozen: Any) -> Student:
    part = TrainedPart(params, trained_leaves(given, fun, params, frozen))

    def whole_call(trained: Any, *inputs: Any) -> Any:
        return fun(part.whole(trained), *inputs)

    return Student(_stateless(whole_call), part.start, None, part.whole, _name(given))


def _of_nnx(module: Any, frozen: Any) -> Student:
    """What is no `nnx.Param` is its state: running means, keys of dropout."""
    from flax import nnx

    owner = module.__self__ if isinstance(module, types.MethodType) else module
    split: Any = nnx.split
    definition, params, rest = split(owner, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    method = "__call__" if owner is module else module.__func__.__name__
    part = TrainedPart(params, trained_leaves(_of_params, _of_params, params, frozen))

    def call(trained: Any, state: Any, *inputs: Any) -> tuple[Any, Any]:
        merged = nnx.merge(definition, part.whole(trained), state)
        output = getattr(merged, method)(*inputs)
        return output, nnx.to_pure_dict(split(merged, nnx.Param, ...)[2])

    return Student(call, part.start, rest, part.whole, type(owner).__name__)


def _of_params(params: Any) -> Any:
    """A function whose argument has the name that paths of parameters begin with."""
    return params


def _stateless(fun: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    def call(trained: Any, state: Any, *inputs: Any) -> tuple[Any, Any]:
        return fun(trained, *inputs), state

    return call


def _is_a(model: Any, package: str) -> bool:
    """Whether something is a module of a package, or a method of one."""
    owner = model.__self__ if isinstance(model, types.MethodType) else model
    found = sys.modules.get(package)
    return found is not None and isinstance(owner, found.Module)


def _name(model: Any) -> str:
    return getattr(model, "__name__", type(model).__name__)


def count(tree: Any) -> int:
    """How many numbers the floats of a tree have."""
    return sum(
        leaf.size for leaf in jax.tree.leaves(tree) if jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)
    )
