"""ResNets pruned by Torch-Pruning, where it is installed, and by Lepton, side by side."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lepton_jax as lepton
from benchmarks._common import Row

Params = dict[str, Any]
_RATIO = 0.5


@dataclass(frozen=True)
class Net:
    """The structure of a ResNet (He et al., 2016).

    Attributes:
        name: for the table.
        image: the side of its images.
        stem: the window, the stride and the features of its first convolution.
        widths: of the inner convolutions of each stage's blocks.
        blocks: of each stage.
        bottleneck: whether a block is three convolutions, the last of which has four times the features.
        pool: whether the maximum of 3 × 3 pixels, every second one, follows the stem.
        classes: the number of logits.
    """

    name: str
    image: int
    stem: tuple[int, int, int]
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    bottleneck: bool = False
    pool: bool = False
    classes: int = 10

    def convolutions(self, stage: int, block: int) -> list[tuple[int, int, int]]:
        """Of a block's convolutions the features that come out, the window and the stride."""
        width, stride = self.widths[stage], self.stride(stage, block)
        if self.bottleneck:
            return [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
        return [(width, 3, stride), (width, 3, 1)]

    def stride(self, stage: int, block: int) -> int:
        """The stride of a block: the first of each stage but the first halves the image."""
        return 2 if stage and block == 0 else 1

    def sides(self) -> Iterator[int]:
        """The side of the images that each stage gives."""
        side = self.image // self.stem[1] // (2 if self.pool else 1)
        for stage in range(len(self.widths)):
            yield side >> stage


CIFAR: Final = Net("ResNet-56", 32, (3, 1, 16), (16, 32, 64), (9, 9, 9))

SMALL: Final = Net("ResNet-8", 32, (3, 1, 16), (16, 32, 64), (1, 1, 1))

IMAGENET: Final = Net(
    "ResNet-50", 224, (7, 2, 64), (64, 128, 256, 512), (3, 4, 6, 3), bottleneck=True, pool=True, classes=1000
)


def side_by_side(quick: bool) -> list[Row]:
    """Half of every group's channels gone: parameters and products of the same network, cut by both.

    Products are counted alike, from the shapes that are left: those of convolutions and of the last layer.
    """
    there = (
        importlib.util.find_spec("torch") is not None
        and importlib.util.find_spec("torch_pruning") is not None
    )
    rows = []
    for net in (SMALL,) if quick else (CIFAR, IMAGENET):
        params = parameters(net)
        images = jnp.zeros((1, net.image, net.image, 3))
        small = lepton.structured_prune(functools.partial(resnet, net), params, images, ratio=_RATIO)
        whole = _counts(net, params)
        rows.append(_row(f"{net.name}: Lepton", whole, _counts(net, small.params)))
        if there:
            cut = _counts(net, _by_torch_pruning(net, params))
            rows.append(_row(f"{net.name}: Torch-Pruning", whole, cut))
    if not there:
        print("not compared: torch and torch_pruning are not installed here")
    return rows


def resnet(net: Net, params: Params, x: jax.Array) -> jax.Array:
    """A ResNet with projections where widths change: images [N, side, side, 3] to logits [N, classes]."""
    x = jax.nn.relu(_conv(x, params["stem"], net.stem[1]))
    if net.pool:
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
    for stage in range(len(net.widths)):
        for block, p in enumerate(params[f"stage{stage}"]):
            inner = net.convolutions(stage, block)
            h = x
            for i, (_, _, stride) in enumerate(inner):
                h = _conv(jax.nn.relu(h) if i else h, p["inner"][i], stride)
            x = jax.nn.relu(h + (_conv(x, p["shortcut"], net.stride(stage, block)) if "shortcut" in p else x))
    logits: jax.Array = x.mean((1, 2)) @ params["head"] + params["bias"]
    return logits


def _conv(x: jax.Array, p: Params, stride: int) -> jax.Array:
    """A convolution and the norm of its result, with running statistics."""
    axes = ("NHWC", "OIHW", "NHWC")
    x = lax.conv_general_dilated(x, p["kernel"], (stride, stride), "SAME", dimension_numbers=axes)
    normed: jax.Array = (x - p["mean"]) * lax.rsqrt(p["variance"] + 1e-5) * p["scale"] + p["bias"]
    return normed


def parameters(net: Net) -> Params:
    """Normal kernels [outputs, inputs, size, size], the norms at their start."""
    rng = np.random.default_rng(0)

    def conv(inputs: int, outputs: int, size: int) -> Params:
        kernel = rng.normal(0, (inputs * size * size) ** -0.5, (outputs, inputs, size, size))
        norm = {"mean": jnp.zeros(outputs), "variance": jnp.ones(outputs)}
        norm |= {"scale": jnp.ones(outputs), "bias": jnp.zeros(outputs)}
        return {"kernel": jnp.asarray(kernel, jnp.float32), **norm}

    found: Params = {"stem": conv(3, net.stem[2], net.stem[0])}
    features = net.stem[2]
    for stage, count in enumerate(net.blocks):
        found[f"stage{stage}"] = []
        for block in range(count):
            made: Params = {"inner": []}
            inputs = features
            for outputs, size, _ in net.convolutions(stage, block):
                made["inner"].append(conv(inputs, outputs, size))
                inputs = outputs
            if inputs != features:
                made["shortcut"] = conv(features, inputs, 1)
            features = inputs
            found[f"stage{stage}"].append(made)
    head = jnp.asarray(rng.normal(0, 0.1, (features, net.classes)), jnp.float32)
    return found | {"head": head, "bias": jnp.zeros(net.classes)}


def _counts(net: Net, params: Params) -> tuple[int, int]:
    """(parameters without running statistics, multiplications of an image)."""
    named = jax.tree_util.tree_leaves_with_path(params)
    kept = [(jax.tree_util.keystr(path), leaf) for path, leaf in named]
    size = sum(leaf.size for name, leaf in kept if "mean" not in name and "variance" not in name)
    products = sum(leaf.size for _, leaf in kept if leaf.ndim == 2)
    products += params["stem"]["kernel"].size * (net.image // net.stem[1]) ** 2
    for stage, side in enumerate(net.sides()):
        for block, p in enumerate(params[f"stage{stage}"]):
            before = side * net.stride(stage, block)  # a stride stands at the first or the second
            for i, (_, _, stride) in enumerate(net.convolutions(stage, block)):
                before //= stride
                products += p["inner"][i]["kernel"].size * before**2
            if "shortcut" in p:
                products += p["shortcut"]["kernel"].size * side**2
    return size, products


def _row(name: str, before: tuple[int, int], after: tuple[int, int]) -> Row:
    return {"cut by": name, "parameters left": after[0] / before[0], "products left": after[1] / before[1]}


def _by_torch_pruning(net: Net, params: Params) -> Params:
    """The same network in torch, pruned; its arrays as a tree like the parameters."""
    import torch
    from torch import nn

    torch_pruning: Any = importlib.import_module("torch_pruning")

    def conv(p: Params, stride: int) -> Any:
        outputs, inputs, size, _ = p["kernel"].shape
        made = nn.Sequential(
            nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)
        )
        made[0].weight.data = torch.from_numpy(np.array(p["kernel"]))
        return made

    class Block(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self, stage: int, block: int, p: Params) -> None:
            super().__init__()
            strides = [stride for _, _, stride in net.convolutions(stage, block)]
            self.inner = nn.ModuleList([conv(*pair) for pair in zip(p["inner"], strides, strict=True)])
            shortcut = "shortcut" in p
            self.shortcut = conv(p["shortcut"], net.stride(stage, block)) if shortcut else nn.Identity()

        def forward(self, x: Any) -> Any:
            h = x
            for i, each in enumerate(self.inner):
                h = each(torch.relu(h) if i else h)
            return torch.relu(h + self.shortcut(x))

    class ResNet(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv(params["stem"], net.stem[1])
            self.pool = nn.MaxPool2d(3, 2, 1) if net.pool else nn.Identity()
            stages = [
                [Block(s, i, p) for i, p in enumerate(params[f"stage{s}"])] for s in range(len(net.widths))
            ]
            self.stages = nn.ModuleList([nn.Sequential(*stage) for stage in stages])
            self.head = nn.Linear(params["head"].shape[0], net.classes)

        def forward(self, x: Any) -> Any:
            x = self.pool(torch.relu(self.stem(x)))
            for stage in self.stages:
                x = stage(x)
            return self.head(x.mean((2, 3)))

    made = ResNet().eval()
    example = torch.zeros(1, 3, net.image, net.image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        pruner = torch_pruning.pruner.BasePruner(
            made, example, importance=importance, pruning_ratio=_RATIO, ignored_layers=[made.head]
        )
        pruner.step()

    def arrays(module: Any) -> Params:
        return {
            "kernel": module[0].weight.detach().numpy(),
            "scale": module[1].weight.detach().numpy(),
            "bias": module[1].bias.detach().numpy(),
        }

    def block(module: Any) -> Params:
        found: Params = {"inner": [arrays(each) for each in module.inner]}
        return (
            found
            if isinstance(module.shortcut, nn.Identity)
            else found | {"shortcut": arrays(module.shortcut)}
        )

    found: Params = {f"stage{s}": [block(each) for each in stage] for s, stage in enumerate(made.stages)}
    head = {"head": made.head.weight.detach().numpy().T, "bias": made.head.bias.detach().numpy()}
    return found | {"stem": arrays(made.stem)} | head
