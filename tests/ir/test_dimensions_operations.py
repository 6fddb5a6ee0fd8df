"""Which operations pin dimensions, which do not; counts, batches and symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.dimensions import DimensionError, analyse
from lepton_jax.structured.dependencies import dependencies
from tests.ir._dimensions import floats, free, names, reason, units


@jax.custom_vjp
def squared(x: Any) -> Any:
    return x * x


squared.defvjp(lambda x: (x * x, x), lambda x, g: (2 * x * g,))


def test_functions_that_stay_calls() -> None:
    kept_apart = jax.jit(lambda h, w: squared(h) @ w, donate_argnums=0)

    def f(p: Any, x: Any) -> Any:
        once, twice = kept_apart(x @ p["a"], p["c"]), kept_apart(x @ p["b"], p["d"])
        return once + twice

    sizes = {"a": (3, 4), "b": (3, 4), "c": (4, 2), "d": (4, 2)}
    found = dependencies(f, {k: floats(*v) for k, v in sizes.items()}, floats(2, 3))
    assert names(found) == [{"p/a[1]", "p/b[1]", "p/c[0]", "p/d[0]"}]  # one body for both: cut alike
    kept = found.kept(found.select({"p/a[1]": [2]}))
    (body,) = {region for node in found.graph for region in node.regions}
    np.testing.assert_array_equal(kept[body.inputs[0]][1], [2])


PINNING: dict[str, tuple[Callable[[Any], Any], str]] = {
    "cumsum": (lambda h: jnp.cumsum(h, 1), "cumsum at"),
    "sort": (lambda h: jnp.sort(h, 1), "orders it anew"),
    "argmax": (lambda h: jnp.argmax(h, 1), "gives an index of it"),
    "top_k": (lambda h: lax.top_k(h, 2)[0], "orders it anew"),
    "fft": (lambda h: jnp.fft.rfft(h).real, "transforms it"),
    "callback": (
        lambda h: jax.pure_callback(lambda h: h, jax.ShapeDtypeStruct((2, 4), jnp.float32), h),
        "pure_callback at",
    ),
    "unstacked": (lambda h: sum(h[:, i] * i for i in range(4)), "makes a dimension of it alone"),
    "cholesky": (lambda h: jnp.linalg.cholesky(h.T @ h), "needs whole matrices"),
    "window": (lambda h: lax.reduce_window(h, 0.0, lax.add, (1, 2), (1, 2), "VALID"), "slides along it"),
    "indexed": (lambda h: h[:, jnp.array([0, 2])], "points into it"),
    "written": (lambda h: h.at[:, 1].set(0.0), "points into it"),
    "started": (lambda h: lax.dynamic_slice_in_dim(h, 1, 2, 1), "where a number says"),
    "updated": (
        lambda h: lax.dynamic_update_slice(h, jnp.ones((2, 2)), (0, 1)),
        "starts where a number says",
    ),
}


@pytest.mark.parametrize("name", PINNING)
def test_operations_that_pin(name: str) -> None:
    through, why = PINNING[name]
    found = dependencies(lambda p, x: through(x @ p).sum(), floats(3, 4), floats(2, 3))
    assert not found.cuttable
    assert why in reason(found, "p", 1) and "test_dimensions_operations.py" in reason(found, "p", 1)


PASSING: dict[str, Callable[[Any], Any]] = {
    "repeated": lambda h: jnp.repeat(h, 2, axis=1),
    "tiled": lambda h: jnp.tile(h, (1, 2)),
    "stacked": lambda h: jnp.stack([h, h], 1),
    "reversed": lambda h: h[:, ::-1],
    "cropped": lambda h: sum(lax.pad(h, 1.0, ((0, 0, 0), ends)).sum() for ends in ((-5, 6, 0), (-2, 0, 0))),
    "masked": lambda h: jnp.where(jnp.eye(4)[None] > 0, h[:, None, :], 0.0),
    "numbered": lambda h: h * 2.0 ** -jnp.arange(4),
    "normed": lambda h: jax.nn.softmax((h - h.max(-1, keepdims=True)) / jnp.linalg.norm(h)),
    "dropped": lambda h: h * jax.random.bernoulli(jax.random.key(0), 0.5, h.shape),
    "checkpointed": lambda h: jax.checkpoint(jnp.sin)(jax.nn.relu(h)),
    "clipped": lambda h: jnp.clip(h, 0, 1).astype(jnp.bfloat16).at[0].set(0.0),
}


@pytest.mark.parametrize("name", PASSING)
def test_operations_that_do_not_pin(name: str) -> None:
    found = dependencies(lambda p, x: PASSING[name](x @ p).sum(), floats(3, 4), floats(2, 3))
    (group,) = found.cuttable
    assert group.units == 4 and group.name == "p[1]"
    kept = found.kept(found.select({"p[1]": [0, 3]}))
    assert kept[found.graph.inputs[0]][1] is not None


def test_reasons_and_refusals() -> None:
    def f(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["a"]) @ p["b"]

    params = {"a": floats(3, 4), "b": floats(4, 2)}
    found = dependencies(f, params, floats(5, 3), protect=["p/a[1]"])
    assert not found.cuttable and reason(found, "p/b", 0) == "'p/a[1]' protects it"
    with pytest.raises(ValueError, match="protect: 'p/c' matches none of the arrays p/a, p/b"):
        dependencies(f, params, floats(5, 3), protect="p/c")
    found = dependencies(f, params, floats(5, 3))
    with pytest.raises(KeyError, match="there is no group 'x'; there are p/"):
        found["x"]
    for cut, message in (
        ({(0, 0): [0, 1]}, r"p/a\[0\] cannot lose index 2: x is given by the caller"),
        ({(0, 1): [0, 1], (1, 0): [0, 2]}, r"cannot keep index 1: what is cut elsewhere takes it along"),
        ({(0, 1): []}, "nothing would stay of dimension 1 of an input"),
        ({(0, 1): [1, 0]}, r"p/a\[1\] is to be increasing indices below 4"),
        ({(0, 2): [0]}, "no dimension 2 of an input 0"),
    ):
        with pytest.raises(DimensionError, match=message):
            found.kept({key: np.array(each, np.int64) for key, each in cut.items()})
    kept = found.kept({(0, 1): np.array([1, 3])})
    assert [each.tolist() for each in kept[found.graph.inputs[1]] if each is not None] == [[1, 3]]


def test_counts_of_means() -> None:
    def f(p: Any, x: Any) -> Any:
        h = x @ p
        right = [h.mean(), h.sum(1) * 0.25, h.var(1), h.std(1, ddof=1), h.astype(jnp.bfloat16).mean(1)]
        right += [jnp.einsum("nc,nc->n", h, h) / 4.0]
        wrong = [
            jnp.einsum("nc,nc->n", h, jnp.tanh(h)) / 4.0,
            h.sum(1) / 5.0,
            h / 4.0,
            h.max(1) / 4.0,
            h.sum(0) / 2.0,
        ]
        return sum(each.astype(jnp.float32).sum() for each in right + wrong)

    found = dependencies(f, floats(3, 4), floats(2, 3))
    kept = found.kept(found.select({"p[1]": [0, 1]}))
    changed = sorted((count.old, count.new(kept)) for count in found.counts)
    means = [(4.0, 2.0)] * 5  # of var and its mean, of the mean within std, of bfloat16, of squares
    assert changed == [(0.25, 0.5), (3.0, 1.0), *means, (8.0, 4.0)]


def test_other_batches_and_free_outputs() -> None:
    def f(w: Any, x: Any) -> Any:
        return jnp.tanh(x @ w)

    small, large = (dependencies(f, floats(3, 4), floats(batch, 3)) for batch in (1, 6))
    assert str(small) == str(large) and not small.cuttable
    found = analyse(trace(f, floats(3, 4), floats(2, 3)), outputs="free")
    assert [set(units(group)) for group in found.cuttable] == [
        {"input 0[0]", "input 1[1]"},
        {"input 0[1]"},
        {"input 1[0]"},
    ]
    kept = found.kept({(0, 1): np.array([0, 2])})
    assert [None if each is None else len(each) for each in kept[found.graph.outputs[0]]] == [None, 2]


def test_symbolic_sizes_stay() -> None:
    def f(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["a"])
        joined = jnp.concatenate([h, h], 0).reshape(-1, 2, 2)
        return joined.reshape(-1, 4)[1:] @ p["b"]

    batch, length = jax.export.symbolic_shape("b, t")
    x = jax.ShapeDtypeStruct((batch, length, 3), jnp.float32)
    found = dependencies(f, {"a": floats(3, 4), "b": floats(4, 2)}, x)
    assert free(found) == [{"p/a[1]": [[0, 1], [2, 3]], "p/b[0]": [[0, 1], [2, 3]]}]


def test_means_beside_and_over_symbolic_sizes() -> None:
    """A divisor made of a symbolic size cannot follow a cut; one of other sizes does."""

    def f(p: Any, x: Any) -> Any:
        h = x @ p["a"]
        return (h - h.mean(-1, keepdims=True)) @ p["b"] - (x @ p["c"]).mean()

    (batch,) = jax.export.symbolic_shape("b")
    params = {"a": floats(3, 4), "b": floats(4, 2), "c": floats(3, 5)}
    found = dependencies(f, params, jax.ShapeDtypeStruct((batch, 3), jnp.float32))
    assert names(found) == [{"p/a[1]", "p/b[0]"}]
    kept = found.kept(found.select({found.cuttable[0].name: [0, 2]}))
    assert [(count.old, count.new(kept)) for count in found.counts] == [(4.0, 2.0)]
    assert "counts it together with a symbolic dimension" in reason(found, "p/c", 1)
