"""What each quantised site costs, and pipelines that keep the most sensitive weights in more bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from lepton_jax.numerics.formats import get_format
from lepton_jax.rewrite import Pass, Pipeline, UsageError
from lepton_jax.rewrite.trial import Trials

_NAMED: Final = 8


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
        left: parameters that were not tried, and why; none that no product, convolution or gather reads.
    """

    rows: tuple[SiteDamage, ...]
    pipeline: Pipeline
    left: tuple[tuple[str, str], ...] = ()

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
            >>> import jax.numpy as jnp
            >>> import lepton_jax as lepton
            >>> w, x = jnp.eye(64), jnp.linspace(-1.0, 1.0, 128).reshape(2, 64)
            >>> passes = "inline,quantize{weights=int4}"
            >>> found = lepton.sensitivity(lambda w, x: x @ w, w, x, data=[x], passes=passes)
            >>> found.mixed(keep=1)  # int8 for the one weight, whose error is the largest
            'inline,quantize{only=w},quantize{weights=int4}'
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
        settings: Any = next(step for step in self.pipeline.passes() if is_tried(step))
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
            if is_tried(step):
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
        lines += [f"{name} is not tried: {reason}" for name, reason in self.left[:_NAMED]]
        lines += [f"and {len(self.left) - _NAMED} more are not"] * (len(self.left) > _NAMED)
        return "\n".join([*lines, f"quantised by {self.pipeline}"])


def _together(rows: Iterable[SiteDamage]) -> float:
    return math.hypot(*(max(row.error, 0.0) for row in rows))


def _largest(rows: Sequence[SiteDamage], high: str | None) -> tuple[int, int]:
    """The bytes of a weight if it is kept in more bits, and if it is not; sites share it."""
    before, after = max(row.bytes_before for row in rows), max(row.bytes_after for row in rows)
    size = max(row.size for row in rows)
    return before if high is None else size * get_format(high).bits // 8, after


def is_tried(step: Any) -> bool:
    """Whether a step of a pipeline is a pass that can be tried at one site at a time."""
    return isinstance(step, Pass) and step.on_trial(Trials()) is not None
