"""`lepton.verify`: is the optimised function the function?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax._api import Optimized, optimize
from lepton_jax._reference import in_float64
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.numerics.compare import Difference, compare_trees
from lepton_jax.numerics.samples import FLAVOURS, sample
from lepton_jax.rewrite import LeptonError, Pipeline


class VerificationError(LeptonError):
    """An optimised function differs from the function by more than rounding."""


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        what: `value` or `gradient`.
        inputs: `given`, or the flavour of the sampled inputs.
        difference: what was found.
    """

    what: str
    inputs: str
    difference: Difference

    def __str__(self) -> str:
        state = "ok  " if self.difference.ok else "FAIL"
        return f"{state} {self.what:<8} on {self.inputs:<8} inputs: {self.difference}"


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        checks: every comparison.
        notes: what was not compared, and why.
    """

    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every comparison came out right."""
        return all(check.difference.ok for check in self.checks)

    @property
    def worst(self) -> float:
        """The largest error, in units of what float64 says is the plain program's rounding."""
        return max((check.difference.worst for check in self.checks), default=0.0)

    def raise_if_failed(self) -> Verification:
        """Return itself, or raise.

        Raises:
            VerificationError: a comparison failed.
        """
        if not self.ok:
            raise VerificationError(str(self))
        return self

    def __str__(self) -> str:
        head = f"{'verified' if self.ok else 'NOT VERIFIED'}, worst error {self.worst:.2g} units"
        return "\n".join([head, *map(str, self.checks), *(f"note: {note}" for note in self.notes)])


def verify(
    fun: Callable[..., Any],
    *args: Any,
    level: str | None = None,
    grad: bool = True,
    samples: int = 2,
    seed: int = 0,
) -> Verification:
    """Compare a function and its optimised form, values and gradients, on hostile inputs.

    Each is run on the arguments given, and on random, extreme (from the least to the
    greatest magnitude), special (NaN, infinities, signed zeros), all-zero and all-one
    inputs of their shapes. Integers keep the values given where arrays are given, since they
    may be indices. JAX differentiates the rewritten program, so its gradient may add in another
    order and overflow elsewhere; on extreme inputs gradients are compared where both are
    finite. Errors are measured against the same program in float64: a unit is the
    rounding error of the plain program itself. Passes that approximate (`quantize`, `precision`) are
    left out, and named in the notes.

    Args:
        fun: a function, or what `optimize` made of one.
        args: its arguments: arrays, Python scalars, or `jax.ShapeDtypeStruct`s.
        level: the semantics level to optimise at and to hold the result to; default: that
            of `fun`, or `reassociate`.
        grad: compare gradients too, with respect to all floating point arguments.
        samples: how many random inputs to try.
        seed: where the randomness starts.

    Returns:
        A `Verification`: `.ok`, `.worst`, `.checks`; print it for the whole story.

    Raises:
        TypeError: there are no arguments to infer shapes from, but the function wants some.

    Example:
        >>> verify(jnp.tanh, jnp.ones(3)).ok
        True
    """
    optimised = fun if isinstance(fun, Optimized) else optimize(fun, level=level or "reassociate")
    if level is not None and optimised.options.level != level:
        optimised = optimize(optimised.__wrapped__, optimised.options.pipeline, level=level)
    left_out = optimised.options.pipeline.approximate
    found = _Verifier(_without(optimised, left_out), args, seed).run(samples, grad)
    if left_out:
        found.notes.append(f"not verified, since they approximate: {', '.join(left_out)}")
    return found


def _without(optimised: Optimized[..., Any], names: Sequence[str]) -> Optimized[..., Any]:
    """The function optimised without some passes."""
    if not names:
        return optimised
    options = optimised.options
    pipeline = functools.reduce(Pipeline.without, names, options.pipeline)
    return Optimized(optimised.__wrapped__, replace(options, pipeline=pipeline))


class _Verifier:
    def __init__(self, optimised: Optimized[..., Any], args: tuple[Any, ...], seed: int) -> None:
        self.optimised = optimised
        self.plain: Callable[..., Any] = optimised.__wrapped__
        self.exact = optimised.options.level == "exact"
        self.args = args
        self.rng = np.random.default_rng(seed)
        self.checks: list[Check] = []
        self.notes: list[str] = []
        leaves, self.tree = jax.tree.flatten(args)
        self.floats = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]
        self.leaves = leaves

    def run(self, samples: int, grad: bool) -> Verification:
        statics = self.optimised.options.static_argnums or self.optimised.options.static_argnames
        if statics:
            raise TypeError("verify takes a function without static arguments: close over them")
        programs: list[tuple[str, Callable[..., Any], Callable[..., Any]]] = [
            ("value", self.plain, self.optimised)
        ]
        if grad and self.floats:
            programs.append(("gradient", self.gradient(self.plain), self.gradient(self.optimised)))
        elif grad:
            self.notes.append("no floating point arguments, so no gradients")
        for what, plain, optimised in programs:
            self.compare(what, plain, optimised, samples)
        return Verification(self.checks, self.notes)

    def compare(self, what: str, plain: Any, optimised: Any, samples: int) -> None:
        try:
            jaxpr = jax.make_jaxpr(plain)(*self.args)
        except TypeError as error:
            if what == "value":
                raise
            self.notes.append(f"no gradients: {str(error).splitlines()[0]}")
            return
        reference = in_float64(from_jaxpr(jaxpr))
        run_plain, run_optimised = jax.jit(plain), jax.jit(optimised)
        for name, inputs in self.inputs(samples):
            args = jax.tree.unflatten(self.tree, inputs)
            expected, result = run_plain(*args), run_optimised(*args)
            exact = jax.tree.unflatten(jax.tree.structure(expected), reference(*inputs))
            difference = compare_trees(
                expected,
                result,
                exact,
                exact=self.exact and what == "value",
                overflow=what == "gradient" and name == "extreme",
            )
            self.checks.append(Check(what, name, difference))

    def inputs(self, samples: int) -> list[tuple[str, list[Any]]]:
        """Named lists of flat arguments."""
        found = []
        if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in self.leaves):
            found.append(("given", self.leaves))
        for flavour in FLAVOURS:
            for _ in range(samples if flavour == "random" else 1):
                found.append((flavour, [self.sampled(leaf, flavour) for leaf in self.leaves]))
        return found

    def sampled(self, leaf: Any, flavour: Any) -> Any:
        """A leaf of this flavour; given integers, flags and keys stay."""
        abstract = isinstance(leaf, jax.ShapeDtypeStruct)
        if not abstract and not _is_float(leaf):
            return leaf
        if abstract and not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return sample(leaf, "random", self.rng)
        drawn = sample(leaf if abstract else jax.typeof(leaf), flavour, self.rng)
        return drawn.item() if isinstance(leaf, (float, complex)) else drawn

    def gradient(self, fun: Callable[..., Any]) -> Callable[..., list[Any]]:
        """The gradient of a weighted sum of all float results, as a function of the arguments."""

        @functools.wraps(fun)
        def grad(*args: Any) -> list[Any]:
            leaves, tree = jax.tree.flatten(args)

            def total(moving: Sequence[Any]) -> Any:
                filled = list(leaves)
                for i, leaf in zip(self.floats, moving, strict=True):
                    filled[i] = leaf
                outs = [o for o in jax.tree.leaves(fun(*jax.tree.unflatten(tree, filled))) if _is_float(o)]
                return sum((_weighted(i, o) for i, o in enumerate(outs)), jnp.zeros(()))

            return list(jax.grad(total)([leaves[i] for i in self.floats]))

        return grad


def _weighted(i: int, out: Any) -> Any:
    """A sum with weights that no symmetry of the program hides."""
    weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32) + i).reshape(out.shape)
    return jnp.sum(out.astype(jnp.promote_types(out.dtype, jnp.float32)) * weights)


def _is_float(leaf: Any) -> bool:
    if isinstance(leaf, (bool, int, float, complex)):
        return isinstance(leaf, float)
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.floating))
