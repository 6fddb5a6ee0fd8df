"""`prepare` and `apply`: programs cut at their binding time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType

import lepton_jax as lepton
from lepton_jax import PrepareError
from tests.small_model import PARAMS, X, close, forward


def test_prepare_keeps_what_apply_needs() -> None:
    f = lepton.optimize(forward, params="params")
    prepared = f.prepare(PARAMS, X)
    assert list(prepared) == ["params/b", "params/w"]
    close(prepared["params/w"], np.sin(PARAMS["w"]))
    assert prepared.nbytes == 16 * 4 and len(prepared) == 2
    close(f.apply(prepared, X), forward(PARAMS, X))
    close(f.apply(prepared, x=X), forward(PARAMS, X))
    close(f.apply(prepared, np.ones((5, 3), np.float32)), forward(PARAMS, np.ones((5, 3), np.float32)))


def test_prepared_parameters_serve_a_call_on_a_mesh() -> None:
    f = lepton.optimize(forward, params="params")
    x, spec = np.linspace(-2, 2, 48, dtype=np.float32).reshape(16, 3), jax.P("d")
    prepared, expected = f.prepare(PARAMS, x[:2]), forward(PARAMS, x)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(f.apply, mesh=mesh, in_specs=(jax.P(), spec), out_specs=spec, check_vma=False)
    close(jax.jit(mapped)(prepared, x), expected)
    close(f.apply(prepared, x[:2]), expected[:2])
    with jax.set_mesh(jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))):
        close(f.apply(prepared, x), expected)


@pytest.mark.parametrize(
    ("passes", "devices", "axes"),
    [
        ("quantize{weights=fp8_e4m3,activations=dynamic}", 8, AxisType.Auto),
        ("palettize{bits=4}", 1, AxisType.Auto),
        ("quantize{weights=int4,group=32}", 8, AxisType.Explicit),
    ],
)
def test_models_serve_a_call_with_a_mesh_around(passes: str, devices: int, axes: AxisType) -> None:
    """Calls to functions of JAX that stay in `prepare` keep the mesh around them; a mesh makes more."""
    w, x = jnp.ones((64, 32), jnp.bfloat16), jnp.ones((16, 64), jnp.bfloat16)
    model = lepton.compile(lambda w, x: x @ w, w, x, passes=f"default,{passes}")
    expected = model(x)
    with jax.set_mesh(jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("d",), (axes,))):
        assert (model(x) == expected).all()


def test_what_loops_and_lookups_read_serves_under_an_explicit_mesh_too() -> None:
    """The mesh changes the order of what `prepare` runs, and how it writes numbers."""
    rng = np.random.default_rng(0)
    params = {"table": rng.normal(size=(256, 64)), "w": rng.normal(size=(2, 64, 64))}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)

    def tied(params: Any, tokens: Any) -> Any:
        def layer(h: Any, w: Any) -> Any:
            return jnp.tanh(h @ (w / jnp.linalg.norm(w, axis=0))), None

        h, _ = lax.scan(layer, params["table"][tokens], params["w"])
        return h @ params["table"].T

    model = lepton.compile(tied, params, jnp.arange(8), passes="deploy,quantize{activations=dynamic}")
    expected = model(jnp.arange(8))
    with jax.set_mesh(jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))):
        close(model(jnp.arange(8)), expected)


def test_parameters_alone_are_enough_after_a_call() -> None:
    f = lepton.optimize(lambda params, x: forward(params, x) * 2, params="params")
    with pytest.raises(PrepareError, match="call the function once before, or give a sample"):
        f.prepare(PARAMS)
    f(PARAMS, X)
    close(f.apply(f.prepare(PARAMS), X), f(PARAMS, X))
    close(f.apply(f.prepare(params=PARAMS), X), f(PARAMS, X))
    with pytest.raises(PrepareError, match="or a whole call"):
        f.prepare(PARAMS, X, X)


def test_parameters_may_stand_anywhere() -> None:
    def f(x: Any, w: Any, flag: bool, *, b: Any) -> Any:
        return x @ jnp.sin(w) + b if flag else x

    g = lepton.optimize(f, params=("w", "b"), static_argnums=2)
    prepared = g.prepare(X, PARAMS["w"], True, b=PARAMS["b"])
    close(g.apply(prepared, X, True), f(X, PARAMS["w"], True, b=PARAMS["b"]))
    h = lepton.optimize(lambda x, w: x @ jnp.sin(w), params=1)
    prepared = h.prepare(X, PARAMS["w"])
    close(h.apply(prepared, X), X @ np.sin(PARAMS["w"]))
    close(h.apply(h.prepare(x=X, w=PARAMS["w"]), x=X), X @ np.sin(PARAMS["w"]))
    named = lepton.optimize(h.__wrapped__, params="w")
    close(named.apply(named.prepare(X, PARAMS["w"]), x=X), X @ np.sin(PARAMS["w"]))


def test_prepared_parameters_are_a_pytree_that_transformations_take() -> None:
    f = lepton.optimize(forward, params="params")
    prepared = f.prepare(PARAMS, jax.ShapeDtypeStruct(X.shape, X.dtype))
    close(jax.jit(f.apply)(prepared, X), forward(PARAMS, X))
    close(jax.vmap(f.apply, (None, 0))(prepared, X[None]), forward(PARAMS, X)[None])
    gradient = jax.grad(lambda x: f.apply(prepared, x).sum())(X)
    close(gradient, jax.grad(lambda x: forward(PARAMS, x).sum())(X))
    moved = jax.tree.map(lambda a: a + 0, prepared)
    close(f.apply(moved, X), forward(PARAMS, X))
    exported = jax.export.export(
        jax.jit(lambda *arrays: f.apply(prepared.with_arrays(arrays[:-1]), arrays[-1]))
    )
    close(exported(*prepared.arrays, X).call(*prepared.arrays, X), forward(PARAMS, X))


_ELSEWHERE = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
import lepton_jax
folder = pathlib.Path(sys.argv[1])
for number in range(2):
    exported = jax.export.deserialize(bytearray((folder / f"{number}.bin").read_bytes()))
    (prepared, x), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    with np.load(folder / f"{number}.npz") as kept:
        arrays = [jnp.asarray(kept[f"arr_{i}"]) for i in range(len(prepared))]
        found = exported.call(prepared.with_arrays(arrays), jnp.asarray(kept["x"]))
        np.testing.assert_allclose(found, kept["y"], rtol=1e-5, atol=1e-5)
    assert list(prepared)[0] == "params/b" and exported.platforms == ("cpu", "cuda", "tpu")
"""


def test_exported_models_are_loaded_by_other_processes(tmp_path: Path) -> None:
    """For several platforms, as bytes; here and there with prepared parameters."""
    other = lepton.compile(forward, PARAMS, X, passes="inline,quantize{weights=int4,group=4}")
    for number, options in enumerate(("activations=dynamic", "weights=int4,group=2")):
        model = lepton.compile(forward, PARAMS, X, passes=f"inline,quantize{{{options}}}")
        exported = jax.export.export(model.jit, platforms=("cpu", "cuda", "tpu"))(model.params, X)
        data = exported.serialize(vjp_order=1)
        again = jax.export.deserialize(bytearray(data))
        np.testing.assert_array_equal(again.call(model.params, X), model(X))
        (read, _), _ = jax.tree.unflatten(again.in_tree, again.in_avals)
        assert read.form == model.params.form and hash(read.form) == hash(model.params.form)
        assert read.form != other.params.form and model.params.form != other.params.form
        with pytest.raises(PrepareError, match="of an exported program"):
            lepton.optimize(forward, params="params").apply(read.with_arrays(model.params.arrays), X)
        (tmp_path / f"{number}.bin").write_bytes(data)
        np.savez(tmp_path / f"{number}.npz", *map(np.asarray, model.params.arrays), x=X, y=model(X))
    run = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_wrong_use_is_named() -> None:
    f = lepton.optimize(forward, params="params")
    with pytest.raises(PrepareError, match="apply takes what prepare returned, not dict"):
        f.apply(PARAMS, X)  # type: ignore[arg-type]
    with pytest.raises(PrepareError, match="not their shapes"):
        f.prepare(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), PARAMS), X)
    with pytest.raises(PrepareError, match="say which arguments are parameters"):
        lepton.optimize(forward).prepare(PARAMS, X)
    with pytest.raises(ValueError, match="'weights' matches none of the arrays params/b, params/w, x"):
        lepton.optimize(forward, params="weights")(PARAMS, X)
    with pytest.raises(ValueError, match="there is no argument 3, the call has 2"):
        lepton.optimize(forward, params=3)(PARAMS, X)
    with pytest.raises(ValueError, match="has 0 by position and weights by keyword; name the argument"):
        lepton.optimize(lambda **named: named["weights"], params=0)(weights=X)
    with pytest.raises(PrepareError, match="only a part of the argument 'params'"):
        lepton.optimize(forward, params="params/w").prepare(PARAMS, X)
    prepared = f.prepare(PARAMS, X)
    with pytest.raises(KeyError, match="'c' is not among the prepared arrays params/b, params/w"):
        prepared["c"]
    named = prepared.with_arrays(dict(reversed(list(prepared.items()))))
    np.testing.assert_array_equal(f.apply(named, X), f.apply(prepared, X))
    with pytest.raises(PrepareError, match="not those that were prepared: c"):
        prepared.with_arrays({**prepared, "c": X})
    with pytest.raises(PrepareError, match="2 arrays were prepared, and 1 are given"):
        prepared.with_arrays([X])


def test_parameters_prepared_for_another_program_are_refused() -> None:
    def f(w: Any, x: Any) -> Any:
        return x @ (jnp.sin(w) if x.shape[0] > 2 else jnp.cos(w))

    g = lepton.optimize(f, params="w")
    prepared = g.prepare(PARAMS["w"], X)
    with pytest.raises(PrepareError, match="prepared for arguments of other shapes"):
        g.apply(prepared, np.ones((3, 3), np.float32))


def pooled(p: Any, x: Any) -> Any:
    return jax.nn.relu(x @ p["a"]).mean(1) @ p["b"]


def narrow(p: Any, x: Any) -> Any:
    return jax.nn.relu(x[:, 0] @ p["a"]) @ p["c"]


def channels_first(p: Any, x: Any) -> Any:
    return jnp.einsum("bct,co->bot", x.transpose(0, 2, 1), p["a"])


def pointwise(p: Any, x: Any) -> Any:
    images = x[:, 0, :, None, None] + jnp.zeros((1, 1, 14, 14))
    return jax.lax.conv(images, p["a"][:, :, None, None], (1, 1), "SAME")


def each_way(p: Any, x: Any) -> Any:
    return {fun.__name__: fun(p[fun.__name__], x) for fun in (pooled, narrow, channels_first, pointwise)}


@pytest.mark.parametrize("passes", ["default", "default,quantize{activations=dynamic}"])
def test_prepared_parameters_serve_any_number_of_rows(passes: str) -> None:
    rng = np.random.default_rng(1)
    shapes = {"a": (128, 128), "b": (128, 256), "c": (128, 130)}
    used = {"pooled": "ab", "narrow": "ac", "channels_first": "a", "pointwise": "a"}
    params = {
        name: {k: rng.normal(size=shapes[k]).astype(np.float32) / 12 for k in keys}
        for name, keys in used.items()
    }
    exact = jax.jit(each_way)
    for first, *others in ((1, 40), (40, 1), (3, 1, 40)):
        sample = rng.normal(size=(first, 24, 128)).astype(np.float32)
        model = lepton.compile(each_way, params, sample, passes=passes)
        assert model.nbytes < 4 * sum(w.size for w in jax.tree.leaves(params)) + 4096
        for batch in (first, *others):
            x = rng.normal(size=(batch, 24, 128)).astype(np.float32)
            found, wanted = model(x), exact(params, x)
            for name in used:
                np.testing.assert_allclose(found[name], wanted[name], 0.1, 0.1, err_msg=name)


def test_as_many_rows_as_a_weight_has_are_no_other_program() -> None:
    """Constants of the inputs' shape and of a weight's are one then, and stand further up."""
    rng = np.random.default_rng(1)
    shapes = {"a": (8, 16), "b": (16, 8)}
    params = {name: jnp.asarray(rng.normal(size=shape) / 4, jnp.float32) for name, shape in shapes.items()}
    sample, x = (jnp.asarray(rng.normal(size=(rows, 8)), jnp.float32) for rows in (3, 16))
    model = lepton.compile(gated, params, sample, passes="default,quantize{activations=dynamic}")
    np.testing.assert_allclose(model(x), gated(params, x), 0.1, 0.1)


@pytest.mark.parametrize("passes", ["deploy", "deploy,quantize{activations=dynamic,train=ste}"])
def test_a_weight_that_a_factor_went_into_serves_any_number_of_rows(passes: str) -> None:
    """The half of gelu is in the weight, and stays there where there are fewer rows than it has too."""
    rng = np.random.default_rng(1)
    shapes = {"a": (128, 256), "b": (256, 128)}
    params = {name: jnp.asarray(rng.normal(size=shape) / 16, jnp.float32) for name, shape in shapes.items()}
    few, many = (jnp.asarray(rng.normal(size=(rows, 128)), jnp.float32) for rows in (5, 300))
    for sample, x in ((few, many), (many, few)):
        model = lepton.compile(gated, params, sample, passes=passes)
        np.testing.assert_allclose(model(x), gated(params, x), 0.1, 0.1)
        f = lepton.optimize(gated, passes, params="p")
        np.testing.assert_allclose(f(params, x), model(x), 0.01, 0.01)


def test_a_gain_of_a_norm_over_a_batch_went_into_a_weight_for_any_batch() -> None:
    """The norm scales each token of each sequence: no third matrix, so the gain stays in the weight."""

    def model(p: Any, x: jax.Array) -> Any:
        return (x * lax.rsqrt((x**2).mean(-1, keepdims=True)) * p["gain"]) @ p["w"]

    rng = np.random.default_rng(0)
    gain, weight = rng.uniform(0.5, 2, 32), rng.normal(size=(32, 64))
    params = {"gain": jnp.asarray(gain, jnp.float32), "w": jnp.asarray(weight, jnp.float32)}
    few, many = (jnp.asarray(rng.normal(size=(n, 9, 32)), jnp.float32) for n in (2, 12))
    compiled = lepton.compile(model, params, few)
    np.testing.assert_allclose(compiled(many), model(params, many), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("passes", ["default", "default,quantize{activations=dynamic}"])
def test_prepared_parameters_serve_a_symbolic_number_of_rows(passes: str) -> None:
    """Weights that are kept turned are so in the program for any number of rows too."""
    rng = np.random.default_rng(2)
    shapes = {"a": (128, 256), "b": (256, 128)}
    params = {name: jnp.asarray(rng.normal(size=shape) / 16, jnp.float32) for name, shape in shapes.items()}
    x = jnp.asarray(rng.normal(size=(5, 128)), jnp.float32)
    model = lepton.compile(gated, params, x[:1], passes=passes)
    assert any(array.shape == (256, 128) for name, array in model.params.items() if name.startswith("p/a"))
    (rows,) = jax.export.symbolic_args_specs((x,), "rows, _")
    exported = jax.export.export(model.jit)(model.params, rows)
    np.testing.assert_allclose(exported.call(model.params, x), gated(params, x), 0.1, 0.1)


def gated(p: Any, x: Any) -> Any:
    return jax.nn.gelu(x @ p["a"]) @ p["b"]
