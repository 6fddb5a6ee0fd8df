"""A transformer encoder, and a decoder's step with a key/value cache: 12 layers, 768 wide.

`jax.jit` in float32 and the compiled models, in turn. A decoder's step is given its cache and returns the
next one in the same memory (`donate_argnums`).
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lepton_jax as lepton
from benchmarks._common import Row, batches, nbytes, relative, turns
from lepton_jax.numerics.cache import encode_cache, with_coded_cache

Params = dict[str, Any]

ENCODER: Final = {
    "W8A8, dynamic": "deploy,quantize{activations=dynamic}",
    "W8A8, static": "deploy,quantize{activations=static}",
    "W8A8, dynamic, attention": "deploy,quantize{activations=dynamic},quantize-attention",
    "weights alone": "deploy,quantize",
    "weights alone, decoded": "deploy,quantize{products=floats}",
}

DECODER: Final = {
    "W8A8, dynamic": "deploy,quantize{activations=dynamic}",
    "W8A8, static": "deploy,quantize{activations=static}",
    "W8A8, dynamic, int8 cache": "deploy,quantize{activations=dynamic},kv-cache",
    "weights alone": "deploy,quantize",
    "weights alone, decoded": "deploy,quantize{products=floats}",
    "weights alone, int8 cache": "deploy,quantize,kv-cache",
}


@dataclass(frozen=True)
class Size:
    """The sizes of a transformer.

    Attributes:
        layers: how many.
        width: of the residual stream; the layer in between is four times as wide.
        heads: of attention.
        tokens: in the sequence, or in the cache.
        words: in the decoder's vocabulary.
    """

    layers: int
    width: int
    heads: int
    tokens: int
    words: int = 4096


def size_of(quick: bool, tokens: int) -> Size:
    """The sizes that are measured, or those of a quick run."""
    return Size(2, 32, 2, 8, 64) if quick else Size(12, 768, 12, tokens)


def parameters(size: Size) -> Params:
    """Normal weights: each [inputs, outputs], biases zero, gains one; the table [words, width]."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(0, shape[0] ** -0.5, shape), jnp.float32)

    def layer() -> Params:
        wide, width = 4 * size.width, size.width
        made: Params = {name: weight(width, width) for name in ("query", "key", "value", "out")}
        made |= {"up": weight(width, wide), "down": weight(wide, width)}
        made |= {f"{name}_bias": jnp.zeros(made[name].shape[1]) for name in list(made)}
        norms = {name: {"gain": jnp.ones(width), "bias": jnp.zeros(width)} for name in ("before", "between")}
        return made | norms

    norm = {"gain": jnp.ones(size.width), "bias": jnp.zeros(size.width)}
    return {
        "layers": [layer() for _ in range(size.layers)],
        "norm": norm,
        "table": jnp.asarray(rng.normal(0, 0.5, (size.words, size.width)), jnp.float32),
    }


def layer_norm(p: Params, x: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 along the last axis, then gain and bias."""
    x = x - x.mean(-1, keepdims=True)
    scaled: jax.Array = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p["gain"] + p["bias"]
    return scaled


def dense(p: Params, name: str, x: jax.Array) -> jax.Array:
    """x [..., inputs] times a weight, and a bias."""
    y: jax.Array = x @ p[name] + p[f"{name}_bias"]
    return y


def mlp(p: Params, x: jax.Array) -> jax.Array:
    """Two layers with gelu between them."""
    return dense(p, "down", jax.nn.gelu(dense(p, "up", x)))


def build_encoder(quick: bool, batch: int = 1) -> tuple[Callable[..., Any], Params, tuple[Any, ...]]:
    """The function of parameters and x [batch, 128, 768], its parameters, and a sample."""
    size = size_of(quick, 128)

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], size.heads, -1)

    def encoder(params: Params, x: jax.Array) -> jax.Array:
        for p in params["layers"]:
            h = layer_norm(p["before"], x)
            q, k, v = (split(dense(p, name, h)) for name in ("query", "key", "value"))
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
            mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
            x = x + dense(p, "out", mixed.reshape(x.shape))
            x = x + mlp(p, layer_norm(p["between"], x))
        return layer_norm(params["norm"], x)

    params = {name: value for name, value in parameters(size).items() if name != "table"}
    x = np.random.default_rng(1).normal(size=(batch, size.tokens, size.width))
    return encoder, params, (jnp.asarray(x, jnp.float32),)


def build_decoder(quick: bool, batch: int = 1) -> tuple[Callable[..., Any], Params, tuple[Any, ...]]:
    """The step (params, token [batch], position, cache) → (logits [batch, words], cache), and a sample.

    The cache has for each layer keys and values [batch, heads, 512, 64]. In the sample all but the last
    token of it are there.
    """
    size = size_of(quick, 512)
    width = size.width // size.heads

    def step(params: Params, token: jax.Array, position: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        x = params["table"][token]
        seen = jnp.arange(size.tokens) <= position
        new = []
        for p, old in zip(params["layers"], cache, strict=True):
            h = layer_norm(p["before"], x)
            q, k, v = (dense(p, name, h).reshape(-1, size.heads, width) for name in ("query", "key", "value"))
            keys = lax.dynamic_update_slice(old["key"], k[:, :, None], (0, 0, position, 0))
            values = lax.dynamic_update_slice(old["value"], v[:, :, None], (0, 0, position, 0))
            scores = jnp.einsum("bhd,bhsd->bhs", q, keys) / width**0.5
            weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
            mixed = jnp.einsum("bhs,bhsd->bhd", weights, values)
            x = x + dense(p, "out", mixed.reshape(x.shape))
            x = x + mlp(p, layer_norm(p["between"], x))
            new.append({"key": keys, "value": values})
        return layer_norm(params["norm"], x) @ params["table"].T, new

    rng = np.random.default_rng(1)
    shape = (batch, size.heads, size.tokens, width)
    cache = [
        {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name in ("key", "value")}
        for _ in range(size.layers)
    ]
    token = jnp.asarray(rng.integers(0, size.words, batch))
    return step, parameters(size), (token, jnp.int32(size.tokens - 1), cache)


def measure(quick: bool) -> list[Row]:
    """Milliseconds, times as fast as `jax.jit`, bytes as a part of float32's, and the error."""
    found = []
    for batch in (1,) if quick else (1, 8):
        found += _encoder(quick, batch)
    for batch in (1,) if quick else (1, 8):
        found += _decoder(quick, batch)
    return found


def _encoder(quick: bool, batch: int) -> list[Row]:
    fun, params, (x,) = build_encoder(quick, batch)
    plain = jax.jit(fun)
    runs: dict[str, Callable[[], Any]] = {"jit f32": lambda: plain(params, x)}
    sizes = {"jit f32": 1.0}
    for name, passes in ENCODER.items():
        model = lepton.compile(fun, params, x, passes=passes, calibration=batches(passes, x))
        runs[name] = functools.partial(model, x)
        sizes[name] = model.nbytes / nbytes(params)
    return _rows("encoder", batch, runs, sizes, quick)


def _decoder(quick: bool, batch: int) -> list[Row]:
    fun, params, (token, position, cache) = build_decoder(quick, batch)
    plain = jax.jit(fun, donate_argnums=3)
    runs = {"jit f32": _Steps(plain, (params, token, position), jax.tree.map(jnp.copy, cache))}
    sizes = {"jit f32": 1.0}
    whole = nbytes(params) + nbytes(cache)
    for name, passes in DECODER.items():
        coded = "kv-cache" in passes
        step = with_coded_cache(fun) if coded else fun
        given = encode_cache(cache) if coded else jax.tree.map(jnp.copy, cache)
        sample = (token, position, given)
        model = lepton.compile(
            step, params, *sample, passes=passes, calibration=batches(passes, *sample), donate_argnums=3
        )
        sizes[name] = (model.nbytes + nbytes(given)) / whole
        runs[name] = _Steps(model, (token, position), given)
    return _rows("decoder", batch, dict(runs), sizes, quick)


class _Steps:
    """A step run again and again on its own cache: returns the logits."""

    def __init__(self, step: Callable[..., Any], args: tuple[Any, ...], cache: Any) -> None:
        self.step, self.args, self.cache = step, args, cache

    def __call__(self) -> Any:
        logits, self.cache = self.step(*self.args, self.cache)
        return logits


def _rows(
    what: str, batch: int, runs: dict[str, Callable[[], Any]], sizes: dict[str, float], quick: bool
) -> list[Row]:
    """All runs in turn: the least milliseconds, and the median of the ratios to the first."""
    exact = next(iter(runs.values()))()
    errors = {name: relative(exact, run()) for name, run in runs.items()}
    times = turns(list(runs.values()), 2 if quick else 9)
    return [
        {
            "program": what,
            "batch": batch,
            "model": name,
            "milliseconds": min(row[i] for row in times) * 1e3,
            "times as fast as jit": statistics.median(row[0] / row[i] for row in times),
            "bytes": sizes[name],
            "error": errors[name],
        }
        for i, name in enumerate(runs)
    ]
