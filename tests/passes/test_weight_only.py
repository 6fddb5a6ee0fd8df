"""Products with int4 and int8 weights on a GPU: which become the kernel's, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from lepton_jax.passes.lower.weight_only import WeightOnly
from lepton_jax.targets.kernels import weight_only

RNG = np.random.default_rng(0)
RULE = "weight-only-kernel"
INT4, INT8 = "quantize{weights=int4,group=64}", "quantize"


def floats(*shape: int, dtype: Any = jnp.bfloat16) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape) / shape[0] ** 0.5, dtype)


def plain(w: Any, x: Any) -> Any:
    return x @ w


def heads(w: Any, x: Any) -> Any:
    """Queries of four heads, and back: two dimensions for columns, and two that are summed over."""
    return jnp.einsum("bshk,hkd->bsd", jnp.einsum("bsd,dhk->bshk", x, w[0]), w[1])


def scanned(w: Any, x: Any) -> Any:
    return jax.lax.scan(lambda h, a: (jnp.tanh(h @ a), None), x, w)[0]


def weight_first(w: Any, x: Any) -> Any:
    return w @ x.T


def tied(w: Any, x: Any) -> Any:
    return (w[jnp.arange(2)] + x) @ w.T


def mixed(w: Any, x: Any) -> Any:
    return x @ w["a"], jnp.tanh(x) @ w["a"], x @ w["b"].T


Taken = tuple[Callable[..., Any], Any, jax.Array, str, int]
TAKEN: dict[str, Taken] = {
    "int4": (plain, floats(256, 128), floats(1, 256), INT4, 1),
    "int8, 100 rows": (plain, floats(256, 128), floats(100, 256), INT8, 1),
    "float16, affine no": (
        plain,
        floats(256, 128, dtype=jnp.float16),
        floats(2, 256, dtype=jnp.float16),
        INT8,
        1,
    ),
    "one scale": (plain, floats(256, 128), floats(1, 256), "quantize{weights=int4,per=tensor}", 1),
    "ragged": (plain, floats(300, 70), floats(3, 300), "quantize{weights=int4,group=32}", 1),
    "heads": (heads, [floats(256, 4, 64), floats(4, 64, 128)], floats(2, 3, 256), INT4, 2),
    "scanned": (scanned, floats(3, 128, 128), floats(1, 128), INT4, 1),
    "weight first": (weight_first, floats(128, 256), floats(2, 256), INT8, 1),
    "read twice": (mixed, {"a": floats(256, 128), "b": floats(128, 256)}, floats(1, 256), INT4, 3),
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, tuple[Any, Any]]:
    """Each program compiled for a GPU, and for a CPU, which decodes the same codes."""
    return {
        name: (
            lepton.compile(fun, w, x, passes=f"default,{passes}", target="gpu"),
            lepton.compile(fun, w, x, passes=f"default,{passes}", target="cpu"),
        )
        for name, (fun, w, x, passes, _) in TAKEN.items()
    }


def test_weights_are_kept_in_words(compiled: dict[str, tuple[Any, Any]]) -> None:
    for name, (ours, theirs) in compiled.items():
        fired = ours.report().passes.rules.get(RULE, 0)
        assert fired == TAKEN[name][-1], name
        kinds = {str(array.dtype) for array in ours.params.values()}
        assert kinds == {"int16", "float32"}, name
        assert RULE not in theirs.report().passes.rules, name
    four, eight = (compiled[name][0].nbytes for name in ("int4", "int8, 100 rows"))
    assert four == 256 * 128 // 2 + 4 * 4 * 128 and eight == 256 * 128 + 4 * 128
    assert len(compiled["read twice"][0].params) == 4  # the weight that is read twice is kept once


def test_the_numbers_stay(compiled: dict[str, tuple[Any, Any]]) -> None:
    def all_of(which: int) -> Any:
        def run(params: Any) -> Any:
            return {n: compiled[n][which].fun.apply(params[n], TAKEN[n][2]) for n in compiled}

        return jax.jit(run)({n: pair[which].params for n, pair in compiled.items()})

    for name, (a, b) in {n: (a, all_of(1)[n]) for n, a in all_of(0).items()}.items():
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert x.dtype == y.dtype and x.shape == y.shape, name
            np.testing.assert_allclose(
                np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=0.02, atol=0.02, err_msg=name
            )


def test_what_is_prepared_serves_any_number_of_rows_and_platform(
    compiled: dict[str, tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = compiled["int4"]
    for rows in (3, 80):
        x = floats(rows, 256)
        np.testing.assert_allclose(
            np.asarray(ours(x), np.float32), np.asarray(theirs(x), np.float32), rtol=0.02, atol=0.02
        )
    x = floats(2, 256)
    exported = jax.export.export(ours.jit, platforms=("cpu", "cuda", "tpu"))(ours.params, x)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    np.testing.assert_array_equal(exported.call(ours.params, x), ours(x))

    seen: list[Any] = []

    def kernel(x: Any, words: Any, scale: Any, layout: Any, dtype: Any) -> Any:
        seen.append(x.shape)
        return weight_only.plain(x, words, scale, layout, dtype)

    monkeypatch.setattr(weight_only, "has_kernel", lambda: True)
    monkeypatch.setattr(weight_only, "call_kernel", kernel)
    ours.jit.trace(ours.params, floats(5, 256)).lower(lowering_platforms=("cpu",))
    assert not seen
    ours.jit.trace(ours.params, floats(6, 256)).lower(lowering_platforms=("cuda",))
    assert seen == [(6, 256)]


def test_gradients_and_batches(compiled: dict[str, tuple[Any, Any]]) -> None:
    xs = floats(3, 2, 256)

    def of(model: Any) -> Any:
        loss = lambda x: (model.fun.apply(model.params, x).astype(jnp.float32) ** 2).sum()  # noqa: E731
        return jax.jit(
            lambda xs: (jax.vmap(lambda x: model.fun.apply(model.params, x))(xs), jax.grad(loss)(xs[0]))
        )(xs)

    for a, b in zip(of(compiled["int4"][0]), of(compiled["int4"][1]), strict=True):
        wrong = np.asarray(a, np.float32) - np.asarray(b, np.float32)
        assert np.linalg.norm(wrong) < 0.01 * np.linalg.norm(np.asarray(b, np.float32))


LEFT: dict[str, tuple[Callable[..., Any], Any, jax.Array, str, str]] = {
    "float32": (
        plain,
        floats(256, 128, dtype=jnp.float32),
        floats(1, 256, dtype=jnp.float32),
        INT4,
        "float32",
    ),
    "zero points": (
        plain,
        floats(256, 128),
        floats(1, 256),
        "quantize{weights=int4,group=64,symmetric=false}",
        "zero points",
    ),
    "groups of 48": (
        plain,
        floats(288, 128),
        floats(1, 288),
        "quantize{weights=int4,group=48}",
        "groups of 48",
    ),
    "three bits": (plain, floats(256, 128), floats(1, 256), "quantize{weights=int3}", "no int3"),
    "tied": (tied, floats(128, 256), floats(2, 256), INT8, "kept twice"),
    "codes of activations": (plain, floats(256, 128), floats(1, 256), "quantize{activations=dynamic}", ""),
    "table": (plain, floats(256, 128), floats(1, 256), "quantize{weights=nf4,group=64}", ""),
    "small": (plain, floats(64, 64), floats(1, 64), INT8, ""),
    "precise": (
        lambda w, x: jnp.dot(x, w, precision="highest"),
        floats(256, 128),
        floats(1, 256),
        INT8,
        "a precision is asked for",
    ),
    "not quantised": (plain, floats(256, 128), floats(1, 256), "cse", ""),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left(name: str) -> None:
    fun, w, x, passes, reason = LEFT[name]
    f = lepton.optimize(fun, f"default,{passes},cse,weight-only", params="w", target="gpu")
    explained = str(f.explain(w, x))
    assert reason in explained
    assert RULE not in f.trace(w, x).report.rules


def test_it_is_for_gpus_and_parameters() -> None:
    w, x = floats(256, 128), floats(1, 256)
    for target, params, count in (("gpu", "w", 1), ("cpu", "w", 0), ("tpu", "w", 0)):
        f = lepton.optimize(plain, f"default,{INT4},weight-only", params=params, target=target)
        f.trace(w, x)
        assert f.report.rules.get(RULE, 0) == count, target
    f = lepton.optimize(plain, f"default,{INT4},weight-only{{level=exact}}", params="w", target="gpu")
    f.trace(w, x)
    assert RULE not in f.report.rules and WeightOnly.name == "weight-only"


def test_in_line_it_is_the_same_and_twice_is_once() -> None:
    w, x = floats(256, 128), floats(1, 256)
    once = lepton.optimize(plain, f"default,{INT4},weight-only,cse,dce", params="w", target="gpu")
    twice = lepton.optimize(
        plain, f"default,{INT4},weight-only,weight-only,cse,dce", params="w", target="gpu"
    )
    assert once.trace(w, x).graph.to_text() == twice.trace(w, x).graph.to_text()
    expected = lepton.optimize(plain, f"default,{INT4}", params="w", target="cpu")(w, x)
    np.testing.assert_allclose(
        np.asarray(once(w, x), np.float32), np.asarray(expected, np.float32), rtol=0.02, atol=0.02
    )
