"""`lepton.compile`: a model with its parameters prepared."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax

from lepton_jax._api import Optimized
from lepton_jax._file import save_model
from lepton_jax._model_report import ModelReport
from lepton_jax._modules import as_function
from lepton_jax._options import Names, Numbers, make_options, spread_of
from lepton_jax._prepared import Prepared
from lepton_jax.rewrite import Pipeline

if TYPE_CHECKING:
    from lepton_jax.parallel.plan import Plan


@jax.tree_util.register_pytree_node_class
class Model:
    """A function with its parameters prepared: `model(x)`.

    A pytree whose leaves are the prepared arrays, so that it can go through JAX's transformations.

    Attributes:
        fun: the optimised function of parameters and inputs.
        params: what is kept of the parameters.
    """

    def __init__(self, fun: Optimized[Any, Any], params: Prepared) -> None:
        self.fun = fun
        self.params = params

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model. Other shapes than the sample's are traced anew.

        Raises:
            PrepareError: at these shapes the program keeps its parameters in another form.
        """
        return self.fun.apply(self.params, *args, **kwargs)

    @property
    def nbytes(self) -> int:
        """The bytes that the prepared parameters take in memory."""
        return self.params.nbytes

    @property
    def jit(self) -> Any:
        """The jitted function of `(model.params, *args)`, with `lower`, `trace` and `eval_shape`."""
        return self.fun.jit_of(self.params)

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """How the model is spread over its mesh at these shapes, see `Optimized.plan`.

        Raises:
            ValueError: it was compiled without a mesh.
        """
        return self.fun.plan(self.params, *args, **kwargs)

    def report(self) -> ModelReport:
        """What was done to the program at the latest shapes, and what became of the parameters."""
        return ModelReport(self.fun.report, self.params)

    def save(
        self,
        path: str | os.PathLike[str],
        *sample: Any,
        platforms: Sequence[str] | None = None,
        coding: Literal["small", "fast", "raw"] = "small",
        gradients: bool = False,
        **named: Any,
    ) -> None:
        """Write the model to a file, which `lepton.load` reads: program, parameters, report.

        What is there is replaced, once the new file is whole.

        Args:
            path: of the file.
            sample: a sample of each input, as in `compile`; those of the latest call if there are none.
                Symbolic shapes (`jax.export.symbolic_args_specs`) make a model for many sizes.
            platforms: what it is to run on, such as `("cpu", "cuda", "tpu")`; this one if None.
            coding: `small`: entropy-coded, without loss; `fast`: the same, at most 3 % longer; `raw`: as
                it is in memory.
            gradients: keep the derivative of the program too.
            named: samples of inputs that are given by name.

        Raises:
            OSError: the file cannot be written.
            LeptonFileError: an array's dtype cannot be kept.
        """
        save_model(
            self.fun,
            self.params,
            path,
            sample,
            named,
            platforms=platforms,
            coding=coding,
            gradients=gradients,
        )

    def tree_flatten(self) -> tuple[tuple[Prepared], Optimized[Any, Any]]:
        """For JAX."""
        return (self.params,), self.fun

    @classmethod
    def tree_unflatten(cls, fun: Optimized[Any, Any], children: tuple[Prepared]) -> Model:
        """For JAX."""
        return cls(fun, children[0])

    def __repr__(self) -> str:
        return f"<Model of {getattr(self.fun, '__name__', 'a function')}, {self.nbytes:,} bytes>"


def compile(
    fun: Callable[..., Any] | Any,
    *args: Any,
    passes: str | Pipeline = "deploy",
    level: str = "reassociate",
    calibration: Iterable[Any] | None = None,
    target: str | None = None,
    static_argnums: Numbers = None,
    static_argnames: Names = None,
    donate_argnums: Numbers = None,
    donate_argnames: Names = None,
    strict: bool | None = None,
    mesh: Any = None,
    shard: Any = None,
    donate: str | None = None,
    memory: int | str | None = None,
) -> Model:
    """A model whose parameters are prepared once: `compile(fun, params, *sample)`, then `model(*inputs)`.

    What depends on parameters alone is computed now, as the passes left it: quantised and packed weights,
    batch norms folded into them, their layout for the target. The parameters themselves are not kept
    where the program does not need them.

    Args:
        fun: a function of parameters and inputs; a Linen module, whose variables follow; or an NNX or
            Equinox module or a method of one, which holds its parameters itself.
        args: the parameters (unless `fun` holds them), and a sample of each input: arrays or
            `jax.ShapeDtypeStruct`s.
        passes: as in `optimize`; `deploy` is `default` after scales and shifts were taken into the weights.
        level: as in `optimize`.
        calibration: batches to find the ranges of activations by, and whatever else the passes ask for: of
            each the inputs after the parameters, as a tuple, or a single array.
        target: as in `optimize`.
        static_argnums: as in `optimize`; the parameters are argument 0.
        static_argnames: as in `optimize`.
        donate_argnums: inputs whose memory the results may take, such as a cache; the parameters are
            argument 0.
        donate_argnames: the same, by name, for inputs that are given by name.
        strict: as in `optimize`.
        mesh: as in `optimize`: the model is spread over it, its prepared parameters lie there.
        shard: as in `optimize`; patterns are those of the parameters as they are given.
        donate: as in `optimize`.
        memory: as in `optimize`.

    Returns:
        The model.

    Raises:
        PrepareError: the parameters cannot be prepared, or a call changes the module's state.
        CalibrationError: calibration is empty, does not fit, or saw NaN or infinities.
        PipelineError: the pipeline names an unknown pass or option.
        TypeError: `fun` is neither a function nor a module, or the parameters are missing.
        ValueError: arguments about a mesh that do not go together, or do not fit the program.

    Example:
        >>> import jax.numpy as jnp
        >>> model = compile(lambda w, x: x @ w.T, jnp.ones((2, 3)), jnp.ones((1, 3)))
        >>> model(jnp.ones((4, 3))).shape, model.nbytes
        ((4, 2), 24)
    """
    function, params, sample = as_function(fun, args)
    options = make_options(
        passes,
        level,
        target,
        static_argnums,
        static_argnames,
        donate_argnums,
        donate_argnames,
        False,
        strict,
        False,
        0,
        spread_of(mesh, shard, donate, memory, donate_argnums, donate_argnames),
    )
    optimized: Optimized[Any, Any] = Optimized(function, options)
    if calibration is not None:
        optimized.preparer.calibrate(params, calibration, sample)
    elif any(step.reads_weights for step in options.pipeline.passes()):
        optimized.preparer.calibrate_weights((params, *sample))
    prepared = optimized.prepare(params, *sample)
    optimized.preparer.forget_seen()
    return Model(optimized, prepared)
