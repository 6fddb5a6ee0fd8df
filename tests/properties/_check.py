"""Programs before and after a rule, run together and compared.

Nearly all of the time goes to compiling, so many programs become one; barriers between operations keep
XLA from changing either side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax._reference import in_float64
from lepton_jax.ir.export import bind
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.numerics.compare import compare_trees
from tests.properties._apply import Instance, is_real
from tests.properties._draw import FLAVOURS, Array, Flavour, values

_ROUNDINGS: Final = 4
"""Numbers on the way may have been rounded so often."""


@dataclass(frozen=True)
class Failure:
    """A promise that a rule broke."""

    instance: Instance
    what: str
    flavour: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what} on {self.flavour} inputs: {self.reason}\n{self.instance}"


def check(instances: Sequence[Instance], seed: Sequence[int]) -> list[Failure]:
    """Compare every program before and after its rule, on inputs of every flavour.

    Level `exact`: the same to the bit; NaN is one value, and subnormal numbers count as zero of their sign.
    Looser levels: finite stays finite, the error is within what rounding explains, measured against
    float64, and NaN and infinities that come in do not vanish. Gradients: within rounding, at finite numbers.
    """
    if not instances:
        return []
    every = [jax.tree.leaves(instance.program.args) for instance in instances]
    both = jax.jit(lambda given: [_views(instances, given, before) for before in (True, False)])
    given: dict[Flavour, list[Any]] = {}
    for number, flavour in enumerate(FLAVOURS):
        rng = np.random.default_rng([*seed, number])
        given[flavour] = [[values(a, flavour, rng) for a in args] for args in every]
    found = {flavour: both(numbers) for flavour, numbers in given.items()}

    def failure_of(i: int, references: dict[Flavour, Any]) -> Failure | None:
        for flavour in FLAVOURS:
            if flavour in instances[i].program.flavours:
                expected, result = (views[i] for views in found[flavour])
                failure = _compare(instances[i], flavour, expected, result, references.get(flavour))
                if failure is not None:
                    return failure
        return None

    suspects = [i for i in range(len(instances)) if failure_of(i, {})]  # float64 only ever excuses
    if not suspects:
        return []
    some = [instances[i] for i in suspects]
    shapes = [[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in every[i]] for i in suspects]
    traced, outputs = jax.make_jaxpr(lambda g: _views(some, g, before=True), return_shape=True)(shapes)
    wide, structure = in_float64(from_jaxpr(traced)), jax.tree.structure(outputs)
    exacts = {
        flavour: jax.tree.unflatten(structure, wide(*jax.tree.leaves([numbers[i] for i in suspects])))
        for flavour, numbers in given.items()
    }
    failures = (
        failure_of(i, {flavour: views[number] for flavour, views in exacts.items()})
        for number, i in enumerate(suspects)
    )
    return [failure for failure in failures if failure is not None]


def _views(instances: Sequence[Instance], given: Sequence[Any], before: bool) -> list[dict[str, Any]]:
    """The results and gradients of all programs."""
    found = []
    for instance, args in zip(instances, given, strict=True):
        fun = op_by_op(instance.before if before else instance.after)
        view = {"value": fun(*args)}
        if instance.moving:
            view["gradient"] = _gradient(fun, instance.moving, args)
        found.append(view)
    return found


def op_by_op(graph: Graph) -> Callable[..., list[Any]]:
    """A function that evaluates a graph one operation after the other, so that XLA merges none of them."""

    def fun(*args: Any) -> list[Any]:
        env: dict[Value, Any] = dict(zip(graph.inputs, map(lax.optimization_barrier, args), strict=True))

        def read(value: Value) -> Any:
            return value.const if value.is_const else env[value]

        for node in graph:
            results = lax.optimization_barrier(tuple(bind(node, [read(v) for v in node.operands])))
            env.update(zip(node.results, results, strict=True))
        return [jnp.asarray(read(value)) for value in graph.outputs]

    return fun


def _gradient(fun: Callable[..., list[Any]], moving: Sequence[int], args: Sequence[Any]) -> list[Any]:
    """The gradient of a weighted sum of all real results, with weights that no symmetry hides."""

    def total(free: Sequence[Any]) -> Any:
        filled = list(args)
        for i, x in zip(moving, free, strict=True):
            filled[i] = x
        parts = [_weighted(i, out) for i, out in enumerate(fun(*filled)) if is_real(out.dtype)]
        return sum(parts, jnp.zeros(()))

    return list(jax.grad(total)([args[i] for i in moving]))


def _weighted(number: int, out: Any) -> Any:
    wide = jnp.promote_types(out.dtype, jnp.float32)
    weights = np.cos(np.arange(out.size) + number).reshape(out.shape).astype(wide)
    return jnp.sum(out.astype(wide) * weights)


def _compare(
    instance: Instance, flavour: Flavour, expected: Any, result: Any, reference: Any
) -> Failure | None:
    """What is wrong; without a reference, also what float64 might excuse."""
    exact_value, exact_gradient = (reference and reference.get(view) for view in ("value", "gradient"))
    program = instance.program
    hostile = flavour in ("special", "extreme")
    if instance.level == "exact" and not program.rounds:
        reason = _different_bits(expected["value"], result["value"])
    else:
        overflow = hostile and bool(program.overflows)
        found = compare_trees(expected["value"], result["value"], exact_value, overflow=overflow)
        reason = found.reason
        known = reason and exact_value is not None
        if known and _is_nearer(expected["value"], result["value"], exact_value, program.along):
            reason = ""
        if not reason and not program.drops and flavour == "special":
            reason = _vanished(expected["value"], result["value"], exact_value)
    if reason:
        return Failure(instance, "value", flavour, reason)
    if instance.moving and flavour != "special" and (flavour in ("random", "extreme") or not program.kinks):
        gradients = (expected["gradient"], result["gradient"], exact_gradient)
        found = compare_trees(*gradients, overflow=hostile)
        if not found.ok:
            return Failure(instance, "gradient", flavour, found.reason)
    return None


def _is_nearer(
    expected: Sequence[Any], result: Sequence[Any], reference: Sequence[Any], along: float
) -> bool:
    """Whether no element is further from float64 than the plain program's, or than `along` rounded."""
    for arrays in zip(expected, result, reference, strict=True):
        a, b, r = map(np.asarray, arrays)
        if a.shape != b.shape or a.shape != r.shape or a.dtype != b.dtype:
            return False
        if not jnp.issubdtype(a.dtype, np.inexact):
            if not np.array_equal(a, b):
                return False
            continue
        slack = _ROUNDINGS * along * float(jnp.finfo(a.dtype).eps)
        finite = np.isfinite(a.astype(r.dtype))
        a, b, r = a.astype(r.dtype)[finite], b.astype(r.dtype)[finite], r[finite]
        if not (np.isfinite(b).all() and (np.abs(b - r) <= np.abs(a - r) + slack).all()):
            return False
    return True


def _different_bits(expected: Sequence[Any], result: Sequence[Any]) -> str:
    """What differs to the bit."""
    for number, (a, b) in enumerate(zip(expected, result, strict=True)):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"result {number} is {b.dtype}{list(b.shape)} instead of {a.dtype}{list(a.shape)}"
        left, right = _readable(a), _readable(b)
        differs = ~((left == right) | (np.isnan(left) & np.isnan(right)))
        differs |= ~np.isnan(left) & (np.signbit(left) != np.signbit(right))
        if differs.any():
            some = tuple(int(d[0]) for d in np.nonzero(differs))
            return f"result {number} at {some} is {right[some]!r} instead of {left[some]!r}"
    return ""


def _readable(array: Array) -> Array:
    """An array as float64, complex numbers as pairs, subnormals as zeros; whole numbers as they are."""
    if not jnp.issubdtype(array.dtype, np.inexact):
        return array.astype(np.longdouble)
    tiny = float(jnp.finfo(array.dtype).tiny)
    if np.issubdtype(array.dtype, np.complexfloating):
        array = np.stack([array.real, array.imag])
    wide = array.astype(np.float64)
    return np.where(np.abs(wide) < tiny, np.copysign(0.0, wide), wide)


def _vanished(expected: Sequence[Any], result: Sequence[Any], reference: Sequence[Any] | None) -> str:
    """Whether a NaN or infinity became a number that is none in float64 either, if that is known."""
    unknown = [np.full(np.shape(a), np.nan) for a in expected]
    for number, arrays in enumerate(zip(expected, result, reference or unknown, strict=True)):
        a, b, r = map(np.asarray, arrays)
        if not jnp.issubdtype(a.dtype, np.inexact) or a.shape != r.shape:
            continue
        a, b = (x.astype(np.complex128) for x in (a, b))
        gone = ~np.isfinite(a) & ~np.isfinite(r) & np.isfinite(b)
        if gone.any():
            return f"{int(gone.sum())} NaN or infinite elements of result {number} became finite"
    return ""
