"""Key/value caches in codes: in loops, and as an argument and a result of a step."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.numerics.cache import Coded, decode_cache, encode_cache, with_coded_cache
from lepton_jax.passes.quantize._kv_cache.moves import reshaped

BATCH, HEADS, TOKENS, WIDTH, LAYERS = 2, 3, 12, 8, 2
RNG: Final = np.random.default_rng(0)

PASSES: Final = "default,kv-cache"


def floats(*shape: int) -> jax.Array:
    """Normal numbers."""
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def attend(q: Any, k: Any, v: Any, position: Any, keys: str = "bhsd", values: str = "bhsd") -> Any:
    """Attention of one token to those up to a position."""
    scores = jnp.einsum(f"bhd,{keys}->bhs", q, k) / 3
    seen = jnp.arange(TOKENS) <= position
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e9))
    return jnp.einsum(f"bhs,{values}->bhd", weights, v)


EMPTY: Final = jnp.zeros((BATCH, HEADS, TOKENS, WIDTH))


def by_scan(q: Any) -> Any:
    """Keys written by `.at[].set`, values by `dynamic_update_slice`."""

    def step(carry: Any, x: Any) -> Any:
        k, v, position = carry
        k = k.at[:, :, position].set(x)
        v = lax.dynamic_update_slice(v, 2 * x[:, :, None], (0, 0, position, 0))
        return (k, v, position + 1), attend(x[::-1], k, v, position)

    return lax.scan(step, (EMPTY, EMPTY, 0), q)[1]


def by_while(q: Any) -> Any:
    """A while loop with a number of tokens that is found at run time; the cache is a result."""

    def step(carry: Any) -> Any:
        i, k, v, out = carry
        k, v = lax.dynamic_update_index_in_dim(k, q[i], i, 2), v.at[:, :, i].set(q[i] / 2)
        return i + 1, k, v, out.at[i].set(attend(q[i], k, v, i))

    def goes_on(carry: Any) -> Any:
        return carry[0] < (q.sum() > -1e9) * 9

    return lax.while_loop(goes_on, step, (0, EMPTY, EMPTY, jnp.zeros_like(q)))[1:]


def over_layers(q: Any) -> Any:
    """The caches of all layers, stacked: a loop over layers takes and returns them in a loop over tokens."""

    def step(carry: Any, x: Any) -> Any:
        cache, position = carry

        def layer(h: Any, given: Any) -> Any:
            k, v = given
            k, v = k.at[:, :, position].set(h), v.at[:, :, position].set(-h)
            return h + attend(h, k, v, position), (k, v)

        h, cache = lax.scan(layer, x, cache)
        return (cache, position + 1), h

    stacked = jnp.zeros((LAYERS, *EMPTY.shape))
    (cache, _), found = lax.scan(step, ((stacked, stacked), 0), q)
    return found, cache[0]


def by_layer(q: Any) -> Any:
    """The same, written in place and read by the number of the layer."""

    def step(carry: Any, x: Any) -> Any:
        k, v, position = carry
        for i in range(LAYERS):
            k = k.at[i, :, :, position].set(x)
            v = lax.dynamic_update_slice(v, -x[None, :, :, None], (i, 0, 0, position, 0))
            x = x + attend(x, k[i], v[i], position)
        return (k, v, position + 1), x

    stacked = jnp.zeros((LAYERS, *EMPTY.shape))
    return lax.scan(step, (stacked, stacked, 0), q)[1]


def shared_heads(q: Any) -> Any:
    """One head of keys and values for all heads of queries, tokens before heads, repeated when read."""

    def step(carry: Any, x: Any) -> Any:
        k, v, position = carry
        k = lax.dynamic_update_slice(k, x[:, None, :1], (0, position, 0, 0))
        v = lax.dynamic_update_slice(v, x[:, None, 1:2], (0, position, 0, 0))
        keys, values = jnp.repeat(k, HEADS, 2), jnp.repeat(v, HEADS, 2)
        return (k, v, position + 1), attend(x, keys, values, position, "bshd", "bshd")

    one = jnp.zeros((BATCH, TOKENS, 1, WIDTH))
    return lax.scan(step, (one, one, 0), q)[1]


def other_layouts(q: Any) -> Any:
    """Keys with tokens last, values with heads and features in one."""

    def step(carry: Any, x: Any) -> Any:
        k, v, position = carry
        k = lax.dynamic_update_slice(k, x[..., None], (0, 0, 0, position))
        v = v.at[:, position].set(x.reshape(BATCH, -1))
        values = v.reshape(BATCH, TOKENS, HEADS, WIDTH)
        return (k, v, position + 1), attend(x, k, values, position, "bhds", "bshd")

    keys = jnp.zeros((BATCH, HEADS, WIDTH, TOKENS))
    return lax.scan(step, (keys, jnp.zeros((BATCH, TOKENS, HEADS * WIDTH)), 0), q)[1]


def chosen(q: Any) -> Any:
    """Written by a choice between tokens, and in a branch; several queries at once."""

    def step(carry: Any, x: Any) -> Any:
        k, v, position = carry
        here = (jnp.arange(TOKENS) == position)[None, None, :, None]
        k = jnp.where(here, x[:, :, None], k)
        v = lax.cond(position > 3, lambda v: v.at[:, :, position].set(x), lambda v: v, v)
        many = jnp.stack([x, -x, x / 2, 2 * x, 3 * x, x + 1, x - 1, x * x], 2)
        scores = jnp.einsum("bhqd,bhsd->bhqs", many, k) / 8
        weights = jax.nn.softmax(jnp.where(jnp.arange(TOKENS) <= position, scores, -jnp.inf))
        return (k, v, position + 1), jnp.einsum("bhqs,bhsd->bhqd", weights, v)

    return lax.scan(step, (EMPTY, EMPTY, 0), q)[1]


PROGRAMS: Final[dict[str, Callable[[Any], Any]]] = {
    "scan": by_scan,
    "while": by_while,
    "over layers": over_layers,
    "by layer": by_layer,
    "shared heads": shared_heads,
    "other layouts": other_layouts,
    "chosen": chosen,
    "vmap": lambda q: jax.vmap(by_scan)(jnp.stack([q, q[::-1]])),
}


def every(q: Any) -> Any:
    """All programs as one."""
    return {name: fun(q) for name, fun in PROGRAMS.items()}


def error(expected: Any, found: Any) -> float:
    """The norm of the error as a part of that of the result."""
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (expected, found)]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[0]))


@pytest.mark.parametrize(("form", "most"), [("int8", 0.02), ("fp8_e4m3", 0.08)])
def test_caches_of_loops_are_codes(form: str, most: float) -> None:
    q = floats(TOKENS, BATCH, HEADS, WIDTH)
    f = lepton.optimize(every, f"default,kv-cache{{format={form}}}")
    expected, found = jax.jit(every)(q), f(q)
    for name in PROGRAMS:
        assert 0 < error(expected[name], found[name]) < most, name
    sites = [site.done for site in f.report.sites]
    assert len(sites) == 2 * len(PROGRAMS) and all(site.startswith(f"{form}, a scale") for site in sites)
    loops = [node for node in f.trace(q).graph.walk() if node.op in ("scan", "while")]
    counts = {"scan": "num_carry", "while": ""}
    for node in loops:
        first = len(node.operands) - len(node.results) if not counts[node.op] else node.params["num_consts"]
        last = first + (node.params["num_carry"] if counts[node.op] else len(node.results))
        carried = [v for v in node.operands[first:last] if v.ndim >= 3 and 1 not in v.shape[1:]]
        kinds = {str(v.dtype) for v in carried if TOKENS in v.shape and v.shape[0] != TOKENS}
        assert "float32" not in kinds, node.op


def test_each_token_is_written_once() -> None:
    q = floats(TOKENS, BATCH, HEADS, WIDTH)
    traced = lepton.optimize(by_scan, PASSES).trace(q)
    (loop,) = [node for node in traced.graph.walk() if node.op == "scan"]
    body = loop.regions[0]
    writes = [node for node in body.walk() if node.op in ("scatter", "dynamic_update_slice")]
    assert sorted(str(node.result.dtype) for node in writes) == ["float32", "float32", "int8", "int8"]
    assert {node.result.shape[-1] for node in writes if node.result.dtype == jnp.float32} == {1}
    again = lepton.optimize(by_scan, f"{PASSES},kv-cache").trace(q)
    assert again.graph.to_text() == traced.graph.to_text()


def accumulated(q: Any) -> Any:
    """A state that is added to: linear attention."""

    def step(state: Any, x: Any) -> Any:
        state = state + jnp.einsum("bhd,bhe->bhde", x, x)
        return state, jnp.einsum("bhd,bhde->bhe", x, state)

    return lax.scan(step, jnp.zeros((BATCH, HEADS, WIDTH, WIDTH)), q)[1]


def summed(q: Any) -> Any:
    """A cache that is summed up as well."""

    def step(carry: Any, x: Any) -> Any:
        k, position = carry
        k = k.at[:, :, position].set(x)
        return (k, position + 1), attend(x, k, k, position) + jnp.exp(k).sum()

    return lax.scan(step, (EMPTY, 0), q)[1]


def in_parts(q: Any) -> Any:
    """A cache of which a part of a token is written at a time."""

    def step(carry: Any, x: Any) -> Any:
        k, position = carry
        k = lax.dynamic_update_slice(k, x[:1, :1, None, :4], (0, 0, position, position % 2))
        return (k, position + 1), attend(x, k, k, position)

    return lax.scan(step, (EMPTY, 0), q)[1]


def test_other_carries_stay() -> None:
    q = floats(TOKENS, BATCH, HEADS, WIDTH)
    reasons = {
        accumulated: "a scan puts another array in its place",
        summed: "exp in a loop reads it",
        in_parts: "a scan puts another array in its place",
    }
    for fun, reason in reasons.items():
        f = lepton.optimize(fun, PASSES)
        assert "cache-in-codes" not in f.trace(q).report.rules, fun.__name__
        assert reason in str(f.explain(q)), fun.__name__
    few = lepton.optimize(by_scan, "default,kv-cache{least=100000}").trace(q)
    assert "cache-in-codes" not in few.report.rules


# A step


def step(params: Any, x: Any, position: Any, cache: Any) -> Any:
    """A step of a decoder of one layer: x [batch, width]."""
    q, k, v = (jnp.einsum("bd,dhe->bhe", x, params[name]) for name in "qkv")
    keys = cache["k"].at[:, :, position].set(k)
    values = lax.dynamic_update_slice(cache["v"], v[:, :, None], (0, 0, position, 0))
    mixed = attend(q, keys, values, position)
    return jnp.einsum("bhe,hed->bd", mixed, params["o"]), {"k": keys, "v": values, "tokens": position + 1}


def inputs() -> tuple[Any, Any]:
    """Parameters, and an empty cache."""
    params = {name: floats(16, HEADS, WIDTH) / 4 for name in "qkv"} | {"o": floats(HEADS, WIDTH, 16) / 5}
    return params, {"k": EMPTY, "v": EMPTY, "tokens": jnp.int32(0)}


def test_a_step_takes_and_returns_codes() -> None:
    params, empty = inputs()
    cache, plain = encode_cache(empty), empty
    assert cache["k"].codes.shape == EMPTY.shape and cache["k"].scale.shape == (*EMPTY.shape[:3], 1)
    assert cache["k"].nbytes < 0.4 * EMPTY.nbytes and cache["tokens"].dtype == jnp.int32
    xs = floats(6, BATCH, 16)
    coded = with_coded_cache(step)
    model = lepton.compile(
        coded, params, xs[0], 0, cache, passes="default,quantize{activations=dynamic},kv-cache"
    )
    floating = jax.jit(step)
    written = None
    for i, x in enumerate(xs):
        y, cache = model(x, i, cache)
        expected, plain = floating(params, x, i, plain)
        assert error(expected, y) < 0.04
        if i == 0:
            written = np.array(cache["k"].codes[:, :, 0])
    assert isinstance(cache["k"], Coded) and cache["tokens"] == 6
    np.testing.assert_array_equal(cache["k"].codes[:, :, 0], written)
    assert error(plain, decode_cache(cache)) < 0.02
    text = str(model.jit.trace(model.params, xs[0], 0, cache).jaxpr)
    whole = ",".join(map(str, EMPTY.shape))
    assert len(re.findall(rf"i8\[{whole}\] = (scatter|dynamic_update_slice)", text)) == 2
    assert f"f32[{whole}] = round" not in text and f"f32[{whole}] = abs" not in text
    # without the pass the same, up to roundings of scales
    slow, _ = jax.jit(coded)(params, xs[0], 0, encode_cache(empty))
    assert error(slow, floating(params, xs[0], 0, empty)[0]) < 0.02


def test_a_cache_that_is_only_read() -> None:
    params, empty = inputs()
    keys = floats(*EMPTY.shape)

    def cross(x: Any, memory: Any) -> Any:
        memory = decode_cache(memory)
        q = jnp.einsum("bd,dhe->bhe", x, params["q"])
        return attend(q, memory["k"], memory["v"], 7)

    memory, x = encode_cache({"k": keys, "v": keys[::-1]}, "fp8_e4m3"), floats(BATCH, 16)
    f = lepton.optimize(cross, PASSES)
    assert error(cross(x, memory), f(x, memory)) < 0.03
    assert f.report.rules["cache-in-codes"] == 2
    del empty


def test_wrong_use() -> None:
    params, empty = inputs()
    with pytest.raises(TypeError, match="step has no argument 'kv'"):
        with_coded_cache(step, "kv")
    with pytest.raises(TypeError, match="'cache' holds no codes"):
        with_coded_cache(step)(params, floats(BATCH, 16), 0, empty)
    with pytest.raises(ValueError, match="int8, fp8_e4m3 or fp8_e5m2, not in int4"):
        encode_cache(empty, "int4")
    with pytest.raises(lepton.PipelineError, match="int8, fp8_e4m3 or fp8_e5m2"):
        lepton.optimize(by_scan, "kv-cache{format=int4}")


def test_nan_and_zeros() -> None:
    keys = jnp.zeros((2, 3, 4)).at[0, 1, 2].set(jnp.nan).at[1, 0].set(-3.0)
    back = decode_cache(encode_cache(keys))
    assert jnp.isnan(back[0, 1]).all() and jnp.isfinite(back[0, 0]).all() and (back[1, 0] == -3).all()
    codes = encode_cache(keys[1])
    again = encode_cache(decode_cache(codes))
    np.testing.assert_array_equal(codes.codes, again.codes)


def test_reshapes_that_keep_scales() -> None:
    assert reshaped((2, 8, 12), (2, 8, 3, 4), frozenset({2})) == frozenset({2, 3})
    assert reshaped((2, 8, 3, 4), (16, 12), frozenset({2, 3})) == frozenset({1})
    assert reshaped((2, 1, 8), (2, 8), frozenset({2})) == frozenset({1})
    assert reshaped((2, 3, 4), (2, 12), frozenset({2})) is None
