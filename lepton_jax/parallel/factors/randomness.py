"""Arrays that are made of nothing, or of a key: each device makes its part."""

from __future__ import annotations

from typing import Any

import jax

from lepton_jax.ir.graph import Node
from lepton_jax.parallel.factors.build import Build, opaque
from lepton_jax.parallel.factors.rule import Factors, factor_rule


@factor_rule("iota", "empty", "empty2")
def iota(node: Node) -> Factors:
    """Each device knows where its part begins."""
    build = Build()
    return build.done(
        [build.each(value, whole=True) for value in node.operands], [build.each(node.results[0])]
    )


@factor_rule("random_bits")
def random_bits(node: Node) -> Factors:
    """The keys' dimensions, then those of the numbers that each key gives.

    Threefry makes each number of its index and so in parts; other generators make them in one piece.
    """
    build, keys, result = Build(), node.operands[0], node.results[0]
    dims = build.each(keys)
    config: Any = jax.config
    apart = str(keys.dtype) == "key<fry>" and bool(config.jax_threefry_partitionable)
    made = tuple(build.new(size, whole=not apart) for size in result.shape[keys.ndim :])
    return build.done([dims], [(*dims, *made)])


@factor_rule("random_wrap", "random_unwrap", "random_split")
def keys(node: Node) -> Factors:
    """The dimensions that both have are the same; what keys are made of, and new keys, stay whole."""
    build, source, result = Build(), node.operands[0], node.results[0]
    common = min(source.ndim, result.ndim)
    shared = tuple(build.new(size) for size in source.shape[:common])
    rest = [tuple(build.new(size, whole=True) for size in v.shape[common:]) for v in (source, result)]
    return build.done([(*shared, *rest[0])], [(*shared, *rest[1])])


@factor_rule(
    *("rng_bit_generator", "rng_uniform", "random_seed", "random_gamma", "pallas_call", "ffi_call"),
    *("custom_linear_solve", "pure_callback", "io_callback", "debug_callback", "debug_print"),
    *(
        "create_token",
        "after_all",
        "custom_lin",
        "dce_sink",
        "platform_index",
        "axis_index",
        "psum",
        "psum_invariant",
    ),
    *("pmax", "pmin", "ppermute", "all_gather", "all_to_all", "ragged_all_to_all", "reduce_scatter"),
)
def in_one_piece(node: Node) -> Factors:
    """Operations that no device does a part of."""
    return opaque(node)
