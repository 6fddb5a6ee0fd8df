"""`lepton.sensitivity`: which quantised sites do the damage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax._batches import CalibrationError, batches_of
from lepton_jax._calibrate import Calibration, calibrate
from lepton_jax._inputs import name_inputs
from lepton_jax._modules import as_function
from lepton_jax._options import Options, StaticArguments, make_options
from lepton_jax._site_damage import Sensitivity, SiteDamage, is_tried
from lepton_jax._stage import call_key, dynamic_leaves, manager_for, trace_call
from lepton_jax.ir.export import evaluate
from lepton_jax.ir.split import split
from lepton_jax.rewrite import Pass, Pipeline, UsageError
from lepton_jax.rewrite.context import UNREAD
from lepton_jax.rewrite.trial import Trials, Tried

_LAST: Final = "cse,early,cse,dce"


def sensitivity(
    fun: Callable[..., Any] | Any,
    *args: Any,
    data: Iterable[Any],
    passes: str | Pipeline = "deploy,quantize{weights=int4}",
    metric: Callable[[Any, tuple[Any, ...]], Any] | None = None,
    level: str = "reassociate",
    target: str | None = None,
    strict: bool | None = None,
) -> Sensitivity:
    """Ranks every quantised site by the damage it does.

    The program is traced and compiled once, with a flag for each site; each site alone is then quantised and
    the outputs are compared with those of floats. So a batch costs one more run of the program than there
    are sites.

    Args:
        fun: as in `compile`.
        args: as in `compile`: the parameters (unless `fun` holds them), and a sample of each input.
        data: batches, of each the inputs after the parameters, as a tuple or a single array: to calibrate
            with and to measure on.
        passes: as in `compile`, with at least one `quantize`.
        metric: of the outputs and the batch, one number that grows with the damage, such as a loss. None: the
            relative error of all outputs.
        level: as in `compile`.
        target: as in `compile`.
        strict: as in `compile`.

    Returns:
        The sites with their measured and estimated damage, the worst first.

    Raises:
        UsageError: no pass quantises, nothing is selected, or there is no `metric` and no output of floats.
        CalibrationError: there are no batches, or one does not fit.

    Example:
        >>> w, x = jnp.eye(64), jnp.linspace(-1.0, 1.0, 128).reshape(2, 64)
        >>> found = sensitivity(lambda w, x: x @ w, w, x, data=[x], passes="inline,quantize{weights=int4}")
        >>> [(row.name, row.done, row.error < 0.1) for row in found.rows]
        [('w', 'int4, per channel', True)]
    """
    function, params, _ = as_function(fun, args)
    plain = make_options(passes, level, target, None, None, None, None, False, strict, False, 0)
    if not any(map(is_tried, plain.pipeline.steps)):
        raise UsageError(
            f"nothing is quantised by {plain.pipeline}: name quantize{{...}} outside of fixpoint"
        )
    static = StaticArguments.of(function, plain)
    batches = list(batches_of(data, "data"))
    if not batches:
        raise CalibrationError("data is empty: give at least one batch of inputs")
    seen_by = Trials()
    calibration = calibrate(function, _on_trial(plain, seen_by), static, params, batches)
    runs = _Runs(function, plain, static, params, calibration, len({site.name for site in seen_by.sites}))
    return Sensitivity(_ranked(runs, batches, metric), plain.pipeline, runs.left)


def _on_trial(options: Options, record: Trials, last: str = "") -> Options:
    steps = [(isinstance(s, Pass) and s.on_trial(record)) or s for s in options.pipeline.steps]
    return replace(options, pipeline=Pipeline((*steps, *Pipeline.parse(last).steps)))


class _Runs:
    """The program with a flag for each site, traced and prepared once for each shape of the inputs."""

    def __init__(
        self,
        fun: Callable[..., Any],
        options: Options,
        static: StaticArguments,
        params: Any,
        calibration: Calibration,
        count: int,
    ) -> None:
        self._fun, self._options, self._static, self._params = fun, options, static, params
        self._calibration = calibration
        self._programs: dict[Any, tuple[Callable[..., Any], Trials]] = {}
        self.count = count
        self.left: tuple[tuple[str, str], ...] = ()

    def program(self, batch: tuple[Any, ...]) -> tuple[Callable[..., Any], Trials]:
        """A function of flags and inputs to the results and the estimates, and its sites."""
        key = call_key(self._static, batch, {})
        if key not in self._programs:
            self._programs[key] = self._make(batch)
        return self._programs[key]

    def _make(self, batch: tuple[Any, ...]) -> tuple[Callable[..., Any], Trials]:
        def flagged(params: Any, flags: Any, *inputs: Any) -> Any:
            return self._fun(params, *inputs)

        args = (self._params, jnp.zeros(self.count, bool), *batch)
        leaves = dynamic_leaves(self._static, args, {})
        given = len(jax.tree.leaves(self._params))
        record = Trials(flags=given)
        options = _on_trial(self._options, record, _LAST)
        inputs = name_inputs(flagged, options.params, self._static, args, {})
        jaxpr, tree = trace_call(flagged, self._static, args, {})
        paths = name_inputs(self._fun, options.params, self._static, (self._params, *batch), {}).paths
        names = (*paths[:given], inputs.paths[given], *paths[given:])
        seen: list[Any] = []
        graph, report = manager_for(options).run(
            jaxpr, "trial", inputs.params, names, calibration=self._calibration, seen=seen, is_bound=True
        )
        self.left = tuple((s.name, s.reason) for s in report.sites if not s.done and s.reason != UNREAD)
        parts = split(graph, inputs.params | set(range(len(leaves), len(leaves) + len(seen))))
        kept = jax.jit(lambda *early: evaluate(parts.prepare, early))(*leaves[:given], *seen)
        size = tree.num_leaves

        @jax.jit
        def run(kept: list[Any], flags: Any, late: list[Any]) -> tuple[Any, list[Any]]:
            flat = evaluate(parts.apply, [*kept, flags, *late])
            return jax.tree.unflatten(tree, flat[:size]), flat[size:]

        return lambda flags, late: run(kept, flags, late), record


def _measured(metric: Callable[[Any, tuple[Any, ...]], Any], result: Any, batch: tuple[Any, ...]) -> float:
    found = metric(result, batch)
    if jnp.shape(found) != () or not np.isfinite(float(found)):
        said = f"an array of shape {jnp.shape(found)}" if jnp.shape(found) else f"{float(found)}"
        raise UsageError(f"metric gives one finite number, which grows with the damage; it gave {said}")
    return float(found)


def _ranked(
    runs: _Runs, batches: Sequence[tuple[Any, ...]], metric: Callable[[Any, tuple[Any, ...]], Any] | None
) -> tuple[SiteDamage, ...]:
    change = np.zeros(runs.count)
    whole = 0.0
    estimates: list[float | None] = []
    sites: list[Tried] = []
    for batch in batches:
        run, record = runs.program(batch)
        late = jax.tree.leaves(batch)
        exact, predicted = run(np.zeros(runs.count, bool), late)
        if metric is None and not _floats(exact):
            raise UsageError(
                "the function returns no floats to compare: give metric=, or a function that does"
            )
        sites, found = record.sites, iter(predicted)
        estimates = [_mean(next(found)) if site.is_estimated else None for site in sites]
        whole += 1.0 if metric is not None else _square(exact)
        for i in range(len(sites)):
            result, _ = run(np.arange(runs.count) == i, late)
            if metric is not None:
                change[i] += _measured(metric, result, batch) - _measured(metric, exact, batch)
            else:
                change[i] += _square(jax.tree.map(jnp.subtract, *map(_floats, (result, exact))))
    if metric is None:
        change, whole = np.sqrt(change), math.sqrt(whole)
    rows = [
        SiteDamage(
            site.name,
            site.op,
            site.paths,
            site.done,
            float(each / max(whole, 1e-30)),
            guess,
            site.before,
            site.after,
            site.size,
        )
        for site, each, guess in zip(sites, change, estimates, strict=False)
    ]
    return tuple(sorted(rows, key=lambda row: -row.error))


def _floats(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _square(tree: Any) -> float:
    return float(sum(jnp.sum(jnp.square(jnp.abs(leaf).astype(jnp.float32))) for leaf in _floats(tree)))


def _mean(estimates: Any) -> float:
    """One number for a site, of those of all layers of a scan."""
    return float(np.sqrt(np.mean(np.square(estimates))))
