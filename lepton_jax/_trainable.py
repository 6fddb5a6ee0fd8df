"""`lepton.trainable`: a function that computes as its quantised model will, and can be trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax._api import Optimized
from lepton_jax._batches import is_finite
from lepton_jax._calibrate import Calibration, calibrate, calibrate_weights
from lepton_jax._compile import Model
from lepton_jax._modules import as_function
from lepton_jax._options import Names, Numbers, Options, StaticArguments, make_options
from lepton_jax._prepared import PrepareError, shape_of
from lepton_jax._reported import Reported
from lepton_jax._stage import Program, dynamic_leaves, evaluate_as
from lepton_jax._trained_part import TrainedPart, trained_leaves
from lepton_jax.numerics.learned import LEARNED
from lepton_jax.rewrite import Pipeline, UsageError

Params = dict[str, Any]
"""What an optimiser trains: `{"params": the user's tree, "learned": {site: {what: arrays}}}`."""


class Trainable(Reported):
    """A function of trained numbers and inputs, rounded as its quantised model: `f(f.params, *inputs)`.

    Made by `trainable`. Works under `jax.grad`, `jit`, `vmap` and `scan`; donate `params` as you like.

    Attributes:
        params: what to train, as it is at the start: `{"params": ..., "learned": ...}`. `params` is the
            user's tree, with None in the place of what is not trained. `learned` has, for each weight whose
            quantiser learns anything, its step size, threshold or range, by the weight's name in the report;
            stacked over layers where the weight stands in a loop.
    """

    maker = "trainable"

    def __init__(
        self,
        fun: Callable[..., Any],
        options: Options,
        part: TrainedPart,
        start: Calibration,
        sample: tuple[Any, ...],
    ) -> None:
        super().__init__(fun, options)
        self._part = part
        self._known = {key: arrays for key, arrays in start.items() if key[1] not in LEARNED}
        self._sample = sample
        self._jit: Any = jax.jit(
            self._call,
            static_argnums=tuple(sorted(self._static.positions)),
            static_argnames=tuple(sorted(self._static.names)),
        )
        learned: dict[str, dict[str, Any]] = {}
        for (site, kind), arrays in start.items():
            if kind in LEARNED:
                learned.setdefault(site, {})[kind] = arrays if len(arrays) > 1 else arrays[0]
        self.params: Params = {"params": part.start, "learned": learned}

    def __call__(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        """Run the function, rounded. The gradient passes through the rounding, see `lepton_jax.numerics`.

        Args:
            params: as `self.params`.
            args: the function's arguments after the parameters.
            kwargs: its arguments by name.
        """
        return self._jit(params, *args, **kwargs)

    def _call(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        self._check(params)
        args = (self._part.whole(params["params"]), *args)
        known = {**self._known, **_as_calibration(params["learned"])}
        program, out_tree, places = self._program(args, kwargs, known)
        self._latest = program
        leaves = dynamic_leaves(self._static, args, kwargs)
        results = evaluate_as(program.jaxpr, program.graph, [*leaves, *(known[key][i] for key, i in places)])
        return jax.tree.unflatten(out_tree, results)

    def floats(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        """Run the function as it was written, in floats."""
        return self._fun(self._part.whole(params["params"]), *args, **kwargs)

    def delayed(self, step: Any, start: int) -> Callable[..., Any]:
        """The function in floats before training step `start`, rounded from then on; only one of both runs.

        Args:
            step: the number of the step, an integer; it may be traced.
            start: the first step that rounds.

        Returns:
            A function of what this object is called with.
        """

        def call(params: Params, *args: Any, **kwargs: Any) -> Any:
            return lax.cond(
                jnp.asarray(step) >= start,
                lambda: self(params, *args, **kwargs),
                lambda: self.floats(params, *args, **kwargs),
            )

        return call

    def compile(self, params: Params, *sample: Any, fun: Callable[..., Any] | None = None) -> Model:
        """The quantised model, whose codes and scales are those that `self(params, ...)` rounds with.

        Args:
            params: as they were trained.
            sample: of each input; without, the shapes that `trainable` was given.
            fun: another function of the same parameters, such as the logits where a loss was trained. Its
                first argument has the same name.

        Raises:
            UsageError: `fun` does not use the weights as the function that was trained does, or a pass failed
                at these shapes.
            PrepareError: the parameters cannot be prepared.
        """
        self._check(params)
        self._check_finite(params)
        optimized: Optimized[Any, Any] = Optimized(self._fun if fun is None else fun, self._options)
        learned = _as_calibration(params["learned"])
        optimized.preparer.calibration = {**self._known, **learned}
        args = (self._part.whole(params["params"]), *(sample or self._sample))
        prepared = optimized.prepare(*args)
        used = {id(array) for array in optimized.preparer.bound(args, {}).seen}
        unused = {site for (site, _), arrays in learned.items() if not all(id(a) in used for a in arrays)}
        if unused:
            names = ", ".join(sorted(unused))
            _check_skipped(optimized.preparer.latest, names)
            raise UsageError(
                f"the function does not use {names} as the function that was trained does: "
                "its first argument needs the same name, and its weights the same places"
            )
        optimized.preparer.forget_seen()
        return Model(optimized, prepared)

    def _check(self, params: Any) -> None:
        """Raise where this is not what is trained."""
        _check_parts(params)
        known, given = self.params["learned"].keys(), params["learned"].keys()
        if known != given:
            names = ", ".join(sorted(known ^ given))
            raise UsageError(f"'learned' has not the names that training began with: they differ in {names}")

    def _check_finite(self, params: Params) -> None:
        """Raise where what was learned can be no scale."""
        for site, numbers in params["learned"].items():
            if not all(map(is_finite, jax.tree.leaves(numbers))):
                raise PrepareError(
                    f"what was learned of {site} has NaN or infinite elements: training diverged"
                )

    def _program(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], known: Calibration
    ) -> tuple[Program, Any, list[tuple[tuple[str, str], int]]]:
        """The program at these shapes, the tree of its results, and what its last inputs are."""
        shapes = {key: tuple(map(shape_of, arrays)) for key, arrays in known.items()}
        seen: list[Any] = []
        program, out_tree = self._rewritten(args, kwargs, calibration=shapes, seen=seen)
        places = {id(each): (key, i) for key, arrays in shapes.items() for i, each in enumerate(arrays)}
        read = [places[id(each)] for each in seen]
        if unread := sorted({key[0] for key in known if key[1] in LEARNED} - {key[0] for key, _ in read}):
            _check_skipped(program, ", ".join(unread))
        return program, out_tree, read


def _check_skipped(program: Program | None, names: str) -> None:
    """Raise where learned numbers are not used since a pass failed: the function would run in floats."""
    if program is not None and program.report.skipped:
        reasons = "; ".join(program.report.skipped)
        raise UsageError(f"what was learned of {names} cannot be used at these shapes: {reasons}")


def _check_parts(params: Any) -> None:
    if not isinstance(params, Mapping) or not {"params", "learned"} <= params.keys():
        raise UsageError(
            "the first argument is what is trained, {'params': ..., 'learned': ...}: start from the "
            "attribute `params` of what lepton.trainable returned"
        )


def _as_calibration(learned: Mapping[str, Mapping[str, Any]]) -> Calibration:
    return {
        (site, kind): arrays if isinstance(arrays, tuple) else (arrays,)
        for site, numbers in learned.items()
        for kind, arrays in numbers.items()
    }


def trainable(
    fun: Callable[..., Any] | Any,
    *args: Any,
    passes: str | Pipeline,
    frozen: Names = None,
    level: str = "reassociate",
    calibration: Iterable[Any] | None = None,
    target: str | None = None,
    static_argnums: Numbers = None,
    static_argnames: Names = None,
    strict: bool | None = None,
) -> Trainable:
    """A function that computes as its quantised model will, to be trained: `trainable(fun, params, *sample)`.

    Args:
        fun: as in `compile`: a function of parameters and inputs, such as a loss; a Linen module, whose
            variables follow; or an NNX or Equinox module or a method of one.
        args: the parameters (unless `fun` holds them), and a sample of each input.
        passes: a pipeline with `quantize{train=...}` in it, such as
            `default,quantize{weights=int4,activations=static,train=lsq}`.
        frozen: patterns of paths of parameters that are not trained, as `"params/.../running_*"`. Integers,
            keys of random numbers, what is no `nnx.Param` and all collections of Linen but `params` are not
            trained either.
        level: as in `optimize`.
        calibration: as in `compile`: where learning of the ranges of static activations starts.
        target: as in `optimize`.
        static_argnums: as in `optimize`; the parameters are argument 0.
        static_argnames: as in `optimize`.
        strict: as in `optimize`.

    Returns:
        The function, with what it starts from in its `params`.

    Raises:
        CalibrationError: calibration is missing, empty, does not fit, or saw NaN or infinities.
        UsageError: no pass trains, `frozen` chooses nothing, or the function holds gradients of its products.
        PipelineError: the pipeline names an unknown pass or option.
        TypeError: `fun` is neither a function nor a module, or the parameters are missing.

    Example:
        >>> import jax.numpy as jnp
        >>> f = trainable(
        ...     lambda w, x: ((x @ w) ** 2).mean(),
        ...     jnp.ones((8, 4)),
        ...     jnp.ones((2, 8)),
        ...     passes="default,quantize{weights=int4,train=lsq}",
        ... )
        >>> slopes = jax.grad(f)(f.params, jnp.ones((2, 8)))
        >>> slopes["params"].shape, jax.tree.map(jnp.shape, slopes["learned"])
        ((8, 4), {'w': {'weight-step': (1, 4)}})
        >>> f.compile(f.params).nbytes  # codes of four bits, and four scales
        32
    """
    function, params, sample = as_function(fun, args)
    options = make_options(
        passes, level, target, static_argnums, static_argnames, None, None, False, strict, False, 0
    )
    if not any(getattr(step, "train", "none") != "none" for step in options.pipeline.passes()):
        raise UsageError("no pass trains: say so, as in passes='default,quantize{weights=int4,train=lsq}'")
    static = StaticArguments.of(function, options)
    part = TrainedPart(params, trained_leaves(fun, function, params, frozen))
    if calibration is not None:
        start = calibrate(function, options, static, params, calibration)
    else:
        start = calibrate_weights(function, options, static, (params, *sample))
    fixed = static.positions
    shapes = [each if i in fixed else jax.tree.map(shape_of, each) for i, each in enumerate(sample, 1)]
    return Trainable(function, options, part, start, tuple(shapes))
