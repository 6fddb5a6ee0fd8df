"""Strategies of single operations, and which of them XLA takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lepton_jax.ir import trace
from lepton_jax.ir.graph import Node
from lepton_jax.parallel import strategies as module
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.strategies import as_given, cheapest, strategies

MESH = MeshSpec.of("data=2,model=4", chip="v5e")
WHOLE = Layout.whole(2)


def node_of(fun: Callable[..., Any], *shapes: tuple[int, ...], dtype: str = "float32") -> Node:
    graph = trace(fun, *(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))
    (node,) = graph
    return node


DOT = node_of(lambda x, w: x @ w, (16, 32), (32, 64))
ADD = node_of(jax.lax.add, (16, 32), (16, 32))
SUM = node_of(lambda x: jnp.sum(x, 1), (16, 32))


def lay(*dims: str | tuple[str, ...] | None, partial: tuple[str, ...] = ()) -> Layout:
    return Layout(tuple(() if d is None else (d,) if isinstance(d, str) else d for d in dims), partial)


def took(
    node: Node, operands: list[Layout], *results: Layout
) -> tuple[list[Layout], list[Layout], list[str]]:
    strategy, moves = cheapest(node, operands, results, MESH)
    return (
        list(strategy.operands),
        list(strategy.results),
        [f"{each.kind} {'+'.join(each.axes)} {each.bytes}" for each in moves],
    )


def test_every_axis_is_on_at_most_one_factor_and_parts_are_even() -> None:
    found = strategies(DOT, MESH)
    assert found[0].share == 1 and found[0].operands == (WHOLE, WHOLE)
    for each in found:
        used = [name for axes in each.axes for name in axes]
        assert len(used) == len(set(used))
        assert each.operands[0].divides((16, 32), MESH) and each.results[0].divides((16, 64), MESH)
    # Each axis on one of three factors or none, or on parts of a sum that one operand is: (3 + 1 + 2)².
    assert len(found) == 36
    assert len({(each.operands, each.results) for each in found}) == 36
    narrow = node_of(lambda x, w: x @ w, (16, 3), (3, 5))
    assert all("data" not in each.axes[1] for each in strategies(narrow, MESH))


def test_shares_and_partial_sums() -> None:
    by = {(each.operands, each.results): each.share for each in strategies(DOT, MESH)}
    assert by[(lay("data", None), lay(None, "model")), (lay("data", "model"),)] == 1 / 8
    assert by[(lay(None, "model"), lay("model", None)), (lay(None, None, partial=("model",)),)] == 1 / 4
    assert by[(lay(None, None, partial=("model",)), WHOLE), (lay(None, None, partial=("model",)),)] == 1


def test_equal_operations_are_looked_at_once() -> None:
    strategies(DOT, MESH)
    before = module._strategies.cache_info().misses
    strategies(node_of(lambda x, w: x @ w, (16, 32), (32, 64), dtype="bfloat16"), MESH)
    assert module._strategies.cache_info().misses == before


@pytest.mark.parametrize(
    ("left", "right", "result", "moves"),
    [
        # Megatron: columns, then rows.
        (lay("data", None), lay(None, "model"), lay("data", "model"), []),
        (lay("data", "model"), lay("model", None), lay("data", None), ["all-reduce model 2048"]),
        # The sum is scattered where the result is split along its axis.
        (
            lay("data", "model"),
            lay("model", None),
            lay(("data", "model"), None),
            ["reduce-scatter model 512"],
        ),
        # FSDP gathers the weight; the gradient of a weight is a sum over the batch.
        (lay("data", None), lay("data", None), lay("data", None), ["all-gather data 8192"]),
        (lay(None, "data"), lay("data", None), WHOLE, ["all-reduce data 4096"]),
        (lay(None, "data"), lay("data", None), lay("data", None), ["reduce-scatter data 2048"]),
        # What only one operand has of the axis that is summed over, the other is sliced to.
        (lay(None, "model"), WHOLE, WHOLE, ["all-reduce model 4096"]),
        # Copies are sliced, not computed by all.
        (WHOLE, WHOLE, lay("data", "model"), []),
    ],
)
def test_products(left: Layout, right: Layout, result: Layout, moves: list[str]) -> None:
    assert took(DOT, [left, right], result)[2] == moves


def test_elementwise_operations_follow_the_result() -> None:
    assert took(ADD, [lay("data", None), WHOLE], lay("data", None)) == (
        [lay("data", None)] * 2,
        [lay("data", None)],
        [],
    )
    assert took(ADD, [lay("data", None), WHOLE], WHOLE)[2] == ["all-gather data 2048"]


def test_sums_of_parts_stay_parts() -> None:
    parts = lay(None, None, partial=("model",))
    strategy, moves = cheapest(ADD, [parts, parts], [WHOLE], MESH)
    assert strategy.results == (parts,) and [each.kind for each in moves] == ["all-reduce"]
    assert as_given(ADD, [lay("data", None)] * 2, MESH) is not None
    assert as_given(ADD, [lay("data", None), WHOLE], MESH) is None


def test_reductions_follow_their_operand() -> None:
    assert took(SUM, [lay("data", "model")], lay("data"))[2] == ["all-reduce model 32"]


def test_an_embedding_split_by_rows_is_summed() -> None:
    graph = trace(
        lambda table, ids: table[ids],
        jax.ShapeDtypeStruct((64, 32), "float32"),
        jax.ShapeDtypeStruct((16,), "int32"),
    )
    node = next(node for node in graph.nodes() if node.op == "gather")
    operands = [lay("model", None), lay("data", None)]
    assert took(node, operands, lay("data", None))[2] == ["all-reduce model 1024"]


def test_convolutions_split_batch_and_features() -> None:
    def conv(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    node = node_of(conv, (8, 4, 4, 16), (3, 3, 16, 32))
    x, rows = lay("data", None, None, None), lay("data", None, None, "model")
    assert took(node, [x, lay(None, None, None, "model")], rows)[2] == []
    split = lay("data", None, None, "model")
    assert took(node, [split, lay(None, None, "model", None)], x)[2] == ["all-reduce model 8192"]


def test_a_table_that_is_looked_up_stays_where_that_is_cheaper() -> None:
    """Rows and examples over the same devices: indices are gathered, and what was found is added up."""
    args = jax.ShapeDtypeStruct((1 << 16, 64), "float32"), jax.ShapeDtypeStruct((16, 1), "int32")
    rows = jax.lax.GatherDimensionNumbers((1,), (0,), (0,))
    (node,) = trace(lambda table, ids: jax.lax.gather(table, ids, rows, (1, 64), mode="clip"), *args)
    both = lay(("data", "model"), None)
    operands, results, moves = took(node, [both, both], both)
    assert operands == [both, WHOLE]
    assert results == [lay(None, None, partial=("data", "model"))]
    assert moves == ["all-gather data+model 64", "reduce-scatter data+model 512"]
