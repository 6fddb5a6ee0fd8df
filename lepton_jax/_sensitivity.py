"""`lepton.sensitivity`: which quantised sites do the damage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax._batches import CalibrationError, batches_of
from lepton_jax._calibrate import Calibration, calibrate
from lepton_jax._inputs import name_inputs
from lepton_jax._modules import as_function
from lepton_jax._options import Options, StaticArguments, make_options
from lepton_jax._stage import call_key, dynamic_leaves, manager_for, trace_call
from lepton_jax.ir.export import evaluate
from lepton_jax.ir.split import split
from lepton_jax.numerics.formats import get_format
from lepton_jax.rewrite import Pass, Pipeline, UsageError
from lepton_jax.rewrite.trial import Trials, Tried

_LAST: Final = "cse,early,cse,dce"


@dataclass(frozen=True)
class SiteDamage:
    """What quantising one site costs, and saves.

    Attributes:
        name: of the site, as in `Report.sites`.
        op: the operation.
        paths: of the parameters that its weight is made of.
        done: how it was quantised.
        error: measured with this site alone quantised: the norm of the change of all outputs by the norm of
            the outputs, or the growth of the metric.
        estimate: the relative error of this site's own result, as second moments of its input predict it:
            √(tr(Δᵀ H Δ) / tr(Wᵀ H W)); None for tables and balanced weights.
        bytes_before: of the weight in floats.
        bytes_after: in codes, with scales.
        size: elements of the weight.
    """

    name: str
    op: str
    paths: tuple[str, ...]
    done: str
    error: float
    estimate: float | None
    bytes_before: int
    bytes_after: int
    size: int

    @property
    def saved(self) -> int:
        """The bytes that it saves."""
        return self.bytes_before - self.bytes_after


@dataclass(frozen=True)
class Sensitivity:
    """What each site costs, the worst first; print it.

    Attributes:
        rows: of the sites.
        pipeline: that they were quantised by.
    """

    rows: tuple[SiteDamage, ...]
    pipeline: Pipeline

    def mixed(
        self,
        *,
        keep: int | None = None,
        error: float | None = None,
        nbytes: int | None = None,
        high: str | None = "int8",
    ) -> str:
        """A pipeline that keeps the most sensitive weights in more bits; the rest stays as it was.

        Errors of sites are taken to add up as squares, and to shrink with the steps of the format. Check the
        result: that is an estimate.

        Args:
            keep: so many weights, the most sensitive ones.
            error: as many as bring the expected error of all sites together below this.
            nbytes: as many as fit: the most bytes of all weights that were quantised.
            high: the format of those that are kept; None: floats.

        Returns:
            The text of a pipeline, for `compile`.

        Raises:
            UsageError: none or several of `keep`, `error` and `nbytes` are given, or the budget cannot be
            met.

        Example:
            >>> found = sensitivity(f, params, x, data=batches, passes="deploy,quantize{weights=int4}")
            >>> model = compile(f, params, x, passes=found.mixed(keep=2))
        """
        if sum(each is not None for each in (keep, error, nbytes)) != 1:
            raise UsageError("mixed takes one of keep=, error= and nbytes=")
        weights = self._weights()
        count = keep if keep is not None else self._count(weights, error, nbytes, high)
        if count < 0 or count > len(weights):
            raise UsageError(f"keep={count}: there are {len(weights)} weights")
        return self._pipeline([paths for paths, _ in weights[:count]], high)

    def _weights(self) -> list[tuple[tuple[str, ...], list[SiteDamage]]]:
        """The sites of each weight, the weight with the largest error first."""
        found: dict[tuple[str, ...], list[SiteDamage]] = {}
        for row in self.rows:
            found.setdefault(row.paths, []).append(row)
        return sorted(found.items(), key=lambda item: -_together(item[1]))

    def _count(
        self,
        weights: Sequence[tuple[tuple[str, ...], list[SiteDamage]]],
        error: float | None,
        nbytes: int | None,
        high: str | None,
    ) -> int:
        settings: Any = next(step for step in self.pipeline.passes() if _is_tried(step))
        low = get_format(settings.weights).bits
        finer = 0.0 if high is None else (2**low - 1) / (2 ** get_format(high).bits - 1)
        counts = range(len(weights) + 1)
        if error is not None:
            for count in counts:
                parts = [_together(rows) * (finer if i < count else 1) for i, (_, rows) in enumerate(weights)]
                if math.hypot(*parts) <= error:
                    return count
            raise UsageError(f"error={error} is below what {high or 'float'} weights are expected to give")
        assert nbytes is not None
        sizes = [_largest(rows, high) for _, rows in weights]
        totals = [sum(pair[i >= count] for i, pair in enumerate(sizes)) for count in counts]
        fitting = [count for count in counts if totals[count] <= nbytes]
        if not fitting:
            raise UsageError(f"nbytes={nbytes} is less than the {totals[0]} bytes of all weights in codes")
        return max(fitting)

    def _pipeline(self, kept: Sequence[tuple[str, ...]], high: str | None) -> str:
        patterns = " ".join(dict.fromkeys(path for paths in kept for path in paths))
        if not patterns:
            return str(self.pipeline)
        steps: list[Any] = []
        is_first = True
        step: Any
        for step in self.pipeline.steps:
            if _is_tried(step):
                if high is not None and is_first:
                    steps.append(replace(step, weights=high, only=patterns, ops=type(step).ops))
                if high is None:
                    step = replace(step, skip=f"{step.skip or ''} {patterns}".strip())
                is_first = False
            steps.append(step)
        return str(Pipeline(tuple(steps)))

    def __str__(self) -> str:
        width = max([4, *(len(row.name) for row in self.rows)])
        lines = [f"{'site':<{width}}  {'error':>9}  {'estimate':>9}  {'bytes saved':>12}"]
        for row in self.rows:
            estimate = "-" if row.estimate is None else f"{row.estimate:.3g}"
            lines.append(f"{row.name:<{width}}  {row.error:>9.3g}  {estimate:>9}  {row.saved:>12,}")
        return "\n".join([*lines, f"quantised by {self.pipeline}"])


def _together(rows: Iterable[SiteDamage]) -> float:
    return math.hypot(*(max(row.error, 0.0) for row in rows))


def _largest(rows: Sequence[SiteDamage], high: str | None) -> tuple[int, int]:
    """The bytes of a weight if it is kept in more bits, and if it is not; sites share it."""
    before, after = max(row.bytes_before for row in rows), max(row.bytes_after for row in rows)
    size = max(row.size for row in rows)
    return before if high is None else size * get_format(high).bits // 8, after


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
        >>> found = sensitivity(f, params, x, data=batches)
        >>> print(found)
    """
    function, params, _ = as_function(fun, args)
    plain = make_options(passes, level, target, None, None, None, None, False, strict, False, 0)
    if not any(map(_is_tried, plain.pipeline.steps)):
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
    return Sensitivity(_ranked(runs, batches, metric), plain.pipeline)


def _is_tried(step: Any) -> bool:
    return isinstance(step, Pass) and step.on_trial(Trials()) is not None


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
        graph, _ = manager_for(options).run(
            jaxpr, "trial", inputs.params, names, calibration=self._calibration, seen=seen, is_bound=True
        )
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
