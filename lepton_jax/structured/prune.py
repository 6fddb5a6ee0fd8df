"""`lepton.structured_prune`: a smaller program with smaller parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_jax._modules import as_function
from lepton_jax._options import Names, Numbers
from lepton_jax.structured.choice import Budget, Limits, Ranking
from lepton_jax.structured.dependencies import static_of
from lepton_jax.structured.depth_importance import DepthImportance
from lepton_jax.structured.report import StructuredReport
from lepton_jax.structured.run import Asked, Importance, Pruning, Ratio
from lepton_jax.structured.smaller import Change, Smaller, smaller
from lepton_jax.structured.subject import Subject
from lepton_jax.targets import get_target


@dataclass(frozen=True, eq=False)
class StructurallyPruned:
    """A smaller program and its parameters.

    Attributes:
        fun: a function of parameters and inputs as the original one, which takes the smaller parameters. It
            can be differentiated, batched, jitted, exported and compiled, at other batch sizes too.
        params: the smaller parameters, a tree as it was.
        report: what was cut, and what is saved.
        change: what becomes of trees like the parameters that were given.
    """

    fun: Smaller
    params: Any
    report: StructuredReport
    change: Change

    @property
    def kept(self) -> dict[str, tuple[np.ndarray[Any, Any] | None, ...]]:
        """By path of parameters that became smaller, for each dimension the indices that stay; None: all."""
        found = {path: self.change.of(i) for i, path in enumerate(self.change.paths)}
        return {path: kept for path, kept in found.items() if any(each is not None for each in kept)}

    def shrink(self, tree: Any) -> Any:
        """What stays of a tree like the original parameters: moments of an optimiser, averaged weights.

        Raises:
            ValueError: its structure or its shapes are not those of the original parameters.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> f = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
            >>> params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
            >>> small = structured_prune(f, params, jnp.ones((4, 3)), ratio=0.5)
            >>> moments = jax.tree.map(jnp.zeros_like, params)  # of an optimiser
            >>> jax.tree.map(jnp.shape, small.shrink(moments))
            {'a': (3, 4), 'b': (4, 2)}
        """
        return self.change.shrink(tree)

    def cut(
        self, fun: Callable[..., Any], *, static_argnums: Numbers = None, static_argnames: Names = None
    ) -> Smaller:
        """Another function of the same parameters, which takes the smaller ones: a loss, the training mode.

        Results that have dimensions of parameters, such as new running statistics, become smaller too.

        Args:
            fun: takes the parameters first.
            static_argnums: as in `lepton.optimize`; the parameters are argument 0.
            static_argnames: as in `lepton.optimize`.
        """
        return smaller(fun, self.change, static_of(fun, static_argnums, static_argnames))


def structured_prune(
    fun: Any,
    *args: Any,
    ratio: Ratio = None,
    budget: str | None = None,
    importance: Importance = "magnitude",
    loss: Callable[..., Any] | None = None,
    batches: Iterable[Any] | None = None,
    ranking: Ranking = "group",
    round_to: int = 1,
    least: float = 1,
    protect: str | Sequence[str] = (),
    only: str | Sequence[str] = (),
    depth: float | None = None,
    depth_importance: DepthImportance = "angle",
    target: str | None = None,
    seed: int = 0,
    static_argnums: Numbers = None,
    static_argnames: Names = None,
) -> StructurallyPruned:
    """Take whole units out of a program: channels, features, attention heads, layers, residual blocks.

    What must go together goes together: a channel with its kernels on both sides, its bias and its batch
    norm. The result computes what the model does whose units were never there; train it on to win back what
    it lost.

    Args:
        fun: a function of parameters and inputs; a Linen module, whose variables follow; or an NNX or Equinox
            module or a method of one, which holds its parameters itself.
        args: the parameters (unless `fun` holds them), arrays; and a sample of each input: arrays or
            `jax.ShapeDtypeStruct`s.
        ratio: the share of the units that goes, 0 to 1; or shares by patterns of paths, for the groups
            with slices there; the others stay whole.
        budget: instead: `flops<=0.5`, `parameters<=0.5`, `time<=0.6` (of what it was), `flops<=1e9`,
            `parameters<=1e6`, or `seconds<=0.002`: as few units go as it takes. Times are predicted by the
            target's cost model.
        importance: `magnitude`: the Euclidean norm of all weights of a unit, `l1`: the sum of their absolute
            values (arrays of two dimensions or more count, or others where a unit has none); `taylor`: the
            squared change of the loss at first order, see `lepton_jax.numerics.group_importance`; `random`;
            or a function of a group and its slices, each [units, elements], to importances [units].
        loss: of `taylor` and of depth by `loss`: a function of the original parameters and a batch.
        batches: of each what follows the parameters in the call of the loss, or of `fun` for depth by `angle`
            and `change`: a tuple, or a single array. Depth takes the sample where none are given.
        ranking: `group`: the same share of every group. `global`: the least important of all; importances
            other than `taylor` and a function's are divided by the mean of their group.
        round_to: so many indices, or a multiple, stay of each dimension that is cut: 8 suits most hardware.
        least: units that stay of each group: a number, or a share below 1.
        protect: patterns of paths of parameters that stay as they are, as `params/head` or, for one
            dimension, `params/*/kernel[1]`. Paths begin with the name of the function's first argument.
        only: patterns of paths: only groups with slices in these are cut.
        depth: residual blocks and scanned layers to leave out, before anything else: a number, or a share
            below 1. Parameters of blocks that are left out become empty along dimension 0.
        depth_importance: how blocks and layers are ranked: by the `angle` between what they add to and the
            sum, the `change` (its norm relative to the input's), or the growth of the `loss` without them.
        target: the machine to predict times for: `cpu`, `gpu`, `tpu`; default: JAX's backend.
        seed: of random importances.
        static_argnums: as in `lepton.optimize`; the parameters are argument 0.
        static_argnames: as in `lepton.optimize`.

    Returns:
        The smaller program. Where a budget cannot be met, the one that comes closest; its report says by how
        much it misses.

    Raises:
        UsageError: an argument out of range, a pattern that matches nothing, or nothing that can be cut; the
            message says what stands against it.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"up": jnp.ones((4, 16)), "down": jnp.ones((16, 2))}
        >>> def f(params, x):
        ...     return jnp.tanh(x @ params["up"]) @ params["down"]
        >>> small = structured_prune(f, params, jnp.ones((1, 4)), ratio=0.5)
        >>> small.params["up"].shape, small.fun(small.params, jnp.ones((3, 4))).shape
        ((4, 8), (3, 2))
    """
    function, params, sample = as_function(fun, args)
    asked = Asked(
        ratio=ratio,
        budget=None if budget is None else Budget.parse(budget),
        importance=importance,
        loss=loss,
        batches=None
        if batches is None
        else [each if isinstance(each, tuple) else (each,) for each in batches],
        ranking=ranking,
        limits=Limits(least, round_to),
        protect=(protect,) if isinstance(protect, str) else tuple(protect),
        only=(only,) if isinstance(only, str) else tuple(only),
        depth=depth,
        depth_importance=depth_importance,
        target=get_target(target),
        seed=seed,
    )
    asked.check()
    static = static_of(function, static_argnums, static_argnames)
    change, report = Pruning(Subject(function, params, sample, static), asked).run()
    return StructurallyPruned(smaller(function, change, static), change.shrink(params), report, change)
