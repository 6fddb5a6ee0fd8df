"""Programs cut in two: `prepare` runs once on the parameters, `apply` at each call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from lepton_jax._calibrate import Calibration
from lepton_jax._inputs import Inputs, argument_names, name_inputs
from lepton_jax._options import Options, StaticArguments
from lepton_jax._prepared import Form, Prepared, PrepareError
from lepton_jax._stage import (
    Program,
    dynamic_leaves,
    evaluate_as,
    forget_tracers,
    kind_of,
    manager_for,
    trace_call,
)
from lepton_jax.ir import _jax
from lepton_jax.ir._varying import marking
from lepton_jax.ir.content import content_key
from lepton_jax.ir.export import evaluate
from lepton_jax.ir.split import Split, split
from lepton_jax.rewrite import Pipeline


def last_passes(turn: str = "auto", on_mesh: bool = False) -> str:
    """What runs after the user's passes.

    Args:
        turn: which weights are turned, see `products`.
        on_mesh: products of one input stay apart: where columns are split, devices do not have the parts
            of a merged product that are cut out of it.
    """
    merge = "" if on_mesh else "merge-products,"
    last = f"products{{turn={turn},unsigned=true}},early,cse,dce,updates,batched-products,ragged-products"
    return f"cse,requantize,cse,{merge}integer-convolution,weight-only,{last}"


@dataclass(frozen=True)
class Bound:
    """A program at one set of shapes, cut at its binding time.

    Attributes:
        program: the whole of it.
        parts: the two parts.
        form: what `prepare` makes.
        out_tree: of the results.
        params: the positions of parameters among the inputs.
        paths: what the inputs are called.
        seen: what calibration found, for the last inputs of `prepare`.
    """

    program: Program
    parts: Split
    form: Form
    out_tree: Any
    params: frozenset[int]
    paths: tuple[str, ...]
    seen: tuple[Any, ...]


def bind(
    fun: Callable[..., Any],
    options: Options,
    static: StaticArguments,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    calibration: Calibration,
    turn: str = "auto",
) -> Bound:
    """Trace a call, run the passes, and cut the program.

    Args:
        args: arrays, tracers or `jax.ShapeDtypeStruct`s.
        calibration: what was seen in calibration, if there was one.
        turn: which floating-point weights are turned, see the pass `products`.

    Raises:
        PrepareError: no parameters are named, or they are only a part of an argument.
    """
    if not options.params:
        raise PrepareError("say which arguments are parameters: lepton.optimize(..., params='params')")
    inputs = name_inputs(fun, options.params, static, args, kwargs)
    arguments = whole_arguments(fun, inputs, static, args, kwargs)
    start = time.perf_counter()
    jaxpr, out_tree = trace_call(fun, static, args, kwargs)
    trace_seconds = time.perf_counter() - start
    name = getattr(fun, "__name__", "f")
    last = last_passes(turn, options.spread is not None)
    pipeline = Pipeline((*options.pipeline.steps, *Pipeline.parse(last).steps))
    seen: list[Any] = []
    manager = manager_for(options, pipeline=pipeline)
    graph, report = manager.run(
        jaxpr, name, inputs.params, inputs.paths, calibration=calibration, seen=seen, is_bound=True
    )
    report.trace_seconds = trace_seconds
    jaxpr = _jax.forget_tracers(jaxpr)
    forget_tracers(graph)
    first = len(inputs.paths)
    parts = split(graph, inputs.params | set(range(first, first + len(seen))))
    given = [args[i] if i is not None else kwargs[name] for name, i in arguments]
    leaves, tree = jax.tree.flatten(given)
    form = Form(
        content_key(parts.prepare),
        _names(parts, inputs),
        arguments,
        (tuple(map(kind_of, leaves)), tree),
        report.turned,
    )
    program = Program(jaxpr, graph, report, name, options)
    return Bound(program, parts, form, out_tree, inputs.params, inputs.paths, tuple(seen))


def whole_arguments(
    fun: Callable[..., Any],
    inputs: Inputs,
    static: StaticArguments,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> tuple[tuple[str, int | None], ...]:
    """The arguments that the parameters are, by name and position."""
    names: list[tuple[str, int | None]] = [
        (name, i) for i, name in enumerate(argument_names(fun, len(args))) if i not in static.positions
    ]
    names += [(name, None) for name in sorted(set(kwargs) - static.names)]
    found: list[tuple[str, int | None]] = []
    start = 0
    for name, position in names:
        count = len(jax.tree.leaves(kwargs[name] if position is None else args[position]))
        inside = [i in inputs.params for i in range(start, start + count)]
        start += count
        if all(inside) and count:
            found.append((name, position))
        elif any(inside):
            raise PrepareError(
                f"only a part of the argument {name!r} is parameters: "
                "hand them over as an argument of their own"
            )
    return tuple(found)


def _names(parts: Split, inputs: Inputs) -> tuple[str, ...]:
    """A name for each array that is kept: of the parameters that it is made of, with a number if need be."""
    found: dict[str, int] = {}
    names: list[str] = []
    for sources in parts.sources:
        paths = [inputs.paths[i] for i in sources if i < len(inputs.paths)] or ["calibration"]
        name = "+".join(paths[:3]) + ("+..." if len(paths) > 3 else "")
        found[name] = found.get(name, 0) + 1
        names.append(name if found[name] == 1 else f"{name}#{found[name]}")
    return tuple(names)


def prepare_leaves(bound: Bound, leaves: Sequence[Any]) -> Prepared:
    """Run `prepare` on the parameters, flat."""

    def prepare(*params: Any) -> list[Any]:
        with marking(params):
            return evaluate(bound.parts.prepare, params)

    return Prepared(jax.jit(prepare)(*leaves, *bound.seen), bound.form)


def apply_bound(bound: Bound, prepared: Prepared, late: Sequence[Any]) -> Any:
    """Run `apply` on prepared parameters and the other inputs, flat.

    Raises:
        PrepareError: the parameters were prepared for another program.
    """
    if prepared.form.key != bound.form.key:
        raise PrepareError(_differs(prepared.form, bound.form))
    _check_kept(bound, prepared)
    given = [*prepared.arrays, *late]
    with marking(given):
        results = evaluate_as(bound.program.jaxpr, bound.parts.apply, given)
    return jax.tree.unflatten(bound.out_tree, results)


def _check_kept(bound: Bound, prepared: Prepared) -> None:
    """Raise where arrays were put into prepared parameters that are not those which `prepare` makes.

    Raises:
        PrepareError: with the name of the first.
    """
    wanted = [value.aval for value in bound.parts.prepare.outputs]
    if len(wanted) != len(prepared.arrays):
        raise PrepareError(f"these are {len(prepared.arrays)} prepared arrays, {len(wanted)} are wanted")
    for name, array, aval in zip(prepared.form.names, prepared.arrays, wanted, strict=True):
        shape, dtype, _ = kind_of(array)
        if shape != aval.shape or dtype != aval.dtype:
            wanted_one = f"{aval.dtype}{list(aval.shape)}"
            raise PrepareError(
                f"the prepared array {name} is {dtype}{list(shape)}, and {wanted_one} is wanted"
            )


def _differs(given: Form, wanted: Form) -> str:
    extra = sorted(set(wanted.names) ^ set(given.names))
    which = f" (they differ in {', '.join(extra)})" if extra else ""
    return (
        "these parameters were prepared for arguments of other shapes or dtypes, or under another "
        f"jax.set_mesh, whose program keeps them in another form{which}: prepare them again, as for this call"
    )


def late_leaves(
    bound: Bound, static: StaticArguments, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """The arrays of a call that are not parameters."""
    leaves = dynamic_leaves(static, args, kwargs)
    return [leaf for i, leaf in enumerate(leaves) if i not in bound.params]
