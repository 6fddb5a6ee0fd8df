"""Which dimensions are cut together, by hand: groups of small programs, and what is pinned by what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.dimensions import Dependencies, DimensionError, Group, analyse
from lepton_jax.structured.dependencies import dependencies
from tests.ir._dimension_models import conv

Units = dict[str, list[list[int]]]


def floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def integers(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def units(group: Group) -> Units:
    """The indices of each unit, by parameter and dimension."""
    return {f"{each.path}[{each.dim}]": each.positions.tolist() for each in group.params}


def free(found: Dependencies) -> list[Units]:
    return [units(group) for group in found.cuttable]


def names(found: Dependencies) -> list[set[str]]:
    return [set(each) for each in free(found)]


def reason(found: Dependencies, path: str, dim: int) -> str:
    (group,) = found.group_of(path, dim)
    assert group.pinned is not None
    return group.pinned


def alone(*numbers: int) -> list[list[int]]:
    return [[each] for each in numbers]


def test_dense_layers_with_biases_and_a_broadcast() -> None:
    def f(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["a"] + p["ab"]) * p["gain"][:, None].T
        return h @ p["b"] + p["bb"]

    sizes = {"a": (3, 4), "ab": (4,), "gain": (4,), "b": (4, 2), "bb": (2,)}
    found = dependencies(f, {k: floats(*v) for k, v in sizes.items()}, floats(5, 3))
    every = alone(0, 1, 2, 3)
    assert free(found) == [{"p/a[1]": every, "p/ab[0]": every, "p/b[0]": every, "p/gain[0]": every}]
    assert reason(found, "p/a", 0) == "x is given by the caller"
    assert reason(found, "p/bb", 0) == "it is dimension 1 of output 0"
    assert str(found).splitlines() == [
        "f: 1 group of 4 units in all can be cut",
        "  p/a[1]: 4 units, with p/ab[0], p/b[0], p/gain[0]",
        "not to be cut:",
        "  p/a[0]: x is given by the caller",
        "  p/b[1], p/bb[0]: it is dimension 1 of output 0",
    ]
    assert found.kept({})[found.graph.inputs[0]] == (None, None)


def test_concatenation_split_and_slices() -> None:
    def f(p: Any, x: Any) -> Any:
        joined = jnp.concatenate([x @ p["a"], jnp.tanh(x @ p["b"])], -1)  # 2 and 4 channels, as in DenseNet
        left, middle, right = jnp.split(joined @ p["c"], [2, 4], -1)  # 2, 2 and 4
        spread = right[:, ::2] + middle + lax.dynamic_slice_in_dim(left[:, ::-1], 0, 2, 1)
        return spread @ p["d"] + right[:, 1::2] @ p["e"]

    sizes = {"a": (3, 2), "b": (3, 4), "c": (6, 8), "d": (2, 5), "e": (2, 5)}
    found = dependencies(f, {k: floats(*v) for k, v in sizes.items()}, floats(5, 3))
    assert free(found) == [
        {"p/a[1]": alone(0, 1), "p/c[0]": alone(0, 1)},
        {"p/b[1]": alone(0, 1, 2, 3), "p/c[0]": alone(2, 3, 4, 5)},
        {"p/c[1]": [[0, 3, 6], [1, 2, 4]], "p/d[0]": alone(1, 0)},
        {"p/c[1]": alone(5, 7), "p/e[0]": alone(0, 1)},
    ]
    assert found["p/c[1]#2"].params[0].positions.tolist() == alone(5, 7)


def flattened(order: str) -> Dependencies:
    def f(p: Any, x: Any) -> Any:
        y = conv(x, p["k"])  # [2, 2, 2, 3]
        y = y if order == "NHWC" else y.transpose(0, 3, 1, 2)
        return y.reshape(2, -1) @ p["w"]

    return dependencies(f, {"k": floats(3, 3, 1, 3), "w": floats(12, 5)}, floats(2, 2, 2, 1))


def test_flattening_after_a_convolution() -> None:
    last, first = flattened("NHWC"), flattened("NCHW")
    channels = alone(0, 1, 2)
    assert free(last) == [{"p/k[3]": channels, "p/w[0]": [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]}]
    assert free(first) == [{"p/k[3]": channels, "p/w[0]": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]}]
    assert "conv_general_dilated at" in reason(last, "p/k", 0) and "slides along it" in reason(last, "p/k", 0)


def test_convolutions_in_groups() -> None:
    def f(p: Any, x: Any) -> Any:
        y = conv(conv(x, p["in"]), p["depth"], groups=4)  # two filters for each of 4 channels
        y = conv(y, p["halves"], groups=2)  # 4 channels each, 3 filters each
        return conv(y, p["out"])

    sizes = {"in": (1, 1, 2, 4), "depth": (3, 3, 1, 8), "halves": (1, 1, 4, 6), "out": (1, 1, 6, 2)}
    found = dependencies(f, {k: floats(*v) for k, v in sizes.items()}, floats(1, 4, 4, 2))
    halves = [[0, 1, 2], [3, 4, 5]]
    assert free(found) == [
        {
            "p/depth[3]": [[0, 1, 2, 3], [4, 5, 6, 7]],
            "p/halves[3]": halves,
            "p/in[3]": [[0, 1], [2, 3]],
            "p/out[2]": halves,
        }
    ]
    assert "each of its 2 groups" in reason(found, "p/halves", 2)

    def g(p: Any, x: Any) -> Any:
        return conv(conv(x, p["k"], groups=2), p["out"])

    found = dependencies(g, {"k": floats(3, 3, 2, 6), "out": floats(1, 1, 6, 2)}, floats(1, 4, 4, 4))
    share = [[0, 3], [1, 4], [2, 5]]  # the caller's channels stay, so the groups do
    assert free(found) == [{"p/k[3]": share, "p/out[2]": share}]


def test_a_transposed_convolution_and_batch_groups() -> None:
    numbers = ("NHWC", "HWIO", "NHWC")

    def f(p: Any, x: Any) -> Any:
        y = lax.conv_transpose(conv(x, p["a"]), p["b"], (2, 2), "SAME", dimension_numbers=numbers)
        return conv(jnp.tanh(y), p["c"])

    sizes = {"a": (1, 1, 1, 3), "b": (3, 3, 3, 4), "c": (1, 1, 4, 2)}
    found = dependencies(f, {k: floats(*v) for k, v in sizes.items()}, floats(1, 4, 4, 1))
    assert free(found) == [
        {"p/a[3]": alone(0, 1, 2), "p/b[2]": alone(0, 1, 2)},
        {"p/b[3]": alone(0, 1, 2, 3), "p/c[2]": alone(0, 1, 2, 3)},
    ]

    def g(p: Any, x: Any) -> Any:
        y = jnp.ones((4, 5, 5, 2)) * p["a"]
        return lax.conv_general_dilated(
            y, x, (1, 1), "SAME", dimension_numbers=numbers, batch_group_count=2
        ).sum()

    found = dependencies(g, {"a": floats(2)}, floats(3, 3, 2, 2))
    assert not found.cuttable and "has groups of batches" in reason(found, "p/a", 0)


def test_a_reshape_before_a_transposed_convolution() -> None:
    def f(p: Any, z: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        image = jax.nn.relu(z @ p["dense"]).reshape(-1, 2, 2, 3)
        return lax.conv_transpose(image, p["up"], (2, 2), "SAME", dimension_numbers=numbers)

    found = dependencies(f, {"dense": floats(4, 12), "up": floats(3, 3, 3, 1)}, floats(1, 4))
    places = [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert free(found) == [{"p/dense[1]": places, "p/up[2]": alone(0, 1, 2)}]


def heads(p: Any, x: Any, gain: Any = None, grouped: bool = False) -> Any:
    """Attention over [3, 8] with 4 heads of 2, or 2 key heads for 4 query heads."""
    kv = 2 if grouped else 4
    query = (x @ p["q"]).reshape((3, 2, 2, 2) if grouped else (3, 4, 2))
    key, value = ((x @ p[name]).reshape(3, kv, 2) for name in "kv")
    if grouped:
        scores = jnp.einsum("qgrd,kgd->grqk", query, key)
        mixed = jnp.einsum("grqk,kgd->qgrd", jax.nn.softmax(scores), value)
    else:
        scores = jnp.einsum("qhd,khd->hqk", query, key)
        scores = scores if gain is None else scores * gain[:, None, None]
        mixed = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), value)
    return mixed.reshape(3, 8) @ p["o"]


def test_heads_of_attention() -> None:
    sizes = {"q": (5, 8), "k": (5, 8), "v": (5, 8), "o": (8, 5)}
    params = {k: floats(*v) for k, v in sizes.items()}
    whole = [[0, 1], [2, 3], [4, 5], [6, 7]]
    (found,) = free(dependencies(heads, params, floats(3, 5)))
    assert found == {"p/q[1]": whole, "p/k[1]": whole, "p/v[1]": whole, "p/o[0]": whole}

    params |= {"k": floats(5, 4), "v": floats(5, 4)}
    (found,) = free(dependencies(heads, params, floats(3, 5), grouped=True, static_argnames="grouped"))
    wide = [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found == {"p/q[1]": wide, "p/k[1]": whole[:2], "p/v[1]": whole[:2], "p/o[0]": wide}

    params |= {"k": floats(5, 8), "v": floats(5, 8)}  # the caller's gains count the heads: they stay
    inner = [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert free(dependencies(heads, params, floats(3, 5), floats(4))) == [
        {"p/k[1]": inner, "p/q[1]": inner},
        {"p/o[0]": inner, "p/v[1]": inner},
    ]


def test_embeddings_and_losses() -> None:
    def f(p: Any, tokens: Any, labels: Any) -> Any:
        x = p["table"][tokens] + p["places"][: tokens.shape[0]] * jnp.arange(4.0)
        logits = jnp.tanh(x) @ p["table"].T
        loss = -(jax.nn.log_softmax(logits) * jax.nn.one_hot(labels, 7)).sum()
        return loss + jnp.take_along_axis(x @ p["head"], labels[:, None], axis=1).sum()

    sizes = {"table": (7, 4), "places": (6, 4), "head": (4, 3)}
    found = dependencies(f, {k: floats(*v) for k, v in sizes.items()}, integers(5), integers(5))
    assert names(found) == [{"p/table[1]", "p/places[1]", "p/head[0]"}]
    assert "gather at" in reason(found, "p/table", 0) and "points into it" in reason(found, "p/table", 0)
    assert "points into it" in reason(found, "p/head", 1)
    rows = {group.pinned for group in found.group_of("p/places", 0)}
    assert rows == {"tokens is given by the caller"}

    def g(p: Any, labels: Any) -> Any:
        return (jax.nn.one_hot(labels, 7) * p["w"]).sum()

    found = dependencies(g, {"w": floats(7)}, integers(5))
    assert "sets its indices against integers that are not parameters" in reason(found, "p/w", 0)


def test_a_loop_over_layers_and_what_counts_its_iterations() -> None:
    def f(p: Any, x: Any, counting: bool = False) -> Any:
        def layer(carry: Any, w: Any) -> Any:
            x, i = carry
            x = x + jnp.tanh(x @ w["up"]) @ w["down"] * i
            return (x, i + 1 if counting else i), x.sum()

        (x, _), sums = lax.scan(layer, (x @ p["in"], 0), p["layers"])
        return x @ p["out"], sums.max()

    layers = {"up": floats(3, 4, 6), "down": floats(3, 6, 4)}
    params = {"in": floats(2, 4), "layers": layers, "out": floats(4, 2)}
    found = dependencies(f, params, floats(5, 2))
    assert names(found) == [
        {"p/in[1]", "p/layers/down[2]", "p/layers/up[1]", "p/out[0]"},
        {"p/layers/down[0]", "p/layers/up[0]"},
        {"p/layers/down[1]", "p/layers/up[2]"},
    ]
    assert [group.kind for group in found.cuttable] == ["channels", "layers", "channels"]
    assert "3 layers" in str(found)
    found = dependencies(f, params, floats(5, 2), counting=True, static_argnames="counting")
    assert "scan at" in reason(found, "p/layers/up", 0) and len(found.cuttable) == 2

    def g(p: Any, x: Any) -> Any:
        x = lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ p["w"][i]), x @ p["in"])
        x, _ = lax.while_loop(lambda c: c[0].sum() < 9, lambda c: (c[0] + c[1], c[1]), (x, p["step"]))
        return lax.cond(x.sum() > 0, lambda x: x * p["a"], lambda x: x * p["b"], x) @ p["out"]

    params = {"w": floats(3, 4, 4), "in": floats(2, 4), "step": floats(4), "a": floats(4), "b": floats(4)}
    found = dependencies(g, params | {"out": floats(4, 2)}, floats(2))
    inside = {"p/w[1]", "p/w[2]", "p/in[1]", "p/step[0]", "p/a[0]", "p/b[0]", "p/out[0]"}
    assert names(found) == [inside]
    assert "dynamic_slice at" in reason(found, "p/w", 0)


def test_a_residual_with_channels_that_are_padded_with_zeros() -> None:
    def f(p: Any, x: Any) -> Any:
        x = conv(x, p["a"])  # 2 channels
        wide = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1))) + conv(x, p["b"])  # ResNet's option A: 4
        return conv(wide, p["c"])

    sizes = {"a": (1, 1, 1, 2), "b": (3, 3, 2, 4), "c": (1, 1, 4, 3)}
    found = dependencies(f, {k: floats(*v) for k, v in sizes.items()}, floats(1, 4, 4, 1))
    both, outer = free(found)
    assert both == {
        "p/a[3]": alone(0, 1),
        "p/b[2]": alone(0, 1),
        "p/b[3]": alone(1, 2),
        "p/c[2]": alone(1, 2),
    }
    assert outer == {"p/b[3]": alone(0, 3), "p/c[2]": alone(0, 3)}
    kept = found.kept(found.select({found.cuttable[1].name: [1]}))
    padded = next(node for node in found.graph if node.op == "pad")
    assert [None if each is None else each.tolist() for each in kept[padded.result]] == [None] * 3 + [
        [1, 2, 3]
    ]


def test_what_nothing_reads_and_what_is_read_in_part() -> None:
    def f(p: Any, x: Any) -> Any:
        _ = x @ p["dead"]
        return (x @ p["a"])[:, :2] @ p["b"] + p["part"][:2]

    sizes = {"a": (3, 4), "b": (2, 2), "dead": (3, 3), "never": (5,), "part": (9,)}
    found = dependencies(f, {k: floats(*v) for k, v in sizes.items()}, floats(2, 3))
    assert reason(found, "p/never", 0) == reason(found, "p/dead", 1) == "nothing reads it"
    assert free(found) == [{"p/a[1]": alone(0, 1), "p/b[0]": alone(0, 1)}, {"p/a[1]": alone(2, 3)}]
    assert [group.pinned for group in found.group_of("p/part", 0)] == [
        "it is dimension 1 of output 0",
        "nothing reads it",
    ]


def test_symmetric_use_makes_larger_units() -> None:
    def f(p: Any, x: Any) -> Any:
        pairs = jnp.einsum("bi,bj->bij", x @ p["w"], x @ p["w"])  # each channel with each
        mirrored = x @ p["u"]
        return pairs.sum((1, 2)) + (mirrored + mirrored[:, ::-1]) @ p["v"]

    found = dependencies(f, {"w": floats(3, 4), "u": floats(3, 4), "v": floats(4)}, floats(2, 3))
    ends = [[0, 3], [1, 2]]
    assert free(found) == [{"p/u[1]": ends, "p/v[0]": ends}, {"p/w[1]": alone(0, 1, 2, 3)}]


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
    assert why in reason(found, "p", 1) and "test_dimensions.py" in reason(found, "p", 1)


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
