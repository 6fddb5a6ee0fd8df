"""The demo's data: scikit-learn's handwritten digits and a text file of this package."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

INSTALL_HINT = "lepton demo needs scikit-learn for its digits: pip install 'lepton-jax[demo]'"


@dataclass(frozen=True)
class Digits:
    """Images are float32 [count, 8, 8, 1] in [0, 1]; labels are int32 [count] in 0..9."""

    train_images: Floats
    train_labels: Ints
    test_images: Floats
    test_labels: Ints


@dataclass(frozen=True)
class Text:
    """Characters as tokens: `train` and `test` are int32 [length], indices into `alphabet`."""

    alphabet: str
    train: Ints
    test: Ints


def load_digits(test_fraction: float = 0.2, seed: int = 0) -> Digits:
    """Reads and shuffles the 1,797 digits that scikit-learn ships, and splits them.

    Raises:
        ModuleNotFoundError: naming the extra to install, if scikit-learn is missing.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ModuleNotFoundError(INSTALL_HINT) from error
    raw = datasets.load_digits()
    images = np.asarray(raw.images / 16.0, np.float32)[..., None]
    labels = np.asarray(raw.target, np.int32)
    order = np.random.default_rng(seed).permutation(len(labels))
    test, train = np.split(order, [int(test_fraction * len(order))])
    return Digits(images[train], labels[train], images[test], labels[test])


def load_text(test_fraction: float = 0.1) -> Text:
    """Reads the package's excerpt of Shakespeare; the last `test_fraction` of it is the test text."""
    text = (resources.files("lepton_jax") / "data" / "shakespeare.txt").read_text(encoding="ascii")
    alphabet = "".join(sorted(set(text)))
    index = {character: position for position, character in enumerate(alphabet)}
    tokens = np.asarray([index[character] for character in text], np.int32)
    split = len(tokens) - int(test_fraction * len(tokens))
    return Text(alphabet, tokens[:split], tokens[split:])


def digit_batches(digits: Digits, size: int, seed: int = 0) -> Iterator[tuple[Floats, Ints]]:
    """Endless random training batches: images [size, 8, 8, 1] and labels [size]."""
    random = np.random.default_rng(seed)
    while True:
        rows = random.integers(len(digits.train_labels), size=size)
        yield digits.train_images[rows], digits.train_labels[rows]


def text_batches(tokens: Ints, size: int, context: int, seed: int = 0) -> Iterator[tuple[Ints, Ints]]:
    """Endless random windows: tokens [size, context] and the tokens that follow each, the same shape."""
    random = np.random.default_rng(seed)
    while True:
        starts = random.integers(len(tokens) - context, size=(size, 1))
        windows = tokens[starts + np.arange(context + 1)]
        yield windows[:, :-1], windows[:, 1:]
