"""`lepton.pipelined`: a loss whose layers stand on different devices, with its gradients."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from lepton_jax.ir.importer import trace
from lepton_jax.ir.paths import leaf_paths
from lepton_jax.parallel.meshes import MeshSpec, automatic
from lepton_jax.parallel.microbatches import nearest
from lepton_jax.parallel.pipeline import orders
from lepton_jax.parallel.pipeline.packed import PackedPipeline, Place
from lepton_jax.parallel.pipeline.schedules import Schedule, Task
from lepton_jax.parallel.pipeline.schedules import schedule as make_schedule
from lepton_jax.parallel.pipeline.stages import Marks, Stages, cut

_RAW_KEY: Final = (
    ". If it is a random key, make it by jax.random.key: that is one number, and every microbatch gets it"
)


class Pipelined:
    """A loss and its gradients, computed by a pipeline of devices. `pipelined` makes it.

    Attributes:
        schedule: which device does what when.
    """

    schedule: Schedule

    def __init__(
        self,
        fun: Callable[..., Any],
        mesh: Mesh | AbstractMesh,
        table: Schedule,
        *,
        axis: str,
        data: tuple[str, ...],
        spec: MeshSpec,
        shared: Sequence[str] | None,
        memory: float | None,
        marks: Marks,
    ) -> None:
        self.fun = fun
        self.schedule = table
        self._place, self._spec = Place(automatic(mesh), axis, data, spec.size(*data)), spec
        self._shared, self._memory, self._marks = shared, memory, marks
        self._train = jax.jit(partial(self._call, table))
        self._loss = jax.jit(partial(self._call, _forward_only(table)))

    def __call__(self, params: Any, *batch: Any) -> tuple[Any, Any]:
        """The loss and its gradients.

        Args:
            params: a tree of floating-point arrays.
            batch: trees of arrays whose first dimension is that of examples; scalars are given to all.

        Returns:
            The mean of the microbatches' losses, and a tree of gradients as `params`.

        Raises:
            ValueError: the examples do not divide into microbatches, or the loss is not one number.
            StageError: it cannot be cut into the stages.
        """
        args = self._placed((params, *batch))
        with _automatic_context(self._place.mesh, args):
            found: tuple[Any, Any] = self._train(*args)
        return found

    def loss(self, params: Any, *batch: Any) -> Any:
        """The loss alone: forward tasks only. Arguments and errors as for calls."""
        args = self._placed((params, *batch))
        with _automatic_context(self._place.mesh, args):
            return self._loss(*args)[0]

    def lower(self, params: Any, *batch: Any) -> Any:
        """As `jax.jit(…).lower`, of the loss with gradients. Arrays may be `jax.ShapeDtypeStruct`s."""
        args = self._placed((params, *batch))
        with _automatic_context(self._place.mesh, args):
            return self._train.lower(*args)

    def stages(self, params: Any, *batch: Any) -> Stages:
        """How the loss is cut for arguments of these shapes; readable as text."""
        return self.packed(params, *batch).stages

    def packed(self, params: Any, *batch: Any) -> PackedPipeline:
        """The pipeline for arguments of these shapes, whose parameters lie where the stages are.

        Args:
            params: as for calls; arrays may be `jax.ShapeDtypeStruct`s.
            batch: likewise.
        """
        with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):  # stages are traced for one device
            return self._packed(params, batch)

    def _packed(self, params: Any, batch: tuple[Any, ...]) -> PackedPipeline:
        leaves = [_struct(x) for x in jax.tree.leaves(params)]
        names = self._names(params, batch)
        for name, leaf in zip(names, leaves, strict=False):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                raise ValueError(f"{name} has no gradient: its dtype is {leaf.dtype}. Give it with the batch")
        small = jax.tree.unflatten(
            jax.tree.structure(batch),
            [
                self._small(name, x)
                for name, x in zip(names[len(leaves) :], jax.tree.leaves(batch), strict=True)
            ],
        )
        graph = trace(self.fun, jax.tree.map(_struct, params), *small)
        if (
            len(graph.outputs) != 1
            or graph.outputs[0].shape
            or not jnp.issubdtype(graph.outputs[0].dtype, jnp.floating)
        ):
            raise ValueError(
                "a pipeline wants a loss, one floating-point number; "
                f"{graph.name} returns {', '.join(str(v.aval) for v in graph.outputs) or 'nothing'}"
            )
        virtual = self.schedule.virtual
        live = [
            -(-self.schedule.live[c % self.schedule.stages] // virtual) for c in range(self.schedule.chunks)
        ]
        stages = cut(
            graph,
            self.schedule.chunks,
            self._spec,
            self._place.axis,
            params=range(len(leaves)),
            names=names,
            live=live,
            memory=None if self._memory is None else self._memory / virtual,
            marks=self._marks,
            shared=self._shared,
        )
        return PackedPipeline(stages, self.schedule, self._place, jax.tree.structure(params), leaves)

    def _call(self, table: Schedule, params: Any, *batch: Any) -> tuple[Any, Any]:
        found = self.packed(params, *batch)
        loss, grads = found.run(table, found.pack(params), batch)
        return loss, None if grads is None else found.unpack(grads)

    def _small(self, name: str, x: Any) -> jax.ShapeDtypeStruct:
        """An array of one microbatch on one device."""
        given = _struct(x)
        if not given.shape:
            return given
        shards, data = self._place.shards, self._place.data
        parts = self.schedule.microbatches * shards
        if given.shape[0] % parts:
            below = given.shape[0] // parts * parts
            near = f"{below} or {below + parts}" if below else f"{parts}"
            own, left = divmod(given.shape[0], shards)
            fewer = "" if left else f", or {nearest(own, self.schedule.microbatches)} microbatches"
            raise ValueError(
                f"{name} has {given.shape[0]} examples, which {self.schedule.microbatches} microbatches"
                + (f" on {shards} devices of {'+'.join(data)}" if data else "")
                + f" do not divide: {near} examples would do{fewer}"
                + (_RAW_KEY if given.dtype == jnp.uint32 and given.shape in ((2,), (4,)) else "")
            )
        return jax.ShapeDtypeStruct((given.shape[0] // parts, *given.shape[1:]), given.dtype)

    def _names(self, params: Any, batch: tuple[Any, ...]) -> list[str]:
        try:
            words = [str(name) for name in inspect.signature(self.fun).parameters]
        except (TypeError, ValueError):
            words = []
        words += [f"argument{i}" for i in range(len(words), len(batch) + 1)]
        return [
            path
            for word, tree in zip(words, (params, *batch), strict=False)
            for path in leaf_paths(word, tree)
        ]

    def _placed(self, tree: Any) -> Any:
        """Arrays of an explicit mesh as arrays of the same, automatic one."""

        def placed(x: Any) -> Any:
            sharding = getattr(x, "sharding", None)
            if isinstance(x, jax.core.Tracer) or not isinstance(sharding, NamedSharding):
                return x
            if all(kind is AxisType.Auto for kind in sharding.mesh.axis_types):
                return x
            free = NamedSharding(automatic(sharding.mesh), sharding.spec)
            if isinstance(x, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=free)
            return jax.device_put(x, free)

        return jax.tree.map(placed, tree)


def pipelined(
    fun: Callable[..., Any],
    mesh: Mesh | AbstractMesh,
    axis: str = "stage",
    *,
    microbatches: int,
    schedule: str = "1f1b",
    virtual: int = 1,
    data: str | Sequence[str] = (),
    shared: Sequence[str] | None = None,
    memory: float | None = None,
    marks: Marks = "use",
    chip: str | None = None,
) -> Pipelined:
    """A loss written for one device, computed with its gradients by a pipeline of devices.

    The loss is traced with one microbatch and cut into stages (see `cut`), which run as one program on all
    devices by the schedule. A stage computes its forward work again before it goes backward, and keeps what
    it received meanwhile.

    Args:
        fun: `(params, *batch) -> loss`, a mean over the examples along the first dimension of the batch;
            `lepton.optimize(fun)` too.
        mesh: JAX's; axes that are neither `axis` nor in `data` are left to the compiler.
        axis: the axis along which stages stand.
        microbatches: into how many the batch of each device of the data axes is cut.
        schedule: `gpipe`, `1f1b`, `eager-1f1b`, `interleaved` or `zb-h1`.
        virtual: chunks of layers on each device, with `interleaved`.
        data: axes that split the batch; gradients are summed over them once a step.
        shared: patterns of the parameters that several stages may read (default: all).
        memory: bytes that no device may exceed by prediction, without the optimiser's state.
        marks: whether `lepton.stage_boundary` says where stages end: `use` or `ignore`.
        chip: what the mesh is made of, as in `MeshSpec.of`.

    Returns:
        A function `(params, *batch) -> (loss, grads)`.

    Raises:
        TypeError: the mesh is none of JAX's, or the memory no number.
        ValueError: the mesh has no such axis, the numbers do not fit the schedule, or the loss is spread over
            a mesh already.

    Example:
        step = lepton.pipelined(loss, mesh, microbatches=8)
        value, grads = step(params, tokens)
    """
    if not isinstance(mesh, (Mesh, AbstractMesh)):
        raise TypeError(
            f"a pipeline's mesh is a jax.sharding.Mesh, as jax.make_mesh((2,), ({axis!r},)), not {mesh!r}"
        )
    if getattr(getattr(fun, "options", None), "spread", None) is not None:
        raise ValueError(
            "a pipeline lays its stages out itself: give lepton.optimize(fun) no mesh= and no shard=; mesh, "
            "axis and data of the pipeline say which axes there are"
        )
    spec = MeshSpec.of(mesh, chip)
    names = (data,) if isinstance(data, str) else tuple(data)
    for name in (axis, *names):
        spec.axis(name)
    if axis in names or len(set(names)) < len(names):
        raise ValueError(
            f"{axis!r} and {names} name one axis twice: stages and the batch lie on different axes"
        )
    if marks not in ("use", "ignore"):
        raise ValueError(f"marks is 'use' or 'ignore', not {marks!r}")
    if isinstance(memory, str):
        raise TypeError(f"memory is a number of bytes, as 14e9, not {memory!r}")
    table = make_schedule(schedule, spec.size(axis), microbatches, virtual)
    return Pipelined(
        fun, mesh, table, axis=axis, data=names, spec=spec, shared=shared, memory=memory, marks=marks
    )


def _forward_only(table: Schedule) -> Schedule:
    """The forward tasks of a schedule, each as early as it can run."""
    every: list[orders.Order] = [
        [
            (task.work, task.microbatch, task.chunk)
            for row in table.table
            if (task := row[device]) and task.work == "F"
        ]
        for device in range(table.stages)
    ]
    rows = tuple(
        tuple(None if cell is None else Task(*cell) for cell in row) for row in orders.in_order(every)
    )
    return replace(table, table=rows)


def _automatic_context(mesh: Any, args: Any) -> contextlib.AbstractContextManager[Any]:
    """Where the user has set an explicit mesh, the same one with all axes left to the compiler."""
    around = jax.sharding.get_abstract_mesh()
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args))
    if traced or not isinstance(mesh, Mesh) or all(kind is AxisType.Auto for kind in around.axis_types or ()):
        return contextlib.nullcontext()
    return jax.set_mesh(mesh)


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    aval = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)
