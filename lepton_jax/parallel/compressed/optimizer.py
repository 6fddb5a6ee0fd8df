"""An optimiser that adds up gradients over devices itself, with fewer bytes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lepton_jax.parallel.compressed.options import Compression, Method
from lepton_jax.parallel.compressed.reduce import Feedback, all_reduce_mean, init_feedback

if TYPE_CHECKING:
    import optax

AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh


class CompressedState(NamedTuple):
    """The state of `compressed`, a pytree to be saved and restored as any other.

    Attributes:
        feedback: what compression remembers; on the devices of the mesh, each with its own.
        inner: the state of the optimiser within, the same on every device.
    """

    feedback: Feedback
    inner: Any


def compressed(
    tx: optax.GradientTransformation,
    mesh: AnyMesh,
    method: Method = "int8",
    *,
    axes: str | Sequence[str] = ("data",),
    inner: str | Sequence[str] = (),
    block: int = 256,
    rank: int = 4,
    share: float = 0.01,
    smallest: int = 1 << 16,
    bucket: int = 1 << 25,
    start: int = 0,
    least_rate: float = 2.0,
    feedback: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """An optimiser for each device's own gradients: it takes their mean over devices, compressed.

    `update` runs inside `jax.shard_map` over `axes`, where it replaces `jax.lax.pmean` of the gradients and
    `tx.update`; `lepton.data_parallel` builds such a step. Wrap the whole optimiser: what stands before
    `compressed` in a chain sees one device's gradients. What compression loses is added to the next step's
    gradients, and is a part of the state (`Feedback`), float32, as large on each device as what it
    compresses.

    Args:
        tx: the optimiser, any `optax.GradientTransformation`.
        mesh: whose axes `axes` are.
        method: `int8`, `fp8_e4m3`, `fp8_e5m2`, `powersgd` or `topk`.
        axes, inner, block, rank, share, smallest, bucket, start, least_rate, feedback: see `Compression`.

    Returns:
        An `optax.GradientTransformationExtraArgs` whose state is a `CompressedState`. `init` takes the
        parameters, or their shapes.

    Raises:
        TypeError: the mesh is none of JAX's.
        ValueError: an option that makes no sense, or an axis that the mesh does not have.

    Example:
        >>> import optax
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> tx = compressed(optax.sgd(0.5), mesh, smallest=0)
        >>> state = tx.init({"w": jnp.ones((16, 16))})
        >>> state.feedback.local[0].shape, tuple(state.feedback.local[0].sharding.spec)
        ((1, 256), ('data',))
    """
    import optax

    how = Compression(
        method,
        (axes,) if isinstance(axes, str) else tuple(axes),
        (inner,) if isinstance(inner, str) else tuple(inner),
        block,
        rank,
        share,
        smallest,
        bucket,
        start,
        least_rate,
        feedback,
    )
    check_mesh(mesh)
    sizes = {str(name): int(size) for name, size in mesh.shape.items()}
    init_feedback((), how, sizes)  # are the axes there?
    within = optax.with_extra_args_support(tx)

    def init(params: Any) -> CompressedState:
        shapes = [jax.ShapeDtypeStruct(p.shape, p.dtype) for p in jax.tree.leaves(params)]

        def nothing() -> Feedback:
            return init_feedback(shapes, how, sizes)

        if isinstance(mesh, jax.sharding.AbstractMesh):
            return CompressedState(nothing(), within.init(params))
        specs = jax.eval_shape(nothing).specs()
        places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=_is_spec)
        return CompressedState(jax.jit(nothing, out_shardings=places)(), within.init(params))

    def update(
        updates: Any, state: CompressedState, params: Any = None, **extra: Any
    ) -> tuple[Any, CompressedState]:
        mean, remembered = all_reduce_mean(updates, state.feedback, how)
        found, inside = within.update(mean, state.inner, params, **extra)
        return found, CompressedState(remembered, inside)

    return optax.GradientTransformationExtraArgs(init, update)


def check_mesh(mesh: Any) -> None:
    """Refuse what is no mesh of JAX.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(mesh, (jax.sharding.Mesh, jax.sharding.AbstractMesh)):
        raise TypeError(f"the mesh is a jax.sharding.Mesh, as jax.make_mesh((8,), ('data',)), not {mesh!r}")


def state_specs(state: Any) -> Any:
    """How an optimiser's state is split over the mesh: `in_specs` and `out_specs` of its step.

    Args:
        state: of an optimiser with `compressed` in it, or its shapes.

    Returns:
        The same tree with a `PartitionSpec` for each array: that of the feedback for its arrays, and
        `PartitionSpec()` (the same on every device) for all others.
    """

    def specs(part: Any) -> Any:
        return part.specs() if _is_feedback(part) else PartitionSpec()

    return jax.tree.map(specs, state, is_leaf=_is_feedback)


def summed_axes(state: Any) -> list[set[str]]:
    """Of each `compressed` in an optimiser, by its state, the axes over which it adds up gradients."""
    parts = jax.tree.leaves(state, is_leaf=_is_feedback)
    return [{*part.outer, *part.inner} for part in parts if _is_feedback(part)]


def refit(saved: Any, like: Any) -> Any:
    """A state that was saved on some number of devices, for another.

    Each of the new devices begins with the mean of what the old ones had lost, so that the next mean of
    gradients makes good as much as it would have. Feedback of other gradients or other buckets is dropped,
    with a warning; gradients are right without it.

    Args:
        saved: the state, its arrays anywhere.
        like: a new state, of `init` on the new mesh.

    Returns:
        The saved values, placed as those of `like`.

    Raises:
        ValueError: the state of another optimiser.

    Warns:
        UserWarning: feedback was dropped.
    """
    olds = jax.tree.leaves(saved, is_leaf=_is_feedback)
    news, tree = jax.tree.flatten(like, is_leaf=_is_feedback)
    if len(olds) != len(news):
        raise ValueError(
            f"the saved state has {len(olds)} parts, the new one {len(news)}: another optimiser's"
        )
    return jax.tree.unflatten(tree, [_refitted(a, b) for a, b in zip(olds, news, strict=True)])


def _refitted(old: Any, new: Any) -> Any:
    if _is_feedback(new) and _is_feedback(old):
        return _refitted_feedback(old, new)
    if _is_feedback(new) or _is_feedback(old) or old.shape != new.shape:
        raise ValueError(f"the saved state has {_named(old)} where the new one has {_named(new)}")
    return _placed(np.asarray(old), new)


def _refitted_feedback(old: Feedback, new: Feedback) -> Feedback:
    try:
        local, owned, matrices, factors = (
            [_fit(np.asarray(a), b.shape, name) for a, b in zip(there, here, strict=True)]
            for name in ("local", "owned", "matrices", "factors")
            for there, here in [(getattr(old, name), getattr(new, name))]
        )
    except ValueError:
        warnings.warn("the feedback is of other gradients or another method: it begins anew", stacklevel=4)
        return new
    place = partial(jax.tree.map, _placed)
    return Feedback(
        place(tuple(local), new.local),
        place(tuple(owned), new.owned),
        place(tuple(matrices), new.matrices),
        place(tuple(factors), new.factors),
        _placed(np.asarray(old.step), new.step),
        new.outer,
        new.inner,
    )


def _fit(array: Any, shape: tuple[int, ...], name: str) -> Any:
    """What devices had lost as its mean, at the new length; a bucket's end is filling, and zero.

    Raises:
        ValueError: it is of something else.
    """
    if name in ("local", "matrices"):
        array = array.mean(0, keepdims=True)
    if name in ("local", "owned"):
        if np.any(array[..., shape[-1] :]):
            raise ValueError("the end is no filling")
        array = array[..., : shape[-1]]
        short = shape[-1] - array.shape[-1]
        array = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, short)])
    return np.broadcast_to(array, shape)


def _placed(array: Any, like: Any) -> Any:
    if not isinstance(like, jax.Array):
        return jnp.asarray(array)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])


def _is_spec(part: Any) -> bool:
    return isinstance(part, PartitionSpec)


def _is_feedback(part: Any) -> bool:
    return isinstance(part, Feedback)


def _named(part: Any) -> str:
    return "feedback" if _is_feedback(part) else f"an array of shape {part.shape}"
