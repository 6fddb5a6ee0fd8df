"""A model with its weights, its input and what float32 gives: what processes hand to each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Problem:
    """A model to quantise.

    Attributes:
        name: the row's name.
        model: which model it is: `perceptron`, `encoder`, `decoder` or `resnet18`.
        params: its weights by path, float32, as the JAX function takes them.
        inputs: the arrays after the parameters, which calibration sees too.
        expected: what `jax.jit` of the function gives in float32.
        config: whatever else the model is made with.
    """

    name: str
    model: str
    params: dict[str, Array]
    inputs: list[Array]
    expected: list[Array]
    config: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the problem into files of a folder."""
        arrays = {f"params:{path}": array for path, array in self.params.items()}
        for kind, several in (("inputs", self.inputs), ("expected", self.expected)):
            arrays |= {f"{kind}:{place}": array for place, array in enumerate(several)}
        np.savez(folder / "problem.npz", **arrays)  # type: ignore[arg-type]
        facts = {"name": self.name, "model": self.model, "config": self.config}
        (folder / "problem.json").write_text(json.dumps(facts), encoding="utf-8")


def read(folder: Path) -> Problem:
    """The problem that `Problem.save` has written."""
    facts = json.loads((folder / "problem.json").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Array]] = {"params": {}, "inputs": {}, "expected": {}}
    with np.load(folder / "problem.npz") as arrays:
        for key in arrays.files:
            kind, _, path = key.partition(":")
            found[kind][path] = arrays[key]
    inputs, expected = list(found["inputs"].values()), list(found["expected"].values())
    return Problem(facts["name"], facts["model"], found["params"], inputs, expected, facts["config"])


def layers(problem: Problem) -> list[str]:
    """The paths of a transformer's layers."""
    numbers = {int(path.split("/")[1]) for path in problem.params if path.startswith("layers/")}
    return [f"layers/{number}" for number in sorted(numbers)]


def steps_cache(problem: Problem) -> tuple[Array, list[Array]]:
    """A decoder's token [batch], and for each layer keys [..., size, tokens] and values [..., tokens, size].

    They are those of the tokens before this one, which is the last that the cache has room for. The peers
    only read them: what they would take to put the new ones into the cache is not counted.
    """
    token, _, *caches = problem.inputs
    keys = [np.ascontiguousarray(np.swapaxes(each[:, :, :-1], 2, 3)) for each in caches[::2]]
    values = [np.ascontiguousarray(each[:, :, :-1]) for each in caches[1::2]]
    return token, [each for pair in zip(keys, values, strict=True) for each in pair]


Run = Callable[[], Any]


@dataclass(frozen=True)
class Variant:
    """One way in which a tool runs a problem.

    Attributes:
        name: of the variant: what is done to the model.
        build: makes the model ready and gives what runs it once and waits for the results.
        numbers: the results of a run as arrays, in the order and the layout of `Problem.expected`.
        is_float: whether the results must be those of float32.
    """

    name: str
    build: Callable[[], Run]
    numbers: Callable[[Any], Sequence[Array]]
    is_float: bool = False


def error(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """The norm of the difference as a part of that of the result, over all arrays together.

    Raises:
        ValueError: if an array has another shape than the one expected.
    """
    wrong = right = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"a result of {other.shape} where {one.shape} is expected")
        wrong += float(np.sum(np.square(other.astype(np.float64) - one)))
        right += float(np.sum(np.square(one.astype(np.float64))))
    return float((wrong / right) ** 0.5)
