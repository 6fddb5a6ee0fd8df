"""A ResNet-56 for CIFAR pruned by Torch-Pruning, where it is installed, and by Lepton, side by side."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lepton_jax as lepton
from benchmarks._common import Row

Params = dict[str, Any]
_RATIO = 0.5


def side_by_side(quick: bool) -> list[Row]:
    """Half of every group's channels gone: parameters and products of the same network, cut by both.

    Products are counted alike, from the shapes that are left: those of convolutions and of the last layer.
    """
    blocks = 1 if quick else 9
    params = parameters(blocks)
    images = jnp.zeros((1, 32, 32, 3))
    small = lepton.structured_prune(resnet, params, images, ratio=_RATIO)
    whole = _counts(params)
    rows = [_row(f"ResNet-{6 * blocks + 2}: Lepton", whole, _counts(small.params))]
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("torch_pruning") is None:
        print("not compared: torch and torch_pruning are not installed here")
        return rows
    return [
        *rows,
        _row(f"ResNet-{6 * blocks + 2}: Torch-Pruning", whole, _counts(_by_torch_pruning(params, blocks))),
    ]


def resnet(params: Params, x: jax.Array) -> jax.Array:
    """A CIFAR ResNet with projections where widths change: images [N, 32, 32, 3] to logits [N, 10]."""
    x = jax.nn.relu(_conv(x, params["stem"], 1))
    for stage in range(3):
        for block, p in enumerate(params[f"stage{stage}"]):
            stride = 2 if stage and block == 0 else 1
            h = _conv(jax.nn.relu(_conv(x, p["first"], stride)), p["second"], 1)
            x = jax.nn.relu(h + (_conv(x, p["shortcut"], stride) if "shortcut" in p else x))
    logits: jax.Array = x.mean((1, 2)) @ params["head"] + params["bias"]
    return logits


def _conv(x: jax.Array, p: Params, stride: int) -> jax.Array:
    """A convolution and the norm of its result, with running statistics."""
    axes = ("NHWC", "OIHW", "NHWC")
    x = lax.conv_general_dilated(x, p["kernel"], (stride, stride), "SAME", dimension_numbers=axes)
    normed: jax.Array = (x - p["mean"]) * lax.rsqrt(p["variance"] + 1e-5) * p["scale"] + p["bias"]
    return normed


def parameters(blocks: int) -> Params:
    """Normal kernels [outputs, inputs, size, size], the norms at their start."""
    rng = np.random.default_rng(0)

    def conv(inputs: int, outputs: int, size: int) -> Params:
        kernel = rng.normal(0, (inputs * size * size) ** -0.5, (outputs, inputs, size, size))
        norm = {"mean": jnp.zeros(outputs), "variance": jnp.ones(outputs)}
        norm |= {"scale": jnp.ones(outputs), "bias": jnp.zeros(outputs)}
        return {"kernel": jnp.asarray(kernel, jnp.float32), **norm}

    def block(inputs: int, outputs: int) -> Params:
        made = {"first": conv(inputs, outputs, 3), "second": conv(outputs, outputs, 3)}
        return made if inputs == outputs else made | {"shortcut": conv(inputs, outputs, 1)}

    found: Params = {"stem": conv(3, 16, 3)}
    inputs = 16
    for stage, width in enumerate((16, 32, 64)):
        found[f"stage{stage}"] = [block(inputs if i == 0 else width, width) for i in range(blocks)]
        inputs = width
    return found | {"head": jnp.asarray(rng.normal(0, 0.1, (64, 10)), jnp.float32), "bias": jnp.zeros(10)}


def _counts(params: Params) -> tuple[int, int]:
    """(parameters without running statistics, multiplications at 32 × 32 pixels)."""
    named = jax.tree_util.tree_leaves_with_path(params)
    kept = [(jax.tree_util.keystr(path), leaf) for path, leaf in named]
    size = sum(leaf.size for name, leaf in kept if "mean" not in name and "variance" not in name)
    products = 0
    for name, leaf in kept:
        stage = int(name[name.index("stage") + 5]) if "stage" in name else 0
        products += leaf.size * (32 >> stage) ** 2 if leaf.ndim == 4 else leaf.size if leaf.ndim == 2 else 0
    return size, products


def _row(name: str, before: tuple[int, int], after: tuple[int, int]) -> Row:
    return {"cut by": name, "parameters left": after[0] / before[0], "products left": after[1] / before[1]}


def _by_torch_pruning(params: Params, blocks: int) -> Params:
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
        def __init__(self, p: Params, stride: int) -> None:
            super().__init__()
            self.first, self.second = conv(p["first"], stride), conv(p["second"], 1)
            self.shortcut = conv(p["shortcut"], stride) if "shortcut" in p else nn.Identity()

        def forward(self, x: Any) -> Any:
            return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))

    class Net(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv(params["stem"], 1)
            stages = [
                [Block(p, 2 if s and i == 0 else 1) for i, p in enumerate(params[f"stage{s}"])]
                for s in range(3)
            ]
            self.stages = nn.ModuleList([nn.Sequential(*stage) for stage in stages])
            self.head = nn.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.stem(x))
            for stage in self.stages:
                x = stage(x)
            return self.head(x.mean((2, 3)))

    net = Net().eval()
    example = torch.zeros(1, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        pruner = torch_pruning.pruner.BasePruner(
            net, example, importance=importance, pruning_ratio=_RATIO, ignored_layers=[net.head]
        )
        pruner.step()

    def arrays(module: Any) -> Params:
        return {
            "kernel": module[0].weight.detach().numpy(),
            "scale": module[1].weight.detach().numpy(),
            "bias": module[1].bias.detach().numpy(),
        }

    def block(module: Any) -> Params:
        names = ("first", "second") + (() if isinstance(module.shortcut, nn.Identity) else ("shortcut",))
        return {name: arrays(getattr(module, name)) for name in names}

    found: Params = {f"stage{s}": [block(each) for each in stage] for s, stage in enumerate(net.stages)}
    head = {"head": net.head.weight.detach().numpy().T, "bias": net.head.bias.detach().numpy()}
    return found | {"stem": arrays(net.stem)} | head
