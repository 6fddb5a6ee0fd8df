"""Deep Compression on MNIST, the whole chain: pruned, palettes, trained centroids, coded, in a file.

LeNet-300-100 and LeNet-5 (Han et al., arXiv:1510.00149) are trained in float32 on the 60,000 images. The
smallest weights go while training goes on, by a schedule; those that stay share a palette for each weight,
whose entries are trained; `model.save` codes what is left. While they are compressed, nets learn from images
shifted by a pixel at most, which the float net has not seen: it would gain by them too. The file, with its
program, is read in another process, which scores the 10,000 test images again.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import lepton_jax as lepton
from benchmarks._common import Row, data, nbytes
from lepton_jax.numerics.sparsity_schedules import polynomial

Params = dict[str, dict[str, jax.Array]]
Net = Callable[[Params, jax.Array], jax.Array]

BATCH: Final = 128
EVERY: Final = 50
"""Steps from mask to mask."""

SCORED: Final = 1000

SHIFT: Final = 1
"""Images are shifted by so many pixels at most while a net is compressed."""

_ROOT: Final = Path(__file__).resolve().parents[2]
_NAME: Final = "benchmarks.compress_cases.deep_compression"


def lenet_300_100(params: Params, x: jax.Array) -> jax.Array:
    """Images [N, 28, 28, 1] to logits [N, 10], by three dense layers."""
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.relu(_dense(params["dense1"], x))
    x = jax.nn.relu(_dense(params["dense2"], x))
    return _dense(params["dense3"], x)


def lenet_5(params: Params, x: jax.Array) -> jax.Array:
    """Images [N, 28, 28, 1] to logits [N, 10], by two convolutions and two dense layers, as in Caffe."""
    x = _pool(_conv(params["conv1"], x))
    x = _pool(_conv(params["conv2"], x))
    x = jax.nn.relu(_dense(params["dense1"], x.reshape(x.shape[0], -1)))
    return _dense(params["dense2"], x)


def _dense(layer: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]


def _conv(layer: Mapping[str, jax.Array], x: jax.Array) -> Any:
    axes = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, layer["w"], (1, 1), "VALID", dimension_numbers=axes) + layer["b"]


def _pool(x: jax.Array) -> jax.Array:
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


@dataclass(frozen=True)
class Recipe:
    """A net, and how it is compressed.

    Attributes:
        net: of parameters and images.
        shapes: of its weights.
        sparsity: the share of weights that goes.
        bits: of a code.
        epochs: in floats, with fewer and fewer weights, and of centroids.
    """

    net: Net
    shapes: Mapping[str, tuple[int, ...]]
    sparsity: float
    bits: int
    epochs: tuple[int, int, int]


RECIPES: Final = {
    "LeNet-300-100": Recipe(
        lenet_300_100,
        {"dense1": (784, 300), "dense2": (300, 100), "dense3": (100, 10)},
        sparsity=0.96,
        bits=3,
        epochs=(20, 20, 3),
    ),
    "LeNet-5": Recipe(
        lenet_5,
        {"conv1": (5, 5, 1, 20), "conv2": (5, 5, 20, 50), "dense1": (800, 500), "dense2": (500, 10)},
        sparsity=0.95,
        bits=3,
        epochs=(7, 9, 1),
    ),
}


@dataclass(frozen=True)
class Images:
    """MNIST: uint8 [N, 28, 28] and labels [N].

    Attributes:
        x: training images.
        y: their labels.
        x_test: test images.
        y_test: their labels.
    """

    x: Any
    y: Any
    x_test: Any
    y_test: Any

    @classmethod
    def read(cls, file: Path, quick: bool = False) -> Images:
        """All images, or a part of them."""
        with np.load(file) as found:
            count = 512 if quick else None
            names = ("x_train", "y_train", "x_test", "y_test")
            return cls(*(found[name][:count] for name in names))

    def batches(self, epochs: int, seed: int, shift: int) -> Iterator[tuple[Any, Any]]:
        """Images [BATCH, 28, 28, 1] in 0 to 1, each batch shifted by so many pixels at most, and labels."""
        draw = np.random.default_rng(seed)
        for _ in range(epochs):
            order = draw.permutation(len(self.x))
            for at in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
                by = tuple(draw.integers(-shift, shift + 1, 2))
                yield _scaled(np.roll(self.x[at], by, (1, 2))), self.y[at].astype(np.int32)

    def steps(self, epochs: int) -> int:
        """Batches of so many epochs."""
        return epochs * (len(self.x) // BATCH)

    def error(self, model: Callable[[Any], Any]) -> float:
        """Percent of the test images that are not classified right."""
        starts = range(0, len(self.x_test), SCORED)
        found = [np.argmax(model(_scaled(self.x_test[i : i + SCORED])), -1) for i in starts]
        return 100 * float(np.mean(np.concatenate(found) != self.y_test))


def _scaled(images: Any) -> Any:
    return images[..., None].astype(np.float32) / 255


def measure(quick: bool) -> list[Row]:
    """Both nets: errors in floats and compressed, bytes of the file, and how many times smaller it is."""
    files = data("mnist.npz")
    if files is None:
        return []
    images = Images.read(files[0], quick)
    nets = list(RECIPES.items())[: 1 if quick else None]
    return [compress(name, recipe, images, files[0], quick) for name, recipe in nets]


def compress(name: str, recipe: Recipe, images: Images, file: Path, quick: bool) -> Row:
    """The whole chain for one net."""
    start = time.perf_counter()
    epochs = (1, 1, 1) if quick else recipe.epochs
    floats = in_floats(recipe, images, epochs[0])
    plain = jax.jit(recipe.net)
    before = images.error(functools.partial(plain, floats))
    pruned, sparsity = prune(recipe, floats, images, epochs[1])
    model = with_palettes(recipe, pruned, images, epochs[2])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.lepton"
        (count,) = jax.export.symbolic_shape("n")
        model.save(path, jax.ShapeDtypeStruct((count, 28, 28, 1), jnp.float32))
        size = path.stat().st_size
        after = _scored_elsewhere(path, file)
    return {
        "net": name,
        "error, float %": before,
        "error, pruned %": images.error(functools.partial(plain, pruned)),
        "error, from the file %": after,
        "weights gone %": 100 * sparsity,
        "bits": recipe.bits,
        "float32 bytes": nbytes(floats),
        "bytes of the file": size,
        "times smaller": nbytes(floats) / size,
        "seconds": time.perf_counter() - start,
    }


def in_floats(recipe: Recipe, images: Images, epochs: int) -> Params:
    """A net trained from the start."""
    keys = jax.random.split(jax.random.key(0), len(recipe.shapes))
    draw = jax.nn.initializers.he_normal()
    params = {
        name: {"w": draw(key, shape), "b": jnp.zeros(shape[-1])}
        for key, (name, shape) in zip(keys, recipe.shapes.items(), strict=True)
    }

    rate = optax.cosine_decay_schedule(1e-3, images.steps(epochs))
    batches = images.batches(epochs, 0, shift=0)
    found: Params = train(loss_of(recipe.net), params, optax.adamw(rate, weight_decay=0.1), batches)[0]
    return found


def prune(recipe: Recipe, floats: Params, images: Images, epochs: int) -> tuple[Params, float]:
    """The net with most of its weights gone, and the share that is."""
    steps = images.steps(epochs)
    rate = optax.cosine_decay_schedule(1e-3, steps)
    schedule = polynomial(recipe.sparsity, 0, max(steps * 6 // 10, 1))
    tx = lepton.sparsify(optax.adam(rate), schedule, every=max(min(EVERY, steps // 4), 1), scope="global")
    batches = images.batches(epochs, 1, shift=SHIFT)
    params, state = train(loss_of(recipe.net), floats, tx, batches)
    return params, lepton.sparsity_of(state)["total"]


def with_palettes(recipe: Recipe, pruned: Params, images: Images, epochs: int) -> Any:
    """The model, its weights in palettes whose entries were trained."""
    x, y = next(images.batches(1, 2, shift=SHIFT))
    passes = f"deploy,palettize{{bits={recipe.bits},lookup=load,train=centroids}}"
    function = lepton.trainable(loss_of(recipe.net), pruned, x, y, passes=passes)
    rate = optax.cosine_decay_schedule(3e-4, images.steps(epochs))
    batches = images.batches(epochs, 2, shift=SHIFT)
    trained, _ = train(function, function.params, optax.adam(rate), batches)
    return function.compile(trained, _scaled(images.x_test[:SCORED]), fun=_named(recipe.net))


def _named(net: Net) -> Net:
    """The net, its parameters called as those of the loss that was trained."""

    def logits(params: Params, x: jax.Array) -> jax.Array:
        return net(params, x)

    return logits


def loss_of(net: Net) -> Callable[[Params, Any, Any], Any]:
    """The cross-entropy of a net's outputs and labels."""

    def loss(params: Params, x: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(net(params, x), y).mean()

    return loss


def train(loss: Any, params: Any, tx: Any, images: Iterator[tuple[Any, Any]]) -> tuple[Any, Any]:
    """What was trained, and the optimiser's state."""

    @jax.jit
    def step(params: Any, state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for x, y in images:
        params, state = step(params, state, x, y)
    return params, state


def _scored_elsewhere(path: Path, file: Path) -> float:
    """The error of a model in a file, in a new process."""
    command = [sys.executable, "-m", _NAME, str(path), str(file)]
    done = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout)


if __name__ == "__main__":
    print(Images.read(Path(sys.argv[2])).error(lepton.load(sys.argv[1])))
