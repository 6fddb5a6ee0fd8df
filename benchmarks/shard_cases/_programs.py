"""Training steps to spread over a mesh, each with the shardings that people write for it by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct as Shape
from jax.sharding import PartitionSpec as P

BATCH: Final = 32
"""Of eight devices; see `Program.on`."""

LENGTH: Final = 512

WIDTH: Final = 1024

HEADS: Final = 16

HEAD: Final = 64

HIDDEN: Final = 4096

LAYERS: Final = 2

EXPERTS: Final = 8

CAPACITY: Final = 80
"""Tokens of a sequence that an expert takes."""

Specs = Mapping[str, P]
"""Of arguments, by the last names of their paths: `w1`, `layers/w1`, `tokens`."""

Place = Callable[[Any], Any]
"""What a sharding by hand says of activations between layers; the identity on one device."""


@dataclass(frozen=True)
class Program:
    """A loss and the shapes of its arguments.

    Attributes:
        name: for the table.
        loss: of the parameters, the batch, and what places activations.
        params: shapes of the parameters.
        batch: shapes of the batch.
        by_hand: shardings as people write them for a mesh with the axes `data` and `model`, by name; each has
            an entry `activations` for arrays between layers. What no entry names is whole.
    """

    name: str
    loss: Callable[[Any, Any, Place], Any]
    params: Any
    batch: Any
    by_hand: Mapping[str, Specs]

    def step(self, place: Place = lambda x: x) -> Callable[[Any, Any, Any], Any]:
        """A step of SGD with momentum: (params, momentum, batch) → (params, momentum, loss)."""

        def step(params: Any, momentum: Any, batch: Any) -> Any:
            value, grads = jax.value_and_grad(lambda params: self.loss(params, batch, place))(params)
            momentum = jax.tree.map(lambda m, g: 0.9 * m + g.astype(m.dtype), momentum, grads)
            params = jax.tree.map(lambda p, m: p - (0.01 * m).astype(p.dtype), params, momentum)
            return params, momentum, value

        return step

    def on(self, devices: int) -> Program:
        """The same with as many examples for each of so many devices; the sizes above are for eight."""

        def more(x: Shape) -> Shape:
            return Shape((x.shape[0] * devices // 8, *x.shape[1:]), x.dtype)

        return replace(self, batch=jax.tree.map(more, self.batch))

    @property
    def arguments(self) -> tuple[Any, Any, Any]:
        """The shapes of a step's arguments; the momentum is kept in float32."""
        momentum = jax.tree.map(lambda p: Shape(p.shape, jnp.float32), self.params)
        return self.params, momentum, self.batch


def weight(*shape: int) -> Shape:
    """A parameter in bfloat16."""
    return Shape(shape, jnp.bfloat16)


def norm(x: Any) -> Any:
    """Root mean square norm over the last dimension (Zhang and Sennrich, 2019), without a scale."""
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)
    return x * jax.lax.rsqrt(square + 1e-6).astype(x.dtype)


def mean_square(x: Any) -> Any:
    """A loss of anything."""
    return jnp.mean(jnp.square(x.astype(jnp.float32)))


# A multilayer perceptron


def _mlp(params: Any, x: Any, place: Place) -> Any:
    for layer in params:
        x = place(x + jax.nn.gelu(x @ layer["w1"]) @ layer["w2"])
    return mean_square(x)


MLP: Final = Program(
    "MLP",
    _mlp,
    [{"w1": weight(WIDTH, HIDDEN), "w2": weight(HIDDEN, WIDTH)} for _ in range(LAYERS)],
    Shape((BATCH * LENGTH, WIDTH), jnp.bfloat16),
    {
        "Megatron": {
            "w1": P(None, "model"),
            "w2": P("model"),
            "batch": P("data"),
            "activations": P("data"),
        },
        "FSDP": {
            "w1": P(("data", "model")),
            "w2": P(("data", "model")),
            "batch": P(("data", "model")),
            "activations": P(("data", "model")),
        },
        "FSDP and Megatron": {
            "w1": P("data", "model"),
            "w2": P("model", "data"),
            "batch": P("data"),
            "activations": P("data"),
        },
        "data parallel": {"batch": P(("data", "model")), "activations": P(("data", "model"))},
    },
)


# Attention and transformers


def attention(p: Any, x: Any) -> Any:
    """Attention of tokens [B, T, D]; fewer heads of keys and values than of queries where `k` has them."""
    q = jnp.einsum("btd,dhk->bthk", x, p["q"])
    k = jnp.einsum("btd,dhk->bthk", x, p["k"])
    v = jnp.einsum("btd,dhk->bthk", x, p["v"])
    groups = q.shape[2] // k.shape[2]
    q = q.reshape(*q.shape[:2], k.shape[2], groups, HEAD)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k).astype(jnp.float32) / 8.0
    weights = jax.nn.softmax(scores, -1).astype(x.dtype)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights, v)
    return jnp.einsum("bthk,hkd->btd", mixed.reshape(*x.shape[:2], -1, HEAD), p["o"])


def _dense(p: Any, x: Any) -> Any:
    return jax.nn.gelu(x @ p["w1"]) @ p["w2"]


def _experts(p: Any, x: Any) -> Any:
    """One expert for each token, in the form of GShard (Lepikhin et al., 2020): masks and einsums."""
    gates = jax.nn.softmax((x @ p["router"]).astype(jnp.float32), -1)
    chosen = jax.nn.one_hot(jnp.argmax(gates, -1), EXPERTS, dtype=jnp.float32)
    place = jnp.cumsum(chosen, 1) * chosen - 1.0
    slots = jax.nn.one_hot(place.astype(jnp.int32), CAPACITY, dtype=x.dtype)
    masks = slots * chosen[..., None].astype(x.dtype)
    given = jnp.einsum("btec,btd->ebcd", masks, x)
    hidden = jax.nn.gelu(jnp.einsum("ebcd,edf->ebcf", given, p["w1"]))
    done = jnp.einsum("ebcf,efd->ebcd", hidden, p["w2"])
    return jnp.einsum("btec,ebcd->btd", masks * gates[..., None].astype(x.dtype), done)


def _attention_loss(params: Any, x: Any, place: Place) -> Any:
    for layer in params:
        x = place(x + attention(layer, norm(x)))
    return mean_square(x)


def _transformer_loss(params: Any, x: Any, place: Place) -> Any:
    for layer in params:
        x = place(x + attention(layer, norm(x)))
        x = place(x + (_experts if "router" in layer else _dense)(layer, norm(x)))
    return mean_square(x)


def _attention_weights(kv_heads: int = HEADS) -> dict[str, Shape]:
    kv = weight(WIDTH, kv_heads, HEAD)
    return {"q": weight(WIDTH, HEADS, HEAD), "k": kv, "v": kv, "o": weight(HEADS, HEAD, WIDTH)}


_HEADS: Final = {"q": P(None, "model"), "k": P(None, "model"), "v": P(None, "model"), "o": P("model")}

_ALL: Final = P(("data", "model"))

_TOKENS: Final = Shape((BATCH, LENGTH, WIDTH), jnp.bfloat16)

_BY_HAND: Final[Mapping[str, Specs]] = {
    "Megatron": {
        **_HEADS,
        "w1": P(None, "model"),
        "w2": P("model"),
        "batch": P("data"),
        "activations": P("data"),
    },
    "Megatron, sequence split": {
        **_HEADS,
        "w1": P(None, "model"),
        "w2": P("model"),
        "batch": P("data", "model"),
        "activations": P("data", "model"),
    },
    "FSDP": {
        **dict.fromkeys(("q", "k", "v"), _ALL),
        "o": P(None, None, ("data", "model")),
        **dict.fromkeys(("w1", "w2", "batch", "activations"), _ALL),
    },
    "FSDP and Megatron": {
        **dict.fromkeys(("q", "k", "v"), P("data", "model")),
        "o": P("model", None, "data"),
        "w1": P("data", "model"),
        "w2": P("model", "data"),
        "batch": P("data"),
        "activations": P("data"),
    },
    "data parallel": {"batch": _ALL, "activations": _ALL},
}

ATTENTION: Final = Program(
    "attention", _attention_loss, [_attention_weights() for _ in range(LAYERS)], _TOKENS, _BY_HAND
)

_MLP_WEIGHTS: Final = {"w1": weight(WIDTH, HIDDEN), "w2": weight(HIDDEN, WIDTH)}

TRANSFORMER: Final = Program(
    "transformer",
    _transformer_loss,
    [{**_attention_weights(), **_MLP_WEIGHTS} for _ in range(LAYERS)],
    _TOKENS,
    _BY_HAND,
)

GROUPED: Final = Program(
    "transformer, grouped queries",
    _transformer_loss,
    [{**_attention_weights(4), **_MLP_WEIGHTS} for _ in range(LAYERS)],
    _TOKENS,
    _BY_HAND,
)

_EXPERT_WEIGHTS: Final = {
    "router": weight(WIDTH, EXPERTS),
    "w1": weight(EXPERTS, WIDTH, HIDDEN),
    "w2": weight(EXPERTS, HIDDEN, WIDTH),
}

MOE: Final = Program(
    "mixture of experts",
    _transformer_loss,
    [{**_attention_weights(), **_EXPERT_WEIGHTS} for _ in range(LAYERS)],
    _TOKENS,
    {
        "experts and heads": {
            **_HEADS,
            "w1": P("model"),
            "w2": P("model"),
            "batch": P("data"),
            "activations": P("data"),
        },
        "experts, data parallel": {
            "w1": P("model"),
            "w2": P("model"),
            "batch": _ALL,
            "activations": _ALL,
        },
        "hidden and heads": {
            **_HEADS,
            "w1": P(None, None, "model"),
            "w2": P(None, "model"),
            "batch": P("data"),
            "activations": P("data"),
        },
        "FSDP": {
            **dict.fromkeys(("q", "k", "v"), _ALL),
            "o": P(None, None, ("data", "model")),
            "w1": P(None, ("data", "model")),
            "w2": P(None, ("data", "model")),
            "batch": _ALL,
            "activations": _ALL,
        },
        "data parallel": {"batch": _ALL, "activations": _ALL},
    },
)


# A convolutional net


def _convnet_loss(params: Any, images: Any, place: Place) -> Any:
    x = images
    for stage in params["stages"]:
        stride = 1 if x.shape[-1] == stage["down"].shape[-1] else 2
        x = place(_convolution(x, stage["down"], stride))
        x = place(x + _convolution(jax.nn.relu(_convolution(x, stage["first"])), stage["second"]))
    return mean_square(x.mean((1, 2)) @ params["head"])


def _convolution(x: Any, kernel: Any, stride: int = 1) -> Any:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _stage(into: int, out: int) -> dict[str, Shape]:
    return {
        "down": weight(3, 3, into, out),
        "first": weight(3, 3, out, out),
        "second": weight(3, 3, out, out),
    }


CONVNET: Final = Program(
    "convnet",
    _convnet_loss,
    {"stages": [_stage(64, 64), _stage(64, 128), _stage(128, 256)], "head": weight(256, 1000)},
    Shape((256, 32, 32, 64), jnp.bfloat16),
    {
        "data parallel": {"batch": _ALL, "activations": _ALL},
        "channels": {
            "first": P(None, None, None, "model"),
            "second": P(None, None, "model"),
            "head": P(None, "model"),
            "batch": P("data"),
            "activations": P("data"),
        },
        "FSDP": {
            "first": P(None, None, None, ("data", "model")),
            "second": P(None, None, None, ("data", "model")),
            "down": P(None, None, None, ("data", "model")),
            "batch": _ALL,
            "activations": _ALL,
        },
    },
)


# A recommender: most of it is embeddings


TABLES: Final = 8

ROWS: Final = 1 << 17


def _recommender_loss(params: Any, batch: Any, place: Place) -> Any:
    found = [params["tables"][i][batch["ids"][:, i]] for i in range(TABLES)]
    x = place(jnp.concatenate([*found, batch["dense"]], -1))
    x = place(jax.nn.relu(x @ params["w1"]))
    return mean_square(x @ params["w2"])


RECOMMENDER: Final = Program(
    "recommender",
    _recommender_loss,
    {
        "tables": [weight(ROWS, 128) for _ in range(TABLES)],
        "w1": weight(TABLES * 128 + 64, 2048),
        "w2": weight(2048, 64),
    },
    {"ids": Shape((8192, TABLES), jnp.int32), "dense": Shape((8192, 64), jnp.bfloat16)},
    {
        "rows, data parallel": {"tables": P("model"), "batch": P("data"), "activations": P("data")},
        "rows over all, data parallel": {"tables": _ALL, "batch": _ALL, "activations": _ALL},
        "columns, data parallel": {"tables": P(None, "model"), "batch": P("data"), "activations": P("data")},
        "columns over all": {
            "tables": P(None, ("data", "model")),
            "batch": _ALL,
            "activations": _ALL,
        },
        "data parallel": {"batch": _ALL, "activations": _ALL},
    },
)

PROGRAMS: Final = (MLP, ATTENTION, TRANSFORMER, GROUPED, MOE, CONVNET, RECOMMENDER)
