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

from lepton_jax.ir._jax import ShapedArray, hide_frames, known_device

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

    def lower(ctx: Any, *args: Any, platform: str, fun: Any, default: Any) -> Any:
        module = ctx.module_context
        one_device = getattr(module.axis_context, "num_devices", 1) == 1  # compilers do not cut kernels
        here = tuple(module.platforms) == (platform,) and not module.lowering_parameters.for_export

        def chosen(*each: Any) -> list[Any]:
            found = fun(*each) if here and one_device else NotImplemented
            return [default(*each) if found is NotImplemented else found]

        with warnings.catch_warnings(), known_device(ctx.avals_in):
            warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
            return mlir.lower_fun(chosen, multiple_results=True)(ctx, *args)

    primitive.def_abstract_eval(shapes)
    primitive.def_impl(_jitted(primitive, "platform", "fun", "default"))
    mlir.register_lowering(primitive, lower)
    return primitive


def _jitted(primitive: Any, *static: str) -> Callable[..., Any]:
    """A primitive outside of programs: compiled, under `jax.disable_jit` too, where it would call itself."""
    jitted = jax.jit(primitive.bind, static_argnames=static)

    def run(*args: Any, **params: Any) -> Any:
        with jax.disable_jit(False):
            return jitted(*args, **params)

    return run


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
    primitive.def_impl(_jitted(primitive, "dimension_numbers"))
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


RAGGED_PRODUCT: Final = "ragged_product"

RAGGED_ROWS: Final = tuple(
    lax.RaggedDotDimensionNumbers((((1,), (summed,)), ((), ())), (0,), (0,)) for summed in (1, 2)
)
"""Of rows [m, k] with the matrices [groups, k, n] or [groups, n, k] of their groups: [m, n]."""

RAGGED_SUMS: Final = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())
"""Of rows [m, k] with rows [m, n], summed over those of each group: [groups, k, n]."""


def ragged_product(
    left: jax.Array,
    right: jax.Array,
    sizes: jax.Array,
    numbers: lax.RaggedDotDimensionNumbers,
    precision: Any,
    dtype: Any,
    by_group: Callable[..., Any],
) -> jax.Array:
    """`lax.ragged_dot_general`, in programs for one CPU alone `by_group`.

    It has derivatives of any order, which are ragged products again; under `vmap` it is JAX's own.

    Args:
        left: rows, those of the first group first.
        right: matrices, or rows.
        sizes: integers[groups], how many rows each group has.
        numbers: one of `RAGGED_ROWS`, or `RAGGED_SUMS`.
        precision: as `lax.dot_general` has it.
        dtype: of the result; None: as `lax.dot_general` has it.
        by_group: of the arrays, and `numbers`, `precision` and `dtype` by name. It may return NotImplemented,
            while it is traced, to leave it to JAX.
    """
    how = {"ragged_dot_dimension_numbers": numbers, "precision": precision, "preferred_element_type": dtype}
    result: jax.Array = _ragged_product().bind(left, right, sizes, **how, by_group=by_group)
    return result


@functools.cache
def _ragged_product() -> Any:
    primitive = jex.Primitive(RAGGED_PRODUCT)

    def shape(*avals: Any, **how: Any) -> Any:
        (found,) = jax.make_jaxpr(functools.partial(_plain_ragged, **how))(*avals).out_avals
        return found

    def slope(primals: Any, tangents: Any, **how: Any) -> tuple[Any, Any]:
        (left, right, sizes), (of_left, of_right, _) = primals, tangents
        parts = [] if type(of_left) is ad.Zero else [primitive.bind(of_left, right, sizes, **how)]
        parts += [] if type(of_right) is ad.Zero else [primitive.bind(left, of_right, sizes, **how)]
        return primitive.bind(left, right, sizes, **how), functools.reduce(lax.add, parts)

    primitive.def_abstract_eval(shape)
    primitive.def_impl(_jitted(primitive, *_RAGGED, "by_group"))
    ad.primitive_jvps[primitive] = slope
    ad.primitive_transposes[primitive] = _transposed_ragged
    batching.primitive_batchers[primitive] = _batched_ragged
    mlir.register_lowering(primitive, mlir.lower_fun(_plain_ragged, multiple_results=False))
    mlir.register_lowering(primitive, _lowered_ragged, platform="cpu")
    return primitive


_RAGGED: Final = ("ragged_dot_dimension_numbers", "precision", "preferred_element_type")


def _plain_ragged(*operands: Any, by_group: Any, **how: Any) -> jax.Array:
    return lax.ragged_dot_general(*operands, **how)


def _transposed_ragged(ct: Any, left: Any, right: Any, sizes: Any, by_group: Any, **how: Any) -> list[Any]:
    numbers, precision, dtype = map(how.__getitem__, _RAGGED)
    if numbers == RAGGED_SUMS:
        for_left, for_right = (right, ct, RAGGED_ROWS[1]), (left, ct, RAGGED_ROWS[0])
    else:
        is_turned = RAGGED_ROWS.index(numbers)
        for_left = ct, right, RAGGED_ROWS[1 - is_turned]
        for_right = *((ct, left) if is_turned else (left, ct)), RAGGED_SUMS

    def made(of: Any, a: Any, b: Any, numbers: Any) -> Any:
        return ragged_product(a, b, sizes, numbers, precision, dtype, by_group).astype(of.aval.dtype)

    is_wanted: Callable[[Any], bool] = ad.is_undefined_primal
    return [
        made(left, *for_left) if is_wanted(left) else None,
        made(right, *for_right) if is_wanted(right) else None,
        None,
    ]


def _batched_ragged(args: Any, dims: Any, **how: Any) -> tuple[jax.Array, int]:
    size = next(each.shape[dim] for each, dim in zip(args, dims, strict=True) if dim is not None)
    every = (
        jnp.broadcast_to(each, (size, *each.shape)) if dim is None else jnp.moveaxis(each, dim, 0)
        for each, dim in zip(args, dims, strict=True)
    )  # JAX wants batches of all three
    return jax.vmap(functools.partial(_plain_ragged, **how))(*every), 0


def _lowered_ragged(ctx: Any, *args: Any, by_group: Any, **how: Any) -> Any:
    is_alone = getattr(ctx.module_context.axis_context, "num_devices", 0) == 1  # loops are not split well
    numbers, precision, _ = map(how.__getitem__, _RAGGED)
    given = {"numbers": numbers, "precision": precision, "dtype": ctx.avals_out[0].dtype}

    def chosen(*each: Any) -> Any:
        found = by_group(*each, **given) if is_alone else NotImplemented
        return _plain_ragged(*each, by_group=by_group, **how) if found is NotImplemented else found

    return mlir.lower_fun(chosen, multiple_results=False)(ctx, *args)
