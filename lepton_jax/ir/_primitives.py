"""The operations that Lepton adds to JAX's."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad, batching, mlir

from lepton_jax.ir._jax import ShapedArray, hide_frames

SHARD_HINT: Final = "shard_hint"


def compiled_on(platform: str, fun: Callable[..., Any], default: Callable[..., Any], *args: Any) -> Any:
    """`fun(*args)` in programs for one device of this platform alone, `default(*args)` in all others.

    As `jax.lax.platform_dependent`, but also for what cannot be exported: Pallas kernels are lowered for all
    platforms of an exported program, and those for Triton are not allowed in one. So exported
    programs get `default`. There are no derivatives and no batches: give these rules to the caller.

    Args:
        platform: `cuda`, `rocm`, `tpu` or `cpu`.
        fun: gives one array of the shape and dtype that `default` gives; asked for only where it is taken.
            It may return NotImplemented, while it is traced, to leave it to `default`.
        default: hashable, as `fun` is.
    """
    (result,) = _compiled_on().bind(*args, platform=platform, fun=fun, default=default)
    return result


@functools.cache
def _compiled_on() -> Any:
    """The primitive of `compiled_on`."""
    primitive = jex.Primitive("compiled_on")
    primitive.multiple_results = True

    def shapes(*avals: Any, default: Any, **_: Any) -> list[Any]:
        found = jax.eval_shape(default, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))
        return [ShapedArray(found.shape, found.dtype)]

    run = jax.jit(primitive.bind, static_argnames=("platform", "fun", "default"))

    def lower(ctx: Any, *args: Any, platform: str, fun: Any, default: Any) -> Any:
        module = ctx.module_context
        one_device = getattr(module.axis_context, "num_devices", 1) == 1  # compilers do not cut kernels
        here = tuple(module.platforms) == (platform,) and not module.lowering_parameters.for_export

        def chosen(*each: Any) -> list[Any]:
            found = fun(*each) if here and one_device else NotImplemented
            return [default(*each) if found is NotImplemented else found]

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
            return mlir.lower_fun(chosen, multiple_results=True)(ctx, *args)

    primitive.def_abstract_eval(shapes)
    primitive.def_impl(run)
    mlir.register_lowering(primitive, lower)
    return primitive


def shard_hint(x: Any, spec: tuple[tuple[str, ...] | None, ...]) -> Any:
    """The array itself, marked with how it shall lie on a mesh.

    Args:
        x: an array or a tracer.
        spec: of each dimension the names that split it, None where that is open; derivatives get the same.
    """
    return _shard_hint().bind(x, spec=spec)


@functools.cache
def _shard_hint() -> Any:
    """The primitive of `shard_hint`: an identity, for JAX and XLA."""
    hide_frames(__file__)
    primitive = jex.Primitive(SHARD_HINT)
    primitive.def_abstract_eval(lambda aval, **_: aval)
    primitive.def_impl(lambda x, **_: x)
    ad.deflinear2(primitive, lambda ct, _, *, spec: [primitive.bind(ct, spec=spec)])

    def batched(args: Any, dims: Any, *, spec: Any) -> Any:
        (x,), (dim,) = args, dims
        full = (*spec, *((),) * (x.ndim - 1 - len(spec)))
        return primitive.bind(x, spec=(*full[:dim], None, *full[dim:])), dim

    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, lambda ctx, x, **_: [x])
    return primitive


UNSIGNED_PRODUCT: Final = "unsigned_product"

Numbers: TypeAlias = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


def unsigned_product(unsigned: jax.Array, signed: jax.Array, dimension_numbers: Numbers) -> jax.Array:
    """`lax.dot_general` of uint8 with int8, summed up in int32.

    XLA's library for CPUs has a kernel for it; `lax.dot_general` would widen both before it multiplies them.
    Other platforms multiply int8 with int8.

    Args:
        unsigned: uint8, any shape.
        signed: int8, any shape.
        dimension_numbers: as `lax.dot_general` has them; batches first, one dimension summed over.
    """
    result: jax.Array = _unsigned_product().bind(unsigned, signed, dimension_numbers=dimension_numbers)
    return result


@functools.cache
def _unsigned_product() -> Any:
    primitive = jex.Primitive(UNSIGNED_PRODUCT)
    primitive.def_abstract_eval(_shape_of_product)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="dimension_numbers"))
    batching.primitive_batchers[primitive] = _batched_product
    mlir.register_lowering(primitive, mlir.lower_fun(_signed_product, multiple_results=False))
    mlir.register_lowering(primitive, _lowered_product, platform="cpu")
    return primitive


def _signed_product(unsigned: Any, signed: Any, *, dimension_numbers: Numbers) -> jax.Array:
    (_, (summed,)), _ = dimension_numbers
    shifted = lax.bitcast_convert_type(unsigned ^ jnp.uint8(128), jnp.int8)  # 128 less
    product = lax.dot_general(shifted, signed, dimension_numbers, preferred_element_type=jnp.int32)
    return product + 128 * jnp.sum(signed, summed, dtype=jnp.int32)[..., None, :]


def _shape_of_product(unsigned: Any, signed: Any, *, dimension_numbers: Numbers) -> Any:
    """As JAX has it of products of int8, with where it lies on a mesh and along which axes it varies."""
    like = functools.partial(_signed_product, dimension_numbers=dimension_numbers)
    (found,) = jax.make_jaxpr(like)(unsigned, signed).out_avals
    return found


def _lowered_product(ctx: Any, unsigned: Any, signed: Any, *, dimension_numbers: Numbers) -> Any:
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import stablehlo

    (left, right), (left_batch, right_batch) = dimension_numbers
    numbers = stablehlo.DotDimensionNumbers.get(list(left_batch), list(right_batch), list(left), list(right))
    dynamic = ir.ShapedType.get_dynamic_size()
    shape = [size if isinstance(size, int) else dynamic for size in ctx.avals_out[0].shape]
    result = ir.RankedTensorType.get(shape, ir.IntegerType.get_signless(32))
    return [stablehlo.dot_general(result, unsigned, signed, numbers)]


def _batched_product(args: Any, dims: Any, *, dimension_numbers: Numbers) -> Any:
    """A vmapped product: one of more rows or columns where one operand is the same for all, else a batch.

    A batch too where explicit axes of a mesh split the other operand: JAX does not reshape such a one.
    """
    unsigned, signed = args
    (_, (summed,)), (batch, _) = dimension_numbers
    n = len(batch)
    is_split = any(dim is not None and _is_split(each) for each, dim in zip(args, dims, strict=True))
    if is_split or None not in dims:
        size = next(each.shape[dim] for each, dim in zip(args, dims, strict=True) if dim is not None)
        unsigned, signed = (
            jnp.broadcast_to(each, (size, *each.shape)) if dim is None else jnp.moveaxis(each, dim, 0)
            for each, dim in zip(args, dims, strict=True)
        )
        both = (tuple(range(n + 1)),) * 2
        return unsigned_product(unsigned, signed, (((n + 2,), (summed + 1,)), both)), 0
    if dims[0] is None:
        size, free = signed.shape[dims[1]], 2 * n + 1 - summed  # `free` is the one that is not summed over
        moved = jnp.moveaxis(signed, dims[1], free)
        y = unsigned_product(unsigned, lax.collapse(moved, free, free + 2), dimension_numbers)
        return y.reshape(*y.shape[:-1], size, moved.shape[free + 1]), n + 1
    size = unsigned.shape[dims[0]]
    moved = jnp.moveaxis(unsigned, dims[0], n)
    y = unsigned_product(lax.collapse(moved, n, n + 2), signed, dimension_numbers)
    return y.reshape(*y.shape[:n], size, moved.shape[n + 1], y.shape[-1]), n


def _is_split(x: Any) -> bool:
    return any(names is not None for names in jax.typeof(x).sharding.spec)
