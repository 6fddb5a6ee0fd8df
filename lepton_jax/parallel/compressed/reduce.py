"""The mean of gradients over devices with fewer bytes, and what it remembers from step to step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from lepton_jax.parallel.compressed.blocks import block_all_reduce
from lepton_jax.parallel.compressed.manual import axes_size, check_local, gather
from lepton_jax.parallel.compressed.options import Bucket, Buckets, Compression, buckets_of
from lepton_jax.parallel.compressed.power import first_factor, power_all_reduce
from lepton_jax.parallel.compressed.top_k import top_k_all_reduce


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Feedback:
    """What compression remembers from step to step: a pytree of arrays, to be kept with the optimiser's
    state.

    Outside of `jax.shard_map` arrays are whole, as given here; inside, each device has its part (`specs`).

    Attributes:
        local: of each bucket what each device has lost of its own gradients (of their mean over the inner
            axes), float32[devices along the outer axes, length]; inner axes split the second dimension.
        owned: of each bucket what was lost of the mean by the device that owns each part, float32[length].
        matrices: of each matrix of PowerSGD what each device has lost, float32[devices, count, rows,
            columns].
        factors: of each the right factor of the last step, float32[count, columns, rank], the same
            everywhere.
        step: how many steps were made, int32.
        outer: the mesh axes between which what travels is compressed.
        inner: those along which sums are exact.
    """

    local: tuple[Any, ...]
    owned: tuple[Any, ...]
    matrices: tuple[Any, ...]
    factors: tuple[Any, ...]
    step: Any
    outer: tuple[str, ...] = field(metadata={"static": True})
    inner: tuple[str, ...] = field(metadata={"static": True})

    def specs(self) -> Feedback:
        """How each array is split: a `PartitionSpec` in the place of each."""
        whole = PartitionSpec()
        return Feedback(
            tuple(PartitionSpec(self.outer, *([self.inner] if self.inner else [])) for _ in self.local),
            tuple(PartitionSpec((*self.inner, *self.outer)) for _ in self.owned),
            tuple(PartitionSpec(self.outer) for _ in self.matrices),
            tuple(whole for _ in self.factors),
            whole,
            self.outer,
            self.inner,
        )


def init_feedback(gradients: Any, how: Compression, sizes: Mapping[str, int]) -> Feedback:
    """Nothing remembered yet.

    Args:
        gradients: a tree of arrays, or of what has shapes and dtypes, as a device has them.
        how: the compression.
        sizes: of the mesh's axes, as `mesh.shape`.

    Raises:
        ValueError: an axis is none of the mesh.
    """
    for axis in how.axes:
        if axis not in sizes:
            raise ValueError(
                f"{axis!r} is not an axis of the mesh; its axes are {', '.join(map(str, sizes))}"
            )
    outer = math.prod(sizes[axis] for axis in how.outer)
    inner = math.prod(sizes[axis] for axis in how.inner)
    buckets = buckets_of(jax.tree.leaves(gradients), how)
    lengths = [how.padded(bucket.size, outer, inner) for bucket in buckets.flat] if how.feedback else []
    views = [view for _, view in buckets.matrices]
    return Feedback(
        tuple(jnp.zeros((outer, length), jnp.float32) for length in lengths),
        tuple(jnp.zeros((length,), jnp.float32) for length in (lengths if how.is_codes else ())),
        tuple(jnp.zeros((outer, *view), jnp.float32) for view in (views if how.feedback else ())),
        tuple(jnp.asarray(first_factor(view, how.rank, i)) for i, view in enumerate(views)),
        jnp.zeros((), jnp.int32),
        how.outer,
        how.inner,
    )


def all_reduce_mean(gradients: Any, feedback: Feedback, how: Compression) -> tuple[Any, Feedback]:
    """The mean of gradients over the devices of `how.axes`, compressed; the same bits on every device.

    Call it inside `jax.shard_map`, where each device has its own gradients and its part of the feedback.

    Args:
        gradients: a tree of arrays.
        feedback: of `init_feedback` for gradients of these shapes, as `Feedback.specs` splits it.
        how: the compression.

    Returns:
        The means, in the dtypes of the gradients, and the next feedback.

    Raises:
        ValueError: not inside `jax.shard_map` over these axes, gradients that JAX has summed already, or the
            feedback of other gradients or of another number of devices.
    """
    sizes = {axis: axes_size([axis]) for axis in how.axes}
    leaves, tree = jax.tree.flatten(gradients)
    check_local(leaves, how.axes)
    buckets = buckets_of(leaves, how)
    _check_feedback(leaves, feedback, how, sizes)
    if not how.start:
        found, feedback = _compressed(leaves, feedback, buckets, how)
    else:
        found, feedback = lax.cond(
            feedback.step < how.start,
            lambda leaves, feedback: (_exact(leaves, buckets, how), feedback),
            lambda leaves, feedback: _compressed(leaves, feedback, buckets, how),
            leaves,
            feedback,
        )
    state = {f: getattr(feedback, f) for f in ("local", "owned", "matrices", "factors", "outer", "inner")}
    return jax.tree.unflatten(tree, found), Feedback(**state, step=feedback.step + 1)


def _check_feedback(
    leaves: Sequence[Any], feedback: Feedback, how: Compression, sizes: Mapping[str, int]
) -> None:
    outer = math.prod(sizes[axis] for axis in how.outer)
    inner = math.prod(sizes[axis] for axis in how.inner)
    want = jax.eval_shape(lambda: init_feedback([jax.typeof(leaf) for leaf in leaves], how, sizes))
    wanted = Feedback(
        tuple((1, a.shape[1] // inner) for a in want.local),
        tuple((a.shape[0] // (outer * inner),) for a in want.owned),
        tuple((1, *a.shape[1:]) for a in want.matrices),
        tuple(a.shape for a in want.factors),
        (),
        want.outer,
        want.inner,
    )
    for name in ("local", "owned", "matrices", "factors", "outer", "inner"):
        there, here = getattr(feedback, name), getattr(wanted, name)
        shapes = there if name in ("outer", "inner") else tuple(a.shape for a in there)
        if shapes != here:
            raise ValueError(
                f"the feedback is of other gradients, options or devices: {name} is {shapes} on each device, "
                f"not {here}. Begin anew with init, or bring it over with lepton.refit; inside jax.shard_map "
                "its in_specs are lepton.state_specs(state)"
            )


def _exact(leaves: Sequence[jax.Array], buckets: Buckets, how: Compression) -> list[jax.Array]:
    """The means as they are, all by a few all-reduces."""
    found = list(leaves)
    every = [*buckets.exact, *buckets.flat, *(Bucket((i,), (leaves[i].shape,)) for i, _ in buckets.matrices)]
    for bucket in every:
        dtypes = {leaves[i].dtype for i in bucket.leaves}
        dtype = dtypes.pop() if len(dtypes) == 1 else jnp.dtype(jnp.float32)
        mean = lax.pmean(_packed(leaves, bucket, bucket.size, dtype), how.axes)
        _unpack(mean, bucket, leaves, found)
    return found


def _compressed(
    leaves: Sequence[jax.Array], feedback: Feedback, buckets: Buckets, how: Compression
) -> tuple[list[jax.Array], Feedback]:
    found = _exact(leaves, Buckets(buckets.exact, (), ()), how)
    locals_, owners = [], []
    for at, bucket in enumerate(buckets.flat):
        local = feedback.local[at].reshape(-1) if how.feedback else None
        owned = feedback.owned[at] if how.feedback and how.is_codes else None
        means, local, owned = _mean_of_bucket(leaves, bucket, how, local, owned)
        locals_.append(local[None])
        owners.append(owned)
        _unpack(means, bucket, leaves, found)
    matrices, factors = _by_powers(leaves, found, feedback, buckets, how)
    if not how.feedback:
        locals_, owners, matrices = [], [], []
    return found, Feedback(
        tuple(locals_),
        tuple(owners if how.is_codes else ()),
        tuple(matrices),
        tuple(factors),
        feedback.step,
        how.outer,
        how.inner,
    )


def _mean_of_bucket(
    leaves: Sequence[jax.Array], bucket: Bucket, how: Compression, local: Any = None, owned: Any = None
) -> tuple[jax.Array, jax.Array, Any]:
    """The mean of a bucket as one vector, and what is lost: of this device's and of what it owns."""
    outer, inner = axes_size(how.outer), axes_size(how.inner)
    x = _packed(leaves, bucket, how.padded(bucket.size, outer, inner), jnp.dtype(jnp.float32))
    if how.inner:
        x = lax.psum_scatter(x, how.inner, tiled=True) / inner
    if how.is_codes:
        x, local, owned = block_all_reduce(x, how.outer, how.method, how.block, local, owned, 1 / outer)
    else:
        x, local = top_k_all_reduce(x, how.outer, how.share, local, 1 / outer)
    return gather(x, how.inner) if how.inner else x, local, owned


def sums_of_bucket(leaves: Sequence[jax.Array], bucket: Bucket, how: Compression) -> list[jax.Array]:
    """The sums over devices of arrays that travel together, with nothing remembered; in their dtypes."""
    mean, _, _ = _mean_of_bucket(leaves, bucket, how)
    found = list(leaves)
    _unpack(mean * axes_size(how.axes), bucket, leaves, found)
    return found


def _by_powers(
    leaves: Sequence[jax.Array],
    found: list[jax.Array],
    feedback: Feedback,
    buckets: Buckets,
    how: Compression,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """PowerSGD of what it takes, into `found`; the next feedback and factors."""
    if not buckets.matrices:
        return [], []
    given = [leaves[i].astype(jnp.float32).reshape(view) for i, view in buckets.matrices]
    if how.inner:
        given = [lax.pmean(each, how.inner) for each in given]
    local = [each[0] for each in feedback.matrices] if how.feedback else None
    scale = 1 / axes_size(how.outer)
    sums, factors, lost = power_all_reduce(given, feedback.factors, how.outer, local, scale)
    for (i, _), whole in zip(buckets.matrices, sums, strict=True):
        found[i] = whole.reshape(leaves[i].shape).astype(leaves[i].dtype)
    return [each[None] for each in lost], factors


def _packed(leaves: Sequence[jax.Array], bucket: Bucket, length: int, dtype: Any) -> jax.Array:
    """The gradients of a bucket as one vector, filled up with zeros."""
    parts = [leaves[i].astype(dtype).reshape(-1) for i in bucket.leaves]
    if length > bucket.size:
        parts.append(jnp.zeros((length - bucket.size,), dtype))
    return jnp.concatenate(parts) if len(parts) > 1 else parts[0]


def _unpack(whole: jax.Array, bucket: Bucket, leaves: Sequence[jax.Array], into: list[jax.Array]) -> None:
    ends = np.cumsum([0, *(math.prod(shape) for shape in bucket.shapes)]).tolist()
    for i, shape, start, end in zip(bucket.leaves, bucket.shapes, ends, ends[1:], strict=False):
        into[i] = lax.slice_in_dim(whole, start, end).reshape(shape).astype(leaves[i].dtype)
