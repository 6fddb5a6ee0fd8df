"""`lepton.delayed_scaling`: a function whose products run on codes, with scales that are a state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax._options import Names, Numbers, Options, make_options
from lepton_jax._prepared import shape_of
from lepton_jax._reported import Reported
from lepton_jax._stage import dynamic_leaves, evaluate_as
from lepton_jax.rewrite import Pipeline, UsageError, Watch

State = dict[str, Any]
"""Of each product, by its name: of its operands and its gradient a scale and the latest magnitudes."""

_KIND: Final = "delayed-scaling"
_STARTING: Final = "delayed-scaling-start"


class DelayedScaling(Reported):
    """A function of its state and its arguments, on codes with delayed scales: `f(f.state, *args)`.

    Made by `delayed_scaling`. The gradient with respect to the state is the state of the next step; it is no
    slope, and no optimiser is to see it. Works under `jax.grad`, `jit`, `scan` and `shard_map`.

    Attributes:
        state: before the first step: `{product: {operand: {"scale": f32[], "history": f32[n]}}}` with the
            operands `left`, `right` and `gradient`; stacked over layers where the product stands in a loop. A
            pytree, to be kept with the optimiser's.
    """

    maker = "delayed_scaling"

    def __init__(self, fun: Callable[..., Any], options: Options, sample: tuple[Any, ...]) -> None:
        super().__init__(fun, options)
        fixed: dict[str, Any] = {
            "static_argnums": tuple(sorted(i + 1 for i in self._static.positions)),
            "static_argnames": tuple(sorted(self._static.names)),
        }
        self._jit: Any = jax.jit(functools.partial(self._call, _KIND), **fixed)
        self._start: Any = jax.jit(functools.partial(self._call, _STARTING), **fixed)
        self.state = self._beginning(sample)

    def __call__(self, state: State, *args: Any, **kwargs: Any) -> Any:
        """Run the function with the scales of a state.

        Args:
            state: as `self.state`.
            args: the function's arguments.
            kwargs: its arguments by name.

        Raises:
            UsageError: the state is that of another function or pipeline.
        """
        return self._jit(state, *args, **kwargs)

    def started(self, *args: Any) -> State:
        """The state after a backward pass at these arguments under dynamic scales.

        All results have a gradient of one there. Without it, the first step rounds under scales of 1, which
        small gradients do not survive.

        Args:
            args: the function's arguments, of which nothing is changed.
        """
        results, pull = jax.vjp(lambda state: self._start(state, *args), self.state)
        found: State
        (found,) = pull(jax.tree.map(_ones, results))
        return found

    def _beginning(self, sample: tuple[Any, ...]) -> State:
        watches: list[Watch] = []
        self._rewritten(sample, {}, watches=watches)
        found = {watch.name: watch.observer.state() for watch in watches if watch.kind == _KIND}
        if not found:
            raise UsageError(
                f"{self._options.pipeline} gives no product a delayed scale: name "
                "quantized-training{scaling=delayed}, and see its selectors"
            )
        return found

    def _call(self, kind: str, state: State, *args: Any, **kwargs: Any) -> Any:
        known = {(name, kind): tuple(jax.tree.leaves(each)) for name, each in _of_products(state).items()}
        shapes = {key: tuple(map(shape_of, arrays)) for key, arrays in known.items()}
        seen: list[Any] = []
        program, out_tree = self._rewritten(args, kwargs, calibration=shapes, seen=seen)
        places = {id(each): known[key][i] for key, arrays in shapes.items() for i, each in enumerate(arrays)}
        unread = sorted(
            name for (name, _), arrays in shapes.items() if not {id(a) for a in arrays} & set(map(id, seen))
        )
        if unread:
            why = "; ".join(program.report.skipped) or "it is the state of another function or pipeline"
            raise UsageError(f"the state of {', '.join(unread)} is not used: {why}")
        self._latest = program
        leaves = dynamic_leaves(self._static, args, kwargs)
        results = evaluate_as(program.jaxpr, program.graph, [*leaves, *(places[id(each)] for each in seen)])
        return jax.tree.unflatten(out_tree, results)


def _ones(x: Any) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.ones_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


def _of_products(state: Any) -> Mapping[str, Any]:
    if not isinstance(state, Mapping):
        raise UsageError(
            "the first argument is the state of the scales: start from the attribute `state` of what "
            "lepton.delayed_scaling returned"
        )
    return state


def delayed_scaling(
    fun: Callable[..., Any],
    *sample: Any,
    passes: str | Pipeline = "default,quantized-training{scaling=delayed}",
    level: str = "reassociate",
    target: str | None = None,
    static_argnums: Numbers = None,
    static_argnames: Names = None,
    strict: bool | None = None,
) -> DelayedScaling:
    """A function whose products run on codes of eight bits under delayed scales, to be differentiated.

    The scales of a step are made of the largest magnitudes of the steps before (Micikevicius et al. 2022, FP8
    Formats for Deep Learning, arXiv 2209.05433; NVIDIA's Transformer Engine). They are a state that you
    carry: `value, (state, slopes) = jax.value_and_grad(f, (0, 1))(state, params, x)`.

    Args:
        fun: a function, such as a loss.
        sample: a sample of each argument: arrays or `jax.ShapeDtypeStruct`s.
        passes: a pipeline with `quantized-training{scaling=delayed}` in it.
        level: as in `optimize`.
        target: as in `optimize`.
        static_argnums: as in `optimize`.
        static_argnames: as in `optimize`.
        strict: as in `optimize`.

    Returns:
        The function, with the state that it starts from in its `state`.

    Raises:
        UsageError: no product gets a delayed scale, or the function holds gradients of its products.
        PipelineError: the pipeline names an unknown pass or option.

    Example:
        >>> import jax.numpy as jnp
        >>> w, x = jnp.ones((8, 4)), jnp.ones((2, 8))
        >>> f = delayed_scaling(lambda w, x: ((x @ w) ** 2).mean(), w, x)
        >>> state, slope = jax.grad(f, (0, 1))(f.state, w, x)
        >>> list(state), slope.shape, float(state["product"]["left"]["history"][0])
        (['product'], (8, 4), 1.0)
    """
    options = make_options(
        passes, level, target, static_argnums, static_argnames, None, None, False, strict, False, 0
    )
    return DelayedScaling(fun, options, sample)
