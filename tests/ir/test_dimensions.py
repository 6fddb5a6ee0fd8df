"""Which dimensions are cut together, by hand: groups of small programs, and what is pinned by what."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.dimensions import Dependencies
from lepton_jax.structured.dependencies import dependencies
from tests.ir._dimension_models import conv
from tests.ir._dimensions import alone, floats, free, integers, names, reason


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
