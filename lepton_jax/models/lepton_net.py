"""LeptonNet: a small residual convolutional network with hierarchical stages."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


@dataclass(frozen=True)
class LeptonNetConfig:
    """Shape of a `LeptonNet`.

    Every stage after the first halves height and width and works at its own number of channels.

    Attributes:
        image_channels: channels of the input images.
        classes: number of classes, the width of the logits.
        widths: channels of each stage, one entry for each stage.
        blocks_per_stage: residual blocks in each stage.
        norm_momentum: momentum of the running statistics of batch norm.
        dtype: type the layers compute in; parameters and logits are float32.

    Raises:
        ValueError: if a size is not positive or `widths` is empty.
    """

    image_channels: int = 1
    classes: int = 10
    widths: tuple[int, ...] = (16, 32, 64)
    blocks_per_stage: int = 1
    norm_momentum: float = 0.9
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        if not self.widths:
            raise ValueError("LeptonNetConfig.widths must name at least one stage")
        sizes = (self.image_channels, self.classes, self.blocks_per_stage, *self.widths)
        if min(sizes) < 1:
            raise ValueError(f"LeptonNetConfig needs positive sizes, got {self}")


class ConvNorm(nnx.Module):
    """A 'SAME' convolution without bias, followed by batch norm over all axes but the last."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        config: LeptonNetConfig,
        *,
        kernel: int = 3,
        stride: int = 1,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = nnx.Conv(
            channels_in,
            channels_out,
            kernel_size=(kernel, kernel),
            strides=(stride, stride),
            use_bias=False,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(channels_out, momentum=config.norm_momentum, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [batch, h, w, channels_in] to [batch, ceil(h / stride), ceil(w / stride), channels_out]."""
        with jax.named_scope("conv"):
            y = self.conv(x)
        with jax.named_scope("norm"):
            normed: jax.Array = self.norm(y, use_running_average=not train)
        return normed


class ResidualBlock(nnx.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), the shortcut projecting where shapes change."""

    def __init__(
        self, channels_in: int, channels_out: int, config: LeptonNetConfig, *, stride: int, rngs: nnx.Rngs
    ) -> None:
        self.first = ConvNorm(channels_in, channels_out, config, stride=stride, rngs=rngs)
        self.second = ConvNorm(channels_out, channels_out, config, rngs=rngs)
        shortcut = None
        if stride != 1 or channels_in != channels_out:
            shortcut = ConvNorm(channels_in, channels_out, config, kernel=1, stride=stride, rngs=rngs)
        self.shortcut = shortcut

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [batch, h, w, channels_in] to [batch, ceil(h / stride), ceil(w / stride), channels_out]."""
        with jax.named_scope("first"):
            y = jax.nn.relu(self.first(x, train=train))
        with jax.named_scope("second"):
            y = self.second(y, train=train)
        if self.shortcut is None:
            return jax.nn.relu(x + y)
        with jax.named_scope("shortcut"):
            return jax.nn.relu(self.shortcut(x, train=train) + y)


class LeptonNet(nnx.Module):
    """Stem, residual stages at falling resolution and rising width, mean over space, linear head.

    Example:
        >>> model = LeptonNet(LeptonNetConfig(widths=(8, 16)), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 8, 8, 1))).shape
        (2, 10)
    """

    def __init__(self, config: LeptonNetConfig, *, rngs: nnx.Rngs) -> None:
        """Initialises the parameters from `rngs` (stream `params`)."""
        self.config = config
        self.stem = ConvNorm(config.image_channels, config.widths[0], config, rngs=rngs)
        blocks: list[ResidualBlock] = []
        channels = config.widths[0]
        for stage, width in enumerate(config.widths):
            for block in range(config.blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(ResidualBlock(channels, width, config, stride=stride, rngs=rngs))
                channels = width
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(channels, config.classes, dtype=config.dtype, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images.

        Args:
            images: floats [batch, height, width, image_channels].
            train: normalise with the statistics of this batch and update the running ones;
                otherwise normalise with the running ones.

        Returns:
            Logits, float32 [batch, classes].

        Raises:
            ValueError: if `images` has another rank or another number of channels.
        """
        if images.ndim != 4 or images.shape[-1] != self.config.image_channels:
            raise ValueError(
                f"LeptonNet expects images [batch, height, width, {self.config.image_channels}], "
                f"got shape {images.shape}"
            )
        with jax.named_scope("stem"):
            x = jax.nn.relu(self.stem(images, train=train))
        for index, block in enumerate(self.blocks):
            stage, position = divmod(index, self.config.blocks_per_stage)
            with jax.named_scope(f"stage{stage}_block{position}"):
                x = block(x, train=train)
        with jax.named_scope("head"):
            logits = self.head(jnp.mean(x, axis=(1, 2)))
        return logits.astype(jnp.float32)
