"""Calibration: batches run through the program, and what the passes asked to see there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp

from lepton_jax._batches import CalibrationError as CalibrationError
from lepton_jax._batches import batches_of, check_arrays, check_dtypes, is_finite
from lepton_jax._inputs import name_inputs
from lepton_jax._options import Options, StaticArguments
from lepton_jax._stage import call_key, dynamic_leaves, manager_for, trace_call
from lepton_jax.ir.export import evaluate
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.regions import erase_dead_nodes
from lepton_jax.rewrite import LeptonError, Site, Watch, over_loops

_NAMED: Final = 8

Calibration = Mapping[tuple[str, str], tuple[Any, ...]]
"""What was seen, by the name of the site and the kind."""


def calibrate(
    fun: Callable[..., Any],
    options: Options,
    static: StaticArguments,
    params: Any,
    batches: Iterable[Any],
    sample: Sequence[Any] | None = None,
) -> Calibration:
    """Run batches through a program in floats and collect what its passes asked for.

    Args:
        fun: a function of parameters and inputs.
        options: with the passes.
        static: its static arguments.
        params: the parameters.
        batches: of each the inputs after the parameters: a tuple, or a single array or tree.
        sample: of the inputs, whose dtypes batches are to have, floats where there are floats.

    Raises:
        CalibrationError: there are no batches, one does not fit the function, or a site saw nothing, NaN or
            infinities; the message names it, and parameters that are not finite themselves.
    """
    programs: dict[Any, tuple[Callable[..., Any], tuple[Watch, ...]]] = {}
    totals: list[Any] | None = None
    watches: tuple[Watch, ...] = ()
    for number, batch in enumerate(batches_of(batches, "calibration")):
        check_arrays(_arrays(batch, static), number)
        if sample is not None:
            check_dtypes(_arrays(batch, static), _arrays(sample, static), number)
        args = (params, *batch)
        key = call_key(static, args, {})
        if key not in programs:
            programs[key] = _program(fun, options, static, args, number)
        run, found = programs[key]
        if totals is not None and _names(found) != _names(watches):
            raise CalibrationError(f"calibration batch {number} has other sites than those before it")
        states = run(*dynamic_leaves(static, args, {}))
        totals, watches = states if totals is None else _merge(found)(totals, states), found
    if totals is None:
        raise CalibrationError("calibration is empty: give at least one batch of inputs")
    try:
        return _results(watches, totals)
    except CalibrationError as error:
        inputs = name_inputs(fun, options.params, static, args, {})
        leaves = dynamic_leaves(static, args, {})
        wrong = [inputs.paths[i] for i in sorted(inputs.params) if not is_finite(leaves[i])]
        if not wrong:
            raise
        raise CalibrationError(f"{', '.join(wrong)} has NaN or infinite elements ({error})") from error


def _arrays(inputs: Sequence[Any], static: StaticArguments) -> list[Any]:
    """The inputs after the parameters that are not static."""
    return [each for i, each in enumerate(inputs, 1) if i not in static.positions]


def calibrate_weights(
    fun: Callable[..., Any], options: Options, static: StaticArguments, args: Sequence[Any]
) -> Calibration:
    """What the passes ask for of the weights alone.

    Args:
        fun: a function of parameters and inputs.
        options: with the passes.
        static: its static arguments.
        args: the parameters, and arrays or shapes of the inputs.

    Raises:
        CalibrationError: a pass asks for the inputs too, or a weight is not finite.
    """
    run, watches = _program(fun, options, static, args, None)
    if inputs := [watch.name for watch in watches if not watch.kind.startswith("weight-")]:
        raise CalibrationError(
            f"{options.pipeline} needs calibration for {inputs[0]}: calibration=batches, each batch a tuple "
            "of the inputs after the parameters"
        )
    if not watches:
        return {}
    leaves = dynamic_leaves(static, args, {})
    zeros = [jnp.zeros(a.shape, a.dtype) if isinstance(a, jax.ShapeDtypeStruct) else a for a in leaves]
    return _results(watches, run(*zeros))


def _names(watches: Sequence[Watch]) -> list[tuple[str, str]]:
    return [(watch.name, watch.kind) for watch in watches]


def _program(
    fun: Callable[..., Any],
    options: Options,
    static: StaticArguments,
    args: Sequence[Any],
    number: int | None,
) -> tuple[Callable[..., Any], tuple[Watch, ...]]:
    """The program at the shapes of a batch, which returns the states of all observers.

    Args:
        number: of the batch; None: there are no batches, and there need not be.
    """
    inputs = name_inputs(fun, options.params, static, args, {})
    try:
        jaxpr, _ = trace_call(fun, static, args, {})
    except LeptonError:  # it says itself what is wrong
        raise
    except Exception as error:
        shapes = ", ".join(str(jax.typeof(leaf)) for leaf in jax.tree.leaves(list(args[1:])))
        given = "the sample" if number is None else f"calibration batch {number}"
        raise CalibrationError(
            f"{given} does not fit the function ({shapes}); a batch is a tuple of the inputs after the "
            f"parameters: {error}"
        ) from error
    watches: list[Watch] = []
    graph, report = manager_for(options).run(
        jaxpr, getattr(fun, "__name__", "f"), inputs.params, inputs.paths, watches=watches
    )
    if not watches and number is not None:
        _check_needed(options, report.sites)
    if watches:
        keep_last(graph, sum(watch.count for watch in watches))

    @jax.jit
    def run(*leaves: Any) -> list[Any]:
        flat = iter(evaluate(graph, leaves))
        return [jax.tree.unflatten(watch.tree, [next(flat) for _ in range(watch.count)]) for watch in watches]

    return run, tuple(watches)


def _check_needed(options: Options, sites: Sequence[Site]) -> None:
    """Raise where no pass asks for calibration, or where those that do take no weight at all."""
    asking = [str(step) for step in options.pipeline.passes() if step.calibrates]
    left = [f"{site.name}: {site.reason}" for site in sites if not site.done]
    taken = len(left) < len(sites)
    if taken and asking:
        return
    if taken or not left:
        raise CalibrationError(f"no pass needs calibration: {options.pipeline}")
    more = f"; and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    who, reasons = ", ".join(asking) or options.pipeline, "; ".join(left[:_NAMED])
    raise CalibrationError(f"nothing to calibrate: {who} takes no weight ({reasons}{more})")


def keep_last(graph: Graph, count: int) -> None:
    """Return the last results alone, such as the states of observers."""
    graph.set_outputs(graph.outputs[-count:])
    erase_dead_nodes(graph)


def _merge(watches: tuple[Watch, ...]) -> Callable[..., Any]:
    @jax.jit
    def merge(left: list[Any], right: list[Any]) -> list[Any]:
        return [
            over_loops(watch.observer.merge, watch.loops)(a, b)
            for watch, a, b in zip(watches, left, right, strict=True)
        ]

    return merge


def _results(watches: Sequence[Watch], states: Sequence[Any]) -> Calibration:
    found: dict[tuple[str, str], tuple[Any, ...]] = {}
    for watch, state in zip(watches, states, strict=True):
        if watch.saw is not None and not watch.saw(state):
            continue
        try:
            watch.observer.check(state, watch.name)
        except ValueError as error:
            raise CalibrationError(str(error)) from error
        result = over_loops(watch.observer.result, watch.loops)(state)
        found.update(result if isinstance(result, Mapping) else {(watch.name, watch.kind): result})
    return found
