"""Shardy's passes run from Python, and what happens where they are not to be had."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lepton_jax.ir import _jax
from lepton_jax.parallel.aot.shardy import Propagated, ShardyUnavailable, propagated
from lepton_jax.parallel.collectives import Collective

MESH = AbstractMesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def shape(spec: P, *sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(MESH, spec))


def lowered(fun: Any, *args: Any, **options: Any) -> Any:
    return jax.jit(fun, **options).trace(*args).lower(lowering_platforms=("tpu",))


def kinds(found: Propagated) -> list[tuple[str, tuple[str, ...], int, int]]:
    return [(each.kind, each.axes, each.bytes, each.times) for each in found.collectives]


def layers(params: Any, x: jax.Array) -> jax.Array:
    """Megatron's perceptron, layer after layer."""

    def layer(x: jax.Array, param: Any) -> tuple[jax.Array, None]:
        up, down = param
        return x + jax.nn.relu(x @ up) @ down, None

    result: jax.Array = jax.lax.scan(layer, x, params)[0]
    return result


WEIGHTS = (shape(P(None, None, "model"), 6, 32, 64), shape(P(None, "model"), 6, 64, 32))


def test_collectives_of_a_loop_count_as_often_as_it_runs() -> None:
    program = lowered(layers, WEIGHTS, shape(P("data"), 16, 32))
    before = program.as_text()
    found = propagated(program)
    assert kinds(found) == [("all-reduce", ("model",), 8 * 32 * 2, 6)]
    assert "dot_general" in found.collectives[0].what
    assert not found.late and found.joined() == [*found.collectives]
    assert isinstance(found.collectives[0], Collective)
    assert program.as_text() == before and propagated(program) == found


def test_buffers_are_one_devices_parts() -> None:
    def loss(params: Any, x: jax.Array) -> jax.Array:
        return (layers(params, x) ** 2).sum()

    program = lowered(jax.grad(loss), WEIGHTS, shape(P("data"), 16, 32, dtype=jnp.float32))
    found = propagated(program)
    arguments = {each.what: (each.bytes, each.shape) for each in found.buffers if each.kind == "argument"}
    assert arguments == {
        "params[0]": (6 * 32 * 64 * 2 // 4, "bf16[6,32,64]"),
        "params[1]": (6 * 32 * 64 * 2 // 4, "bf16[6,64,32]"),
        "x": (16 * 32 * 4 // 2, "f32[16,32]"),
    }
    collected = [each for each in found.buffers if each.kind == "collected by a loop"]
    assert any(each.shape == "f32[6,16,64]" and each.bytes == 6 * 16 * 64 * 4 // 8 for each in collected)
    assert [each.bytes for each in found.buffers] == sorted(
        (each.bytes for each in found.buffers), reverse=True
    )


def test_each_kind() -> None:
    def reshard(x: jax.Array, spec: P) -> Any:
        return jax.lax.with_sharding_constraint(x, NamedSharding(MESH, spec))

    def several(x: jax.Array, w: jax.Array) -> Any:
        scattered = reshard(x @ w, P("model"))  # a sum over model, of which each keeps a part
        gathered = reshard(x + 1, P())
        turned = reshard(x * 2, P("model", None))
        permuted = reshard(w + 1, P("data"))
        return scattered, gathered, turned, permuted

    found = propagated(lowered(several, shape(P(None, "model"), 16, 16), shape(P("model"), 16, 8)))
    assert {kind for kind, *_ in kinds(found)} >= {"reduce-scatter", "all-gather", "all-to-all"}
    assert ("reduce-scatter", ("model",), 16 * 8 * 2 // 4, 1) in kinds(found)
    assert ("all-gather", ("model",), 16 * 16 * 2, 1) in kinds(found)
    assert ("all-to-all", ("model",), 16 * 16 * 2 // 4, 1) in kinds(found)


def test_sums_of_partial_sums_are_reduced_once() -> None:
    def sums(x: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array) -> Any:
        kept = x @ c
        return x @ a + x @ b + x @ c, kept + x @ a, kept

    weight = shape(P("model"), 16, 8)
    found = propagated(lowered(sums, shape(P(None, "model"), 16, 16), weight, weight, weight))
    assert set(kinds(found)) == {("all-reduce", ("model",), 16 * 8 * 2, 1)}
    assert len(found.collectives) < 6  # one for each product otherwise
    assert found.late == set(range(len(found.collectives)))
    (joined,) = found.joined()
    assert joined.bytes == 16 * 8 * 2 * len(found.collectives)


def test_where_the_passes_are_missing_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> Any:
        raise ValueError("builtin.module(sdy-propagation-pipeline): does not exist")

    program = lowered(layers, WEIGHTS, shape(P("data"), 16, 32))
    with pytest.raises(ValueError, match=r"sdy-not-there.*not"):
        _jax.run_mlir_passes(program, ["builtin.module(sdy-not-there)"])
    monkeypatch.setattr(_jax, "run_mlir_passes", gone)
    with pytest.raises(ShardyUnavailable, match=r"sdy-propagation-pipeline.*compile ahead of time instead"):
        propagated(program)
