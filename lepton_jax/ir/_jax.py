"""Everything Lepton knows about JAX that changes between JAX versions.

No other module but `_primitives` imports `jax._src`, `jax.interpreters` or `jax.extend`.
Two generations are supported: up to 0.10 a `ClosedJaxpr` pairs an open `Jaxpr` with its
constants and scan counts its operands in `num_consts`/`num_carry`; from 0.11 there is one
class, and scan describes its operands by trees (`ft_in`, `ft_out`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax._src import config as _config
from jax._src import source_info_util as _source_info
from jax.extend.core import primitives as _primitives
from jax.sharding import NamedSharding

Literal = jex.Literal
DropVar = jex.DropVar
Tracer = jax.core.Tracer
ShapedArray = jax.core.ShapedArray

_MERGED: Final = issubclass(jex.ClosedJaxpr, jex.Jaxpr)  # from 0.11


# Jaxprs


def parts(jaxpr: Any) -> tuple[list[Any], list[Any], list[Any], list[Any], list[Any]]:
    """(constvars, consts, invars, eqns, outvars) of an open or closed jaxpr.

    An open jaxpr with constvars has no constants to give them; there is none in the
    primitives that `region_jaxprs` opens.
    """
    opened = jaxpr if _MERGED else getattr(jaxpr, "jaxpr", jaxpr)
    consts = list(getattr(jaxpr, "consts", ()) or ())
    return list(opened.constvars), consts, list(opened.invars), list(opened.eqns), list(opened.outvars)


def open_jaxpr(closed: Any) -> Any:
    """A constant-free closed jaxpr as primitives with an open one (remat) want it."""
    return closed if _MERGED else closed.jaxpr


def is_closed(jaxpr: Any) -> bool:
    """Whether a jaxpr may carry constants of its own."""
    return _MERGED or isinstance(jaxpr, jex.ClosedJaxpr)


def is_jaxpr(thing: Any) -> bool:
    """Whether it is a jaxpr, open or closed."""
    return isinstance(thing, (jex.Jaxpr, jex.ClosedJaxpr))


def is_high(jaxpr: Any) -> bool:
    """Whether it uses hijax values, which Lepton leaves alone."""
    return bool(getattr(jaxpr, "is_high", False))


def eval_jaxpr(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr under the current trace."""
    opened = jaxpr if _MERGED else getattr(jaxpr, "jaxpr", jaxpr)
    return list(jax.core.eval_jaxpr(opened, consts, *args))


def trace_flat(fun: Callable[..., Sequence[Any]], avals: Sequence[Any]) -> Any:
    """The closed jaxpr of `fun` on flat abstract values."""
    return jax.make_jaxpr(fun)(*avals)


def without_consts(closed: Any) -> tuple[Any, list[Any]]:
    """The same jaxpr with its constants as leading inputs, and these constants."""
    _, consts, _, _, _ = parts(closed)
    if not consts:
        return closed, []

    def fun(*args: Any) -> list[Any]:
        return eval_jaxpr(closed, args[: len(consts)], args[len(consts) :])

    return trace_flat(fun, [*map(jax.typeof, consts), *closed.in_avals]), consts


def forget_tracers(closed: Any) -> Any:
    """The jaxpr with shapes in place of constants that are tracers, so that it may outlive their trace."""
    _, consts, _, _, _ = parts(closed)
    if not any(isinstance(c, Tracer) for c in consts):
        return closed
    shapes = [jax.ShapeDtypeStruct(c.shape, c.dtype) if isinstance(c, Tracer) else c for c in consts]
    return closed.with_consts(shapes) if _MERGED else jex.ClosedJaxpr(closed.jaxpr, shapes)


# Primitives


def primitive(name: str) -> Any:
    """The primitive that `jax.extend.core.primitives` calls `name`.

    Raises:
        KeyError: there is no such primitive in this JAX.
    """
    return _primitive_table()[name]


_PRIMITIVES: dict[str, Any] = {}


def _primitive_table() -> dict[str, Any]:
    if not _PRIMITIVES:
        for module in (_primitives, jax.lax):
            for key in dir(module):
                if key.endswith("_p"):
                    found = getattr(module, key)
                    _PRIMITIVES.setdefault(found.name, found)
    return _PRIMITIVES


def set_weak_type(array: Any, weak_type: bool) -> Any:
    """`array` with its weak type set, which no public function does."""
    return primitive("convert_element_type").bind(
        array, new_dtype=jax.typeof(array).dtype, weak_type=weak_type, sharding=None
    )


def is_array_aval(aval: Any) -> bool:
    """Whether it is an ordinary array (not a token, not a mutable reference)."""
    return isinstance(aval, ShapedArray)


def varying_axes(x: Any) -> frozenset[str]:
    """The manual mesh axes along which JAX knows an array to differ; none where `shard_map` does not check.

    Args:
        x: an array, or an abstract value.
    """
    aval = x if isinstance(x, ShapedArray) else jax.typeof(x)
    kind = getattr(aval, "manual_axis_type", None)
    return frozenset(kind.varying if kind is not None else getattr(aval, "vma", ()))


def in_shard_map(x: Any) -> Any:
    """A shape on the mesh of the `shard_map` around, as arrays in it are; all else as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if not isinstance(x, jax.ShapeDtypeStruct) or not mesh.manual_axes:
        return x
    return jax.ShapeDtypeStruct(
        x.shape, x.dtype, weak_type=x.weak_type, sharding=NamedSharding(mesh, jax.P())
    )


def aval_off_mesh(aval: Any) -> Any:
    """What there is to an abstract value but the mesh around its trace."""
    if not isinstance(aval, ShapedArray):
        return aval
    return (aval.shape, aval.dtype, aval.weak_type, sharding_off_mesh(aval.sharding))


def sharding_off_mesh(value: Any) -> Any:
    """None in place of a sharding that names a mesh and splits nothing; all else as it is."""
    if not isinstance(value, NamedSharding) or not isinstance(value.mesh, jax.sharding.AbstractMesh):
        return value
    return None if all(part is None for part in value.spec) else value


@functools.cache
def is_extended(dtype: Any) -> bool:
    """Whether it is an extended dtype, such as that of PRNG keys."""
    return bool(jnp.issubdtype(dtype, jax.dtypes.extended))


def plain_constant(array: Any) -> Any | None:
    """A constant as a numpy array, or None where its contents are not to be had.

    Tracers, PRNG keys and arrays spread over several processes have no plain contents.
    """
    if isinstance(array, np.ndarray):
        return array
    if isinstance(array, (Tracer, jax.ShapeDtypeStruct)) or is_extended(
        getattr(array, "dtype", np.dtype(bool))
    ):
        return None
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None
    return np.asarray(array)


# Where an equation comes from


def inlined_source(source: Any, outer: Any, name: str | None) -> Any:
    """The source of an inlined equation: the call's name stack, the function's name, its own."""
    stack = outer.name_stack
    if name is not None:
        stack = stack.extend(name)
    return source.replace(name_stack=stack + source.name_stack)


class Placement:
    """Restores source information and equation contexts while a graph is re-evaluated.

    Entering a context is slow, so neighbours that share one enter it once.
    """

    def __init__(self) -> None:
        self._base = _source_info.current_name_stack()
        self._stacks: dict[int, tuple[Any, Any]] = {}
        self._context: Any = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Placement:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._open.__exit__(*error)

    def at(self, source: Any, context: Any) -> contextlib.AbstractContextManager[Any]:
        """A context manager in which to bind an equation from `source` in `context`."""
        if context is not self._context:
            self._open.close()
            self._context = context
            if context is not None:
                self._open.enter_context(context.manager)
        if source is None:
            return contextlib.nullcontext()
        known = self._stacks.get(id(source.name_stack))
        if known is None:
            known = (source.name_stack, self._base + source.name_stack)
            self._stacks[id(source.name_stack)] = known
        manager: contextlib.AbstractContextManager[Any] = _source_info.user_context(
            source.traceback, name_stack=known[1]
        )
        return manager


def summarize(source: Any) -> str:
    """The user's file and line of an equation."""
    return "unknown" if source is None else str(_source_info.summarize(source))


# Primitives that hold jaxprs. `region_jaxprs` takes them out of the parameters;
# `bind_region` puts new ones in.

_JAXPR_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "jit": ("jaxpr",),
    "closed_call": ("call_jaxpr",),
    "core_call": ("call_jaxpr",),
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
    "remat2": ("jaxpr",),
    "checkpoint": ("jaxpr",),
    "shard_map": ("jaxpr",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr",),
    "custom_linear_solve": ("jaxprs",),
}

REGION_OPS: Final = frozenset(_JAXPR_KEYS)


def region_jaxprs(op: str, raw: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]] | None:
    """The jaxprs of a region operation and its other parameters; None for all other primitives.

    Scan's parameters come out as `num_consts` and `num_carry` under every JAX.
    """
    keys = _JAXPR_KEYS.get(op)
    if keys is None or any(key not in raw for key in keys):
        return None
    jaxprs = [j for key in keys for j in (raw[key] if isinstance(raw[key], tuple) else (raw[key],))]
    if not all(is_jaxpr(j) and not is_high(j) for j in jaxprs):
        return None
    params = {key: value for key, value in raw.items() if key not in keys}
    if op == "scan" and "ft_in" in params:
        consts, carry, _ = (len(tree) for tree in params.pop("ft_in").unpack())
        params.pop("ft_out")
        params.update(num_consts=consts, num_carry=carry)
    return jaxprs, params


def jit_is_plain(params: Mapping[str, Any]) -> bool:
    """Whether a jit node does nothing but call: no shardings, layouts, donation or compiler options."""
    unspecified = (*params.get("in_shardings", ()), *params.get("out_shardings", ()))
    layouts = (*params.get("in_layouts", ()), *params.get("out_layouts", ()))
    return (
        all(type(s).__name__ == "UnspecifiedValue" for s in unspecified)
        and all(layout is None for layout in layouts)
        and not any(params.get("donated_invars", ()))
        and not params.get("compiler_options_kvs", ())
    )


def context_off_mesh(context: Any) -> Any:
    """The context that an equation has with no mesh around it, otherwise the same; JAX has one of each."""
    if context is None or context.cur_abstract_mesh.empty:
        return context
    with context.manager, jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        return type(context)()


def x64_enabled() -> bool:
    """Whether 64-bit types are on in this thread."""
    return bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]


def matmul_precision() -> Any:
    """The default precision of matrix products in this thread."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def backend_platform() -> str:
    """The platform of the default backend: cpu, gpu or tpu."""
    name = jax.default_backend()
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def hide_frames(file: str) -> None:
    """Where an equation comes from, say the line of the caller of the functions in a file."""
    _source_info.register_exclusion(file)


# Compiling ahead of time


def compile_lowered(
    lowered: Any, devices: Sequence[Any], compiler_options: Mapping[str, Any] | None = None
) -> Any:
    """Compile what was lowered on an abstract mesh for these devices, present or not.

    `lowered.compile(device_assignment=...)` takes the compiler of JAX's default backend whatever the devices
    are; this takes that of the devices. What was lowered for devices of its own is compiled for those.

    Raises:
        AttributeError: this JAX keeps what it lowered in another way.
    """
    inner = lowered._lowering
    options = None if compiler_options is None else dict(compiler_options)
    if inner._device_list is not None:
        return lowered.compile(options)
    known = inner.compile_args
    inner.compile_args = {**known, "backend": devices[0].client}
    try:
        return lowered.compile(options, device_assignment=tuple(devices))
    finally:
        inner.compile_args = known


def run_mlir_passes(lowered: Any, pipelines: Sequence[str]) -> Any:
    """The module of what was lowered, after passes of MLIR; the one in `lowered` stays as it is.

    Returns:
        A `builtin.module` operation of jaxlib's MLIR, with `regions`, `attributes` and so on.

    Raises:
        ImportError, AttributeError: this jaxlib has no MLIR passes in Python.
        ValueError: it does not know one of the passes.
        RuntimeError: a pass failed.
    """
    from jaxlib.mlir import passmanager

    module = lowered.compiler_ir("stablehlo")
    with module.context:
        copied = module.operation.clone()
        for pipeline in pipelines:
            try:
                passmanager.PassManager.parse(pipeline).run(getattr(copied, "operation", copied))
            except Exception as error:
                kind = ValueError if "MLIRError" not in type(error).__name__ else RuntimeError
                raise kind(f"{pipeline}: {str(error).splitlines()[0]}") from error
    return copied


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Evaluate now, although a trace may be running around (for constant folding)."""
    with jax.core.ensure_compile_time_eval():
        yield


def without_places() -> contextlib.AbstractContextManager[None]:
    """While it lasts, programs do not say from which lines of which files they were traced."""
    return _config.traceback_in_locations_limit(0)  # type: ignore[no-any-return]
