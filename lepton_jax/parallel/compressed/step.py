"""A training step over copies of the parameters: each device differentiates its part of the batch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_flatten_with_path

from lepton_jax.ir._jax import varying_axes
from lepton_jax.ir.paths import leaf_paths
from lepton_jax.parallel.compressed.optimizer import check_mesh, state_specs, summed_axes

if TYPE_CHECKING:
    import optax


class DataParallel:
    """A training step in which each device has the parameters and a part of the batch.

    Made by `data_parallel`.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        tx: optax.GradientTransformation,
        mesh: jax.sharding.Mesh,
        axes: tuple[str, ...],
        has_aux: bool,
        donate: bool,
    ) -> None:
        self._loss = loss
        self._tx = tx
        self._mesh = mesh
        self._axes = axes
        self._has_aux = has_aux
        self._step: Any = jax.jit(self._made, donate_argnums=(0, 1) if donate else ())

    def init(self, params: Any) -> tuple[Any, Any]:
        """The parameters on every device of the mesh, and the optimiser's first state.

        Args:
            params: a tree of arrays, the same in every process.
        """
        copies = NamedSharding(self._mesh, PartitionSpec())
        params = jax.device_put(params, copies)
        specs = state_specs(jax.eval_shape(self._tx.init, params))
        places = jax.tree.map(
            lambda spec: NamedSharding(self._mesh, spec),
            specs,
            is_leaf=_is_spec,
        )
        return jax.jit(lambda p: p, out_shardings=copies)(params), jax.jit(
            self._tx.init, out_shardings=places
        )(params)

    def step(self, params: Any, state: Any, batch: Any) -> tuple[Any, Any, Any]:
        """One step of training.

        Args:
            params, state: of `init`, or of the step before; they are donated.
            batch: a tree of arrays; the devices along the axes divide the first dimension of each. Scalars,
                random keys too, go to all devices as they are: `jax.lax.axis_index` tells these apart. In a
                program of several processes: global arrays, or the same on the host in all of them.

        Returns:
            The new parameters and state, and the mean of the devices' losses; with `has_aux` the pair of it
            and the mean of what else the loss gives.
        """
        found: tuple[Any, Any, Any] = self._step(params, state, self._split(batch))
        return found

    def lower(self, params: Any, state: Any, batch: Any) -> Any:
        """The step's `jax.stages.Lowered` for such arguments, arrays or shapes."""
        return self._step.lower(params, state, self._split(batch))

    def _split(self, batch: Any) -> Any:
        """A batch over the devices.

        Raises:
            ValueError: they cannot divide the first dimension of an array.
        """
        count = math.prod(self._mesh.shape[axis] for axis in self._axes)
        for way, array in tree_flatten_with_path(batch)[0]:
            if np.shape(array) and np.shape(array)[0] % count:
                name = "/".join(filter(None, ("batch", keystr(way, simple=True, separator="/"))))
                raise ValueError(
                    f"{name} has shape {np.shape(array)}: {count} devices along {', '.join(self._axes)} "
                    "divide the first dimension of each array of a batch; leave out the last few, or fill up"
                )
        return jax.tree.map(self._placed, batch)

    def _placed(self, array: Any) -> Any:
        """An array of a batch over the devices; arrays of several processes stay as they are."""
        place = NamedSharding(self._mesh, self._cut(array))
        if isinstance(array, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return array
        return jax.device_put(array, place)

    def _cut(self, array: Any) -> PartitionSpec:
        return PartitionSpec(self._axes) if np.ndim(array) else PartitionSpec()

    def _made(self, params: Any, state: Any, batch: Any) -> Any:
        whole, specs, cut = PartitionSpec(), state_specs(state), jax.tree.map(self._cut, batch)
        self._check_same(params, state, specs)
        return jax.shard_map(
            self._on_each,
            mesh=self._mesh,
            in_specs=(whole, specs, cut),
            out_specs=(whole, specs, whole),
            check_vma=False,
        )(params, state, batch)

    def _check_same(self, params: Any, state: Any, specs: Any) -> None:
        """Look whether what should be the same on all devices is, where `compressed` adds up gradients.

        The optimiser is traced once more, with JAX following what differs from device to device. What it
        cannot follow, as branches that differ in it, is not looked at.

        Raises:
            ValueError: a parameter would take each device's own gradient.

        Warns:
            UserWarning: a state of its own on each device is no part of the feedback.
        """
        summed = summed_axes(state)
        if not summed or any(axes != set(self._axes) for axes in summed):
            return
        own: list[bool] = []

        def update(slope: Any, params: Any, state: Any) -> Any:
            import optax

            updates, after = self._tx.update(slope, state, params)
            return optax.apply_updates(params, updates), after

        def look(params: Any, state: Any) -> tuple[()]:
            slope = jax.tree.map(lambda p: lax.pcast(p, self._axes, to="varying"), params)
            program = jax.make_jaxpr(update)(slope, params, state)
            own.extend(_varying_with(program, len(jax.tree.leaves(slope))))
            return ()

        places = (PartitionSpec(), specs)
        try:
            jax.eval_shape(jax.shard_map(look, mesh=self._mesh, in_specs=places, out_specs=()), params, state)
        except Exception:  # the step itself is traced next, and raises what is wrong with it
            return
        names = leaf_paths("params", params)
        weights, rest = own[: len(names)], own[len(names) :]
        if any(weights):
            raise ValueError(
                f"{names[weights.index(True)]} would take each device's own gradient, which no "
                f"lepton.compressed adds up over {', '.join(self._axes)}: wrap the whole optimiser, as "
                "lepton.compressed(optax.multi_transform(...), ...); gradients below smallest= go exactly"
            )
        split = [any(spec) for spec in jax.tree.leaves(specs, is_leaf=_is_spec)]
        every = zip(leaf_paths("state", state), rest, split, strict=True)
        kept = [path for path, differs, is_split in every if differs and not is_split]
        if kept:
            warnings.warn(
                f"{kept[0]} stands before lepton.compressed: it is of its own on each device, and a "
                "checkpoint keeps that of one. Wrap the whole optimiser: lepton.compressed(optax.chain(...))",
                stacklevel=2,
            )

    def _on_each(self, params: Any, state: Any, batch: Any) -> Any:
        import optax

        found, slope = jax.value_and_grad(self._loss, has_aux=self._has_aux)(params, batch)
        summed = summed_axes(state)
        if wrong := [axes for axes in summed if axes != set(self._axes)]:
            raise ValueError(
                f"data_parallel splits the batch over {', '.join(self._axes)}, and compressed adds up "
                f"gradients over {', '.join(sorted(wrong[0]))} alone: give it axes={self._axes}, and in "
                "inner= those over which sums shall be exact"
            )
        if not summed:
            slope = lax.pmean(slope, self._axes)
        updates, state = self._tx.update(slope, state, params)
        return optax.apply_updates(params, updates), state, lax.pmean(found, self._axes)


def _varying_with(closed: Any, count: int) -> list[bool]:
    """Of each result of a program whether it depends on one of the first inputs and differs along an axis.

    JAX counts as differing what has only the shape of what differs, as the zeros for frozen parameters.
    """
    touched = {id(v) for v in closed.jaxpr.invars[:count]}
    for eqn in closed.jaxpr.eqns:
        if any(id(v) in touched for v in eqn.invars):
            touched.update(map(id, eqn.outvars))
    return [id(v) in touched and bool(varying_axes(v.aval)) for v in closed.jaxpr.outvars]


def _is_spec(part: Any) -> bool:
    return isinstance(part, PartitionSpec)


def data_parallel(
    loss: Callable[..., Any],
    tx: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    *,
    axes: str | Sequence[str] | None = None,
    has_aux: bool = False,
    donate: bool = True,
) -> DataParallel:
    """A training step for which every device has all parameters and its part of each batch.

    Gradients are added up exactly, or with `tx = lepton.compressed(...)` as that says.

    Args:
        loss: of the parameters and a batch, a mean over the batch; as for `jax.value_and_grad`.
        tx: the optimiser.
        mesh: of the devices.
        axes: over which batches are split; default: all of the mesh.
        has_aux: whether the loss gives a pair of the loss and more arrays.
        donate: whether a step may write over the parameters and the state that it is given.

    Raises:
        TypeError: the mesh is none of JAX's.
        ValueError: there are more axes on the mesh, along which parameters would be copied and nothing split.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> train = data_parallel(lambda w, x: ((x @ w) ** 2).mean(), optax.sgd(0.1), mesh)
        >>> w, state = train.init(jnp.ones(2))
        >>> w, state, loss = train.step(w, state, jnp.eye(2))
        >>> float(loss), w.tolist()
        (1.0, [0.8999999761581421, 0.8999999761581421])
    """
    check_mesh(mesh)
    names = tuple(map(str, mesh.axis_names))
    chosen = names if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
    for axis in chosen:
        if axis not in names:
            raise ValueError(f"{axis!r} is not an axis of the mesh; its axes are {', '.join(names)}")
    if rest := [name for name in names if name not in chosen and mesh.shape[name] > 1]:
        raise ValueError(
            f"data_parallel copies the parameters along all axes of the mesh, and {rest[0]!r} is not among "
            f"{chosen}: name it too, or write the step with jax.shard_map and tx.update"
        )
    return DataParallel(loss, tx, mesh, chosen, has_aux, donate)
