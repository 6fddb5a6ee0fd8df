"""Decoder: a small decoder-only transformer (pre-norm, causal multi-head attention)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a `Decoder`.

    Attributes:
        vocabulary: number of different tokens.
        context: longest sequence, the number of position embeddings.
        layers: number of blocks, unrolled.
        heads: attention heads in each block.
        width: width of the residual stream, a multiple of `heads`.
        mlp_ratio: hidden width of the MLP over `width`.
        tied_head: whether the head shares its matrix with the token embedding.
        dtype: type the layers compute in; parameters, attention weights and logits are float32.

    Raises:
        ValueError: if a size is not positive or `width` is not a multiple of `heads`.
    """

    vocabulary: int = 64
    context: int = 32
    layers: int = 3
    heads: int = 4
    width: int = 96
    mlp_ratio: int = 4
    tied_head: bool = True
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        sizes = (self.vocabulary, self.context, self.layers, self.heads, self.width, self.mlp_ratio)
        if min(sizes) < 1:
            raise ValueError(f"DecoderConfig needs positive sizes, got {self}")
        if self.width % self.heads:
            raise ValueError(f"DecoderConfig.width {self.width} is not a multiple of its heads {self.heads}")


class CausalAttention(nnx.Module):
    """Multi-head self-attention in which a position sees itself and what stands before it.

    The key has no bias: it would shift all scores of a query alike, which softmax ignores.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.query = nnx.Linear(config.width, config.width, dtype=config.dtype, rngs=rngs)
        self.key = nnx.Linear(config.width, config.width, use_bias=False, dtype=config.dtype, rngs=rngs)
        self.value = nnx.Linear(config.width, config.width, dtype=config.dtype, rngs=rngs)
        self.out = nnx.Linear(config.width, config.width, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, length, width] to the same shape."""
        batch, length, width = x.shape
        split = (batch, length, self.config.heads, width // self.config.heads)
        query = self.query(x).reshape(split)
        key = self.key(x).reshape(split)
        value = self.value(x).reshape(split)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) / split[-1] ** 0.5
        causal = jnp.tril(jnp.ones((length, length), dtype=bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)
        return self.out(mixed.reshape(batch, length, width))


class DecoderBlock(nnx.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        hidden = config.mlp_ratio * config.width
        self.attention_norm = nnx.LayerNorm(config.width, dtype=config.dtype, rngs=rngs)
        self.attention = CausalAttention(config, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(config.width, dtype=config.dtype, rngs=rngs)
        self.up = nnx.Linear(config.width, hidden, dtype=config.dtype, rngs=rngs)
        self.down = nnx.Linear(hidden, config.width, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, length, width] to the same shape."""
        with jax.named_scope("attention"):
            x = x + self.attention(self.attention_norm(x))
        with jax.named_scope("mlp"):
            return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x))))


class Decoder(nnx.Module):
    """Token and position embeddings, pre-norm blocks, a last norm, and a tied or separate head.

    Example:
        >>> model = Decoder(DecoderConfig(vocabulary=32, layers=1), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 16), jnp.int32)).shape
        (2, 16, 32)
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        """Initialises the parameters from `rngs` (stream `params`)."""
        unit_norm = nnx.initializers.normal(stddev=config.width**-0.5)
        self.config = config
        self.tokens = nnx.Embed(
            config.vocabulary, config.width, dtype=config.dtype, embedding_init=unit_norm, rngs=rngs
        )
        self.positions = nnx.Embed(
            config.context, config.width, dtype=config.dtype, embedding_init=unit_norm, rngs=rngs
        )
        self.blocks = nnx.List([DecoderBlock(config, rngs=rngs) for _ in range(config.layers)])
        self.norm = nnx.LayerNorm(config.width, dtype=config.dtype, rngs=rngs)
        self.head = (
            None
            if config.tied_head
            else nnx.Linear(config.width, config.vocabulary, use_bias=False, dtype=config.dtype, rngs=rngs)
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Scores the token that follows each position.

        Args:
            tokens: integers [batch, length], each below `vocabulary`, `length` at most `context`.

        Returns:
            Logits, float32 [batch, length, vocabulary]; those at a position depend on the tokens up to it.

        Raises:
            ValueError: if `tokens` has another rank or is longer than the context.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.config.context:
            raise ValueError(
                f"Decoder expects tokens [batch, length] with length at most {self.config.context}, "
                f"got shape {tokens.shape}"
            )
        with jax.named_scope("embed"):
            x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for index, block in enumerate(self.blocks):
            with jax.named_scope(f"block{index}"):
                x = block(x)
        with jax.named_scope("head"):
            x = self.norm(x)
            logits = self.tokens.attend(x) if self.head is None else self.head(x)
        return logits.astype(jnp.float32)
