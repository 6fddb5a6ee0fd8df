"""What every pass is held to: same numbers, under every transformation, and twice equals once."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Required, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax._reference import in_float64
from lepton_jax.ir.export import to_callable
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.numerics.compare import compare_trees
from lepton_jax.rewrite import CheckStructure, PassManager, Pipeline, Report
from lepton_jax.targets import get_target


def run(
    fun: Callable[..., Any], *args: Any, passes: str, level: str = "reassociate", target: str = "cpu"
) -> tuple[Graph, Report]:
    """The rewritten graph of a function at these arguments, and the report."""
    return rewrite_jaxpr(jax.make_jaxpr(fun)(*args), getattr(fun, "__name__", "f"), passes, level, target)


def rewrite_jaxpr(
    closed: Any, name: str, passes: str, level: str = "reassociate", target: str = "cpu"
) -> tuple[Graph, Report]:
    """A closed jaxpr after a pipeline that checks its structure at every step."""
    manager = PassManager(
        Pipeline.parse(passes),
        get_target(target),
        level,  # type: ignore[arg-type]
        strict=True,
        instruments=[CheckStructure()],
    )
    return manager.run(closed, name)


def optimised(
    fun: Callable[..., Any], *args: Any, passes: str, level: str = "reassociate", target: str = "cpu"
) -> Graph:
    """The rewritten graph of a function at these arguments."""
    return run(fun, *args, passes=passes, level=level, target=target)[0]


def fired(fun: Callable[..., Any], *args: Any, passes: str, level: str = "reassociate") -> dict[str, int]:
    """How often each rule fired."""
    return run(fun, *args, passes=passes, level=level)[1].rules


class Options(TypedDict, total=False):
    """What `same`, `kept` and `all_kept` may be told; see `all_kept`."""

    passes: Required[str]
    level: str
    target: str
    grad: bool
    vmap: bool
    export: bool


def same(fun: Callable[..., Any], *args: Any, **options: Unpack[Options]) -> Graph:
    """Assert that a function keeps its meaning, as `kept` does.

    Returns:
        The rewritten graph.
    """
    return kept(fun, *args, **options)[0]


def kept(fun: Callable[..., Any], *args: Any, **options: Unpack[Options]) -> tuple[Graph, Report]:
    """Assert that a function keeps its meaning: value, jit, gradient, vmap, export, and twice equals once.

    Args:
        fun: a function of arrays that returns an array or a tree of them.
        args: arrays.
        options: as `all_kept` has them.

    Returns:
        The rewritten graph, and the report.
    """
    [result] = all_kept({"f": (fun, args)}, **options).values()
    return result


def all_kept(
    programs: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]],
    *,
    passes: str,
    level: str = "reassociate",
    target: str = "cpu",
    grad: bool = True,
    vmap: bool = True,
    export: bool = True,
) -> dict[str, tuple[Graph, Report]]:
    """Assert that functions keep their meaning, as `kept` does.

    All are compiled as one program, because nearly all of the time goes to compiling: what is the same in
    several of them is compiled once.

    Args:
        programs: functions and their arguments, by the names under which failures are reported.
        target: what the passes rewrite for, whatever machine the test runs on.
        grad: compare the gradients with respect to all floating point arguments too.
        vmap: compare with the rewritten function under vmap over two stacked copies of the arguments too.
        export: check that `jax.export` takes it.

    Returns:
        The rewritten graphs and the reports, by name.
    """
    subjects = {name: Subject(fun, args, passes, level, target) for name, (fun, args) in programs.items()}
    pairs = [zip(subject.keys, subject.leaves, strict=True) for subject in subjects.values()]
    leaves = dict(itertools.chain.from_iterable(pairs))
    copies = [twice(leaf) for leaf in leaves.values() if vmap]

    def views(given: list[Any], stacked: list[Any]) -> dict[str, tuple[Any, Any, Any]]:
        single, double = dict(zip(leaves, given, strict=True)), dict(zip(leaves, stacked, strict=False))
        return {
            name: subject.views(single, double if vmap else None, grad) for name, subject in subjects.items()
        }

    def rewritten(given: list[Any]) -> list[Any]:
        single = dict(zip(leaves, given, strict=True))
        return [subject.rewritten(*subject.arguments(single)) for subject in subjects.values()]

    found = jax.jit(views)(list(leaves.values()), copies)
    if export:
        assert jax.export.export(jax.jit(rewritten))(list(leaves.values())).mlir_module_serialized
    for name, subject in subjects.items():
        subject.compare(name, *found[name])
        subject.rewrite_again(passes, level, target)
    return {name: (subject.graph, subject.report) for name, subject in subjects.items()}


def identity(leaf: Any) -> Any:
    """What is the same for two arguments that may be one."""
    array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return id(leaf)
    return str(jax.typeof(array)), type(leaf), np.asarray(array).tobytes()


class Subject:
    """A function, its arguments, and what the passes make of it."""

    def __init__(
        self, fun: Callable[..., Any], args: tuple[Any, ...], passes: str, level: str, target: str
    ) -> None:
        self.fun, self.args, self.exact = fun, args, level == "exact"
        self.closed, shapes = jax.make_jaxpr(fun, return_shape=True)(*args)
        self.tree = jax.tree.structure(shapes)
        self.graph, self.report = rewrite_jaxpr(self.closed, "f", passes, level, target)
        self.flat = to_callable(self.graph)
        types = map(jnp.result_type, args)
        self.leaves, self.structure = jax.tree.flatten(args)
        self.keys = [identity(leaf) for leaf in self.leaves]
        self.moving = tuple(i for i, dtype in enumerate(types) if jnp.issubdtype(dtype, jnp.floating))

    def rewritten(self, *args: Any) -> Any:
        """The function after the passes."""
        return jax.tree.unflatten(self.tree, map(jnp.asarray, self.flat(*jax.tree.leaves(args))))

    def arguments(self, leaves: dict[Any, Any]) -> Any:
        """Its arguments, made of leaves by their identities."""
        return jax.tree.unflatten(self.structure, [leaves[key] for key in self.keys])

    def views(
        self, single: dict[Any, Any], double: dict[Any, Any] | None, grad: bool
    ) -> tuple[Any, Any, Any]:
        """What the function and the rewritten one give, with gradients; and the rewritten one under vmap."""
        args = self.arguments(single)

        def both(fun: Callable[..., Any]) -> tuple[Any, Any]:
            return fun(*args), gradient(fun, self.moving)(*args) if grad and self.moving else ()

        batch = [] if double is None or not args else [jax.vmap(self.rewritten)(*self.arguments(double))]
        return both(self.fun), both(self.rewritten), batch

    def compare(self, name: str, expected: Any, result: Any, batch: list[Any]) -> None:
        """Assert that what `views` found is the same."""

        def reference() -> Any:
            wide = in_float64(from_jaxpr(self.closed))
            return {name: jax.tree.unflatten(self.tree, wide(*self.leaves))}

        def two_references() -> Any:
            return jax.tree.map(twice, reference())

        two = jax.tree.map(twice, expected[0])

        check({name: expected[0]}, {name: result[0]}, reference, self.exact)
        check({name: expected[1]}, {name: result[1]})
        for array in batch:
            check({name: two}, {name: array}, two_references)

    def rewrite_again(self, passes: str, level: str, target: str) -> None:
        """Assert that the passes leave what they have made as it is."""
        traced = jax.make_jaxpr(self.flat)(*self.closed.in_avals)  # JAX may order a loop's constants anew
        again, _ = rewrite_jaxpr(traced, "f", passes, level, target)
        unchanged = self.graph.to_text(), from_jaxpr(traced, "f").to_text()
        assert again.to_text() in unchanged, "twice is not once"


def twice(array: Any) -> Any:
    """Two copies of an array along a new first axis; numpy stacks them without compiling anything."""
    array = jnp.asarray(array)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jnp.stack([array] * 2)
    return np.stack([np.asarray(array)] * 2)


def check(
    expected: Any, result: Any, reference: Callable[[], Any] | None = None, exact: bool = False
) -> None:
    """Assert that two results are equal up to rounding.

    Args:
        reference: computes the result in higher precision, which is asked for only where the two differ by
            more than rounding does at best: it allows the error that the plain program has too.
    """
    difference = compare_trees(expected, result, exact=exact)
    if not difference.ok and reference is not None:
        difference = compare_trees(expected, result, reference(), exact=exact)
    assert difference.ok, str(difference)


def bitwise(fun: Callable[..., Any], *args: Any, passes: str) -> None:
    """Assert that at level `exact` every bit stays, signs of zeros included; NaN is one number.

    Every operation runs by itself, and is compiled once for all tests that have it.
    """
    flat = to_callable(optimised(fun, *args, passes=passes, level="exact"))
    plain = to_callable(from_jaxpr(jax.make_jaxpr(fun)(*args)))
    leaves = jax.tree.leaves(args)
    same_bits(plain(*leaves), flat(*leaves), "f")


def all_bitwise(programs: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]], *, passes: str) -> None:
    """Assert of several functions what `bitwise` does, all compiled as one program.

    Args:
        programs: functions and their arguments, by the names under which failures are reported.
    """
    leaves = {name: jax.tree.leaves(args) for name, (_, args) in programs.items()}
    pairs = {
        name: (
            to_callable(from_jaxpr(jax.make_jaxpr(fun)(*args))),
            to_callable(optimised(fun, *args, passes=passes, level="exact")),
        )
        for name, (fun, args) in programs.items()
    }

    def results(leaves: dict[str, list[Any]]) -> dict[str, list[list[Any]]]:
        return {name: [fun(*leaves[name]) for fun in pair] for name, pair in pairs.items()}

    for name, found in jax.jit(results, compiler_options=OP_BY_OP)(leaves).items():
        same_bits(found[0], found[1], name)


def same_bits(expected: list[Any], result: list[Any], name: str) -> None:
    """Assert that arrays are the same in type and to the bit, but for NaN."""
    for a, b in zip(expected, result, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        np.testing.assert_array_equal(_readable(a), _readable(b), err_msg=name)


OP_BY_OP: dict[str, Any] = {"xla_disable_hlo_passes": "algsimp,fusion"}
"""Options with which XLA gives every operation a loop of its own, which rounds where the operation ends."""
if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):  # off for speed; they alone pad by < 0
    OP_BY_OP["xla_cpu_use_fusion_emitters"] = True


def _readable(array: Any) -> Any:
    """Numbers that compare equal only if they are the same to the bit, or both NaN."""
    numbers = np.asarray(array)
    if not jnp.issubdtype(numbers.dtype, jnp.inexact):
        return numbers
    wide = numbers.astype(np.complex128)
    parts = np.stack([wide.real, wide.imag])
    return np.stack([parts, np.where(np.isnan(parts), 0.0, np.copysign(1.0, parts))])


def gradient(fun: Callable[..., Any], argnums: tuple[int, ...]) -> Callable[..., Any]:
    """The gradient of a weighted sum of all float results, with respect to some arguments.

    Each element has a weight of its own: that of a plain sum is nothing but rounding where results always add
    up to the same, as a softmax does.
    """

    def total(*args: Any) -> Any:
        floats = [o for o in jax.tree.leaves(fun(*args)) if jnp.issubdtype(o.dtype, jnp.floating)]
        return sum((jnp.sum(o.astype(jnp.float32) * weights(o.shape)) for o in floats), jnp.zeros(()))

    return jax.jit(jax.grad(total, argnums))


def weights(shape: tuple[int, ...]) -> Any:
    """Of both signs, no two alike."""
    return np.cos(np.arange(math.prod(shape), dtype=np.float32)).reshape(shape)
