"""Collectives that carry less, on four virtual devices."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

import lepton_jax as lepton
from lepton_jax.parallel.aot.hlo import collectives
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.compressed import (
    Compression,
    Feedback,
    all_reduce_mean,
    block_all_reduce,
    gather_weight,
    init_feedback,
    power_all_reduce,
)
from lepton_jax.parallel.compressed.codes import FORMATS, error_of, from_message, message_bytes, to_message
from lepton_jax.parallel.compressed.options import buckets_of
from lepton_jax.parallel.compressed.power import first_factor, matrices_of, orthogonal
from lepton_jax.parallel.meshes import MeshSpec

P = PartitionSpec
BOTH = ("slice", "data")


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    yield jax.make_mesh((2, 2), BOTH, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])


def floats(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def away(found: Any, wanted: Any) -> float:
    """The error as a part of the norm."""
    return float(np.linalg.norm(np.asarray(found, np.float32) - wanted) / np.linalg.norm(wanted))


def test_messages_are_codes_and_scales_in_one_array() -> None:
    x = floats(3, 512)
    x[1, 256:] = 0.0
    bad = x.copy()
    bad[0, 3], bad[2, 300] = np.nan, np.inf

    @jax.jit
    def there_and_back(x: jax.Array) -> Any:
        messages = [to_message(x, form, 256) for form in FORMATS]
        backs = [from_message(m, 512, f, 256) for m, f in zip(messages, FORMATS, strict=True)]
        return messages, backs, [error_of(x, m, f, 256) for m, f in zip(messages, FORMATS, strict=True)]

    largest = np.abs(x.reshape(3, 2, 256)).max(-1).repeat(256, -1).reshape(3, 512)
    for message, back, error, most in zip(*there_and_back(x), (0.5 / 127, 2**-4, 2**-3), strict=True):
        assert message.dtype == np.int8 and message.shape == (3, message_bytes(512, 256)) == (3, 516)
        assert (np.abs(back - x) <= 1.02 * most * largest).all()  # a bfloat16 scale is off by 2**-9 at most
        np.testing.assert_array_equal(error, x - back)
    for back, error in zip(*there_and_back(bad)[1:], strict=True):
        assert np.isnan(back[0, :256]).all() and np.isnan(back[2, 256:]).all()
        assert np.isfinite(back[0, 256:]).all() and np.isfinite(back[1]).all() and np.isfinite(error).all()


WAYS = {
    "codes": Compression("int8", BOTH, inner=("data",), smallest=0),
    "topk": Compression("topk", BOTH, inner=("slice",), smallest=0, share=0.1, start=1),
    "power": Compression("powersgd", BOTH, inner=("data",), smallest=1 << 12, rank=2),
}
FIRST = {"codes": 0.012, "topk": 0.0, "power": 0.97}
MEAN = {"codes": 0.003, "topk": 0.55, "power": 0.85}


def test_feedback_makes_the_mean_over_steps_exact_for_every_method(mesh: Mesh) -> None:
    """The same gradients again and again: what is lost of one step comes with the next."""
    grads: Any = {
        "kernel": floats(4, 48, 32),
        "bias": floats(4, 64),
        "half": floats(4, 32, 32).astype(jnp.bfloat16),
    }
    shapes = jax.tree.map(lambda g: jax.ShapeDtypeStruct(g.shape[1:], g.dtype), grads)
    states = {name: init_feedback(shapes, how, mesh.shape) for name, how in WAYS.items()}
    specs = {name: state.specs() for name, state in states.items()}

    def each(grads: Any, states: Any) -> Any:
        own = jax.tree.map(lambda g: g[0], grads)
        found = {name: all_reduce_mean(own, states[name], how) for name, how in WAYS.items()}
        copies = {name: mean["kernel"][None] for name, (mean, _) in found.items()}
        return {n: m for n, (m, _) in found.items()}, {n: s for n, (_, s) in found.items()}, copies

    run = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=(P(BOTH), specs), out_specs=(P(), specs, P(BOTH))))
    exact = jax.tree.map(lambda g: g.astype(np.float32).mean(0), grads)
    steps, total = 6, jax.tree.map(np.zeros_like, {name: exact for name in WAYS})
    for step in range(steps):
        means, states, copies = run(grads, states)
        for name, mean in means.items():
            assert mean["half"].dtype == jnp.bfloat16
            total[name] = jax.tree.map(lambda t, m: t + np.asarray(m, np.float32) / steps, total[name], mean)
            if step == 0:
                assert away(mean["kernel"], exact["kernel"]) <= FIRST[name] + 1e-6, name
                assert away(mean["bias"], exact["bias"]) < 1e-6, name  # of one dimension: exact
                assert (np.asarray(copies[name]) == np.asarray(mean["kernel"])).all(), name
    for name in WAYS:
        assert away(total[name]["kernel"], exact["kernel"]) < MEAN[name], name
        assert away(total[name]["half"], exact["half"]) < MEAN[name] + 0.003, name
        assert int(states[name].step) == steps
    broken = {**grads, "kernel": grads["kernel"].copy()}
    broken["kernel"][3, 5, 5] = np.inf
    means, states, _ = run(broken, states)
    for name, mean in means.items():  # whoever looks for a bad step sees it; it leaves no trace
        assert not np.isfinite(mean["kernel"]).all(), name
    means, _, _ = run(grads, states)
    for name, mean in means.items():
        assert np.isfinite(mean["kernel"]).all(), name
    assert away(means["codes"]["kernel"], exact["kernel"]) < 0.02


def test_bytes_on_the_wire_and_how_few_collectives_carry_them(mesh: Mesh) -> None:
    shapes = {f"layer{i}": jax.ShapeDtypeStruct((256, 512), jnp.float32) for i in range(3)}
    shapes |= {f"bias{i}": jax.ShapeDtypeStruct((64,), jnp.float32) for i in range(3)}
    spec = MeshSpec.of(mesh, chip="cpu")

    def sent(how: Compression) -> tuple[float, list[str]]:
        state = jax.eval_shape(lambda: init_feedback(shapes, how, mesh.shape))
        specs = state.specs()
        run = jax.shard_map(
            lambda grads, state: all_reduce_mean(grads, state, how),
            mesh=mesh,
            in_specs=(P(), specs),
            out_specs=(P(), specs),
            check_vma=False,
        )
        text: Any = jax.jit(run).lower(shapes, state).compile().as_text()
        found = collectives(text, spec)
        return sum(each.collective().sent(spec) for each in found), [each.kind for each in found]

    size = sum(shape.size for shape in shapes.values())
    exact = Collective("all-reduce", BOTH, 4 * size).sent(spec)
    codes, kinds = sent(Compression("int8", BOTH))
    assert exact / codes >= 3.9 and exact / 2 / codes >= 1.96
    assert sorted(kinds) == ["all-gather", "all-reduce", "all-to-all"]
    powers, kinds = sent(Compression("powersgd", BOTH, rank=4))
    assert exact / powers >= 10 and set(kinds) == {"all-reduce"} and len(kinds) <= 3


def test_buckets_hold_what_is_made_at_about_one_time() -> None:
    leaves = [jax.ShapeDtypeStruct(s, d) for s, d in [((64, 64), jnp.float32), ((64,), jnp.bfloat16)]]
    leaves += [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 3 + [jax.ShapeDtypeStruct((4, 4), jnp.float32)]
    leaves += [jax.ShapeDtypeStruct((9000, 9000), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)]
    found = buckets_of(leaves, Compression(smallest=1 << 14, bucket=3 << 14))
    assert [b.leaves for b in found.flat] == [(6,), (4, 3, 2), (0,)]
    assert [b.leaves for b in found.exact] == [(7,), (5,), (1,)]
    assert matrices_of((24, 512, 512), 4, 2.0) == (24, 512, 512)
    assert matrices_of((512, 8, 64), 4, 2.0) == (1, 4096, 64)  # heads: no stack of matrices
    assert matrices_of((16, 16), 8, 2.0) is None and matrices_of((3, 100000), 4, 2.0) is None


def test_power_iteration_finds_what_has_its_rank_and_survives_zeros(mesh: Mesh) -> None:
    thin = floats(4, 1, 40, 2) @ floats(1, 2, 24, seed=1)
    view = (1, 40, 24)
    start = first_factor(view, 3, 0)

    def each(m: jax.Array, q: jax.Array) -> Any:
        grads = [m[0], jnp.zeros(view), m[0] * jnp.nan]
        means, factors, lost = power_all_reduce(grads, [q] * 3, BOTH, scale=1 / 4)
        return means, factors, [each[None] for each in lost]

    run = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=(P(BOTH), P()), out_specs=(P(), P(), P(BOTH))))
    means, factors, lost = run(thin, start)
    assert away(means[0], thin.mean(0)) < 1e-5 and np.abs(np.asarray(lost[0]).mean(0)).max() < 1e-5
    assert not np.asarray(means[1]).any() and np.isnan(means[2]).all()
    assert np.isfinite(factors[0]).all() and all(np.isfinite(each).all() for each in lost)
    for factor in factors[1:]:  # zeros and NaN are no place to start from
        np.testing.assert_array_equal(factor, start)
    columns = np.asarray(orthogonal(jnp.asarray(np.stack([np.ones(5), 2 * np.ones(5), np.arange(5.0)], -1))))
    np.testing.assert_allclose(columns.T @ columns, np.diag([1.0, 0.0, 1.0]), atol=1e-6)


def loss(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((jnp.tanh(x @ params["a"] + params["b"]) @ params["c"] - 1.0) ** 2)


def parameters() -> Any:
    return {"a": floats(32, 64) * 0.2, "b": np.zeros(64, np.float32), "c": floats(64, 32, seed=1) * 0.2}


@pytest.mark.filterwarnings("ignore::UserWarning:orbax")
def test_training_with_feedback_that_is_saved_and_goes_on_with_other_devices(
    mesh: Mesh, tmp_path: Path
) -> None:
    def optimiser(mesh: Mesh) -> Any:
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))
        return tx, lepton.compressed(tx, mesh, axes=mesh.axis_names, smallest=0, block=64)

    plain, tx = optimiser(mesh)
    ends = []
    for each in (plain, tx):
        train = lepton.data_parallel(loss, each, mesh, donate=False)
        params, state = train.init(parameters())
        for step in range(15):
            params, state, value = train.step(params, state, floats(16, 32, seed=step))
        ends.append(float(value))
    assert abs(ends[1] / ends[0] - 1) < 0.01 and ends[0] < 1.5
    lepton.check_replicas((params, state))
    lost = state.feedback
    assert lost.local[0].shape == (4, 4096) and lost.local[0].sharding.spec == P(BOTH)
    assert all(np.asarray(a).any() for a in (lost.local[0], lost.owned[0]))

    import orbax.checkpoint as ocp  # type: ignore[import-untyped]

    with warnings.catch_warnings(), ocp.StandardCheckpointer() as keeper:
        warnings.simplefilter("ignore")
        keeper.save(tmp_path / "state", state)
        keeper.wait_until_finished()
        saved = keeper.restore(tmp_path / "state", jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), state))
    few = Mesh(np.array(jax.devices()[:3]), ("data",))
    train = lepton.data_parallel(loss, optimiser(few)[1], few)
    smaller, new = train.init(jax.tree.map(np.asarray, params))
    state = lepton.refit(saved, new)
    assert state.feedback.local[0].shape == (3, 4224)  # filled up to blocks for three
    wanted = np.asarray(lost.local[0]).mean(0)
    for row in np.asarray(state.feedback.local[0]):
        np.testing.assert_allclose(row[:4096], wanted, atol=1e-9)
    np.testing.assert_array_equal(np.asarray(state.feedback.owned[0])[:4096], np.asarray(lost.owned[0]))
    assert int(state.feedback.step) == 15
    smaller, state, value = train.step(smaller, state, floats(15, 32, seed=99))
    assert float(value) < 1.5

    powers = lepton.compressed(optax.sgd(0.1), few, "powersgd", smallest=0).init(parameters())
    with pytest.warns(UserWarning, match="begins anew"):
        fresh = lepton.refit(powers._replace(inner=saved.inner), new)
    assert not np.asarray(fresh.feedback.local[0]).any()
    with pytest.raises(ValueError, match="another optimiser's"):
        lepton.refit(saved, powers)


def test_scalars_and_keys_of_a_batch_go_to_all_devices(mesh: Mesh) -> None:
    def noisy(params: Any, batch: Any) -> Any:
        key = jax.random.fold_in(batch["key"], jax.lax.axis_index(BOTH))
        return loss(params, batch["x"]) * batch["scale"] + 0.0 * jax.random.normal(key)

    batch = {"x": floats(8, 32), "key": jax.random.key(0), "scale": np.float32(0.5)}
    train = lepton.data_parallel(noisy, optax.sgd(0.1), mesh)
    value = train.step(*train.init(parameters()), batch)[2]
    np.testing.assert_allclose(value, 0.5 * loss(parameters(), batch["x"]), rtol=1e-5)


def test_weights_are_gathered_in_codes_and_gradients_pass_straight(mesh: Mesh) -> None:
    w, x = floats(24, 10, 3), floats(4, 10, seed=1)

    def total(whole: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(jnp.einsum("bi,oik->bok", x, whole)))

    def each(w: jax.Array, x: jax.Array) -> Any:
        found = []
        for gradient in ("exact", "int8"):
            whole, back = jax.vjp(lambda w, g=gradient: gather_weight(w, BOTH, block=32, gradient=g), w)
            (slope,) = back(jax.grad(total)(whole, x))
            found.append((whole[None], slope))
        across, back = jax.vjp(lambda w: gather_weight(w, "data", dim=1, form="fp8_e4m3"), w)
        return found, across[None], back(jnp.ones_like(across))[0]

    out = ([(P(BOTH), P(BOTH))] * 2, P(BOTH), P(BOTH))
    run = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=(P(BOTH), P(BOTH)), out_specs=out))
    found, across, ones = run(w, x)
    for (whole, slope), most in zip(found, (1e-5, 0.02), strict=True):
        assert whole.shape == (4, 24, 10, 3) and away(whole, np.broadcast_to(w, whole.shape)) < 0.01
        assert away(slope, jax.grad(total)(np.asarray(whole[0]), x)) < most
    parts = w.reshape(2, 2, 6, 10, 3).transpose(0, 2, 1, 3, 4).reshape(2, 6, 20, 3)
    assert across.shape == (4, 6, 20, 3)
    assert away(across[0], parts[0]) < 0.05 and away(across[3], parts[1]) < 0.05
    np.testing.assert_array_equal(ones, np.full_like(w, 2.0))


def test_parameters_that_no_compressed_adds_up_are_named(mesh: Mesh) -> None:
    x, tx = floats(8, 32), lepton.compressed(optax.sgd(0.1), mesh, axes=BOTH, smallest=0)
    labels = {"a": "added", "b": "rest", "c": "added"}
    split = optax.multi_transform({"added": tx, "rest": optax.sgd(0.1)}, labels)
    train = lepton.data_parallel(loss, split, mesh)
    with pytest.raises(ValueError, match=r"params/b .* no lepton.compressed adds up over slice, data"):
        train.step(*train.init(parameters()), x)
    frozen = optax.multi_transform({"added": tx, "rest": optax.set_to_zero()}, labels)
    train = lepton.data_parallel(loss, frozen, mesh)
    lepton.check_replicas(train.step(*train.init(parameters()), x)[:2])
    train = lepton.data_parallel(loss, optax.chain(optax.trace(0.9), tx), mesh)
    with pytest.warns(UserWarning, match=r"state/0/trace/a .* of its own on each device, and a checkpoint"):
        train.lower(*train.init(parameters()), x)


def test_mistakes_are_named(mesh: Mesh) -> None:
    for wrong, said in [
        ({"method": "int4"}, "method is one of int8"),
        ({"inner": ("data",)}, "some of them but not all"),
        ({"block": 0}, "block is at least 1"),
        ({"share": 2.0}, "share is above 0"),
        ({"block": 2.5}, "block is a whole number, not 2.5"),
    ]:
        with pytest.raises(ValueError, match=said):
            Compression(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'model' is not an axis of the mesh; its axes are slice, data"):
        lepton.compressed(optax.sgd(0.1), mesh, axes="model")
    for make in (lepton.compressed, lambda tx, wrong: lepton.data_parallel(loss, tx, wrong)):
        with pytest.raises(TypeError, match=r"mesh is a jax.sharding.Mesh, .* not 'data=4'"):
            make(optax.sgd(0.1), "data=4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'slice' is not among"):
        lepton.data_parallel(loss, optax.sgd(0.1), mesh, axes="data")
    train = lepton.data_parallel(loss, lepton.compressed(optax.sgd(0.1), mesh, axes="data"), mesh)
    params, state = train.init(parameters())
    with pytest.raises(
        ValueError, match="over slice, data, and compressed adds up gradients over data alone"
    ):
        train.step(params, state, floats(8, 32))
    with pytest.raises(ValueError, match=r"batch has shape \(7, 32\): 4 devices along slice, data divide"):
        train.step(params, state, floats(7, 32))
    tx = lepton.compressed(optax.sgd(0.1), mesh, axes=BOTH, smallest=0)
    state = tx.init(parameters())
    with pytest.raises(ValueError, match="inside jax"):
        tx.update(parameters(), state)
    specs = lepton.state_specs(state)

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        return tx.update(jax.grad(loss)(params, x), state)

    def spread(state: Any, specs: Any, x: Any, check: bool = True) -> None:
        jax.eval_shape(
            jax.shard_map(
                step, mesh=mesh, in_specs=(P(), specs, P(BOTH)), out_specs=(P(), specs), check_vma=check
            ),
            parameters(),
            state,
            x,
        )

    with pytest.raises(ValueError, match="already summed over 'slice'"):
        spread(state, specs, floats(8, 32))
    other = Feedback((jnp.zeros((4, 8)),), (), (), (), jnp.zeros((), jnp.int32), BOTH, ())
    with pytest.raises(ValueError, match="of other gradients"):
        spread(
            state._replace(feedback=other),
            state._replace(feedback=other.specs(), inner=P()),
            floats(8, 32),
            False,
        )
    with pytest.raises(ValueError, match="does not divide into blocks of 256 on 4 devices"):
        jax.eval_shape(
            jax.shard_map(
                lambda x: block_all_reduce(x, BOTH)[0],
                mesh=mesh,
                in_specs=P(),
                out_specs=P(),
                check_vma=False,
            ),
            jnp.ones(100),
        )
