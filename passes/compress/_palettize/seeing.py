"""The palettes of weights, which are found before the program is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.graph import Graph
from lepton_jax.numerics.hessian import MatrixLayout
from lepton_jax.numerics.palettes import PaletteScheme, Palettized, decode, palettize
from lepton_jax.passes._weights.iterations import lift_sums, lift_weight, same_in_loops
from lepton_jax.passes._weights.lifting import depth, in_branch
from lepton_jax.passes._weights.uses import WeightUse
from lepton_jax.passes.compress._palettize.layout import Layout
from lepton_jax.rewrite import PassContext, Watch, rewrite
from lepton_jax.rewrite.replacement import write_before

RULE: Final = "palettized-weight"

PALETTE: Final = "weight-palette"
"""Palettes that training learns."""

CENTROIDS: Final = "weight-centroids"
"""Palettes that stay as they are."""

CODES: Final = "weight-codes"
"""The codes that training leaves alone."""

ERROR: Final = "palette-error"
"""An array without elements, as long as the relative error has ten-thousandths. Shapes stay known when arrays
are forgotten."""

UNIT: Final = 1e-4

Found = dict[tuple[str, str], tuple[jax.Array, ...]]
State = dict[str, jax.Array]


@dataclass(frozen=True, eq=False)
class PaletteSeen:
    """A weight, and what is found of it: palettes, codes, and the error.

    Attributes:
        name: of the use.
        scheme: of the weight.
        loops: leading axes of the weight, which run over the loops in which it differs.
        matrix: where inputs were seen, the axes of the weight that they are multiplied with.
        learns: whether training learns the palettes.
    """

    name: str
    scheme: PaletteScheme
    loops: int
    matrix: MatrixLayout | None
    learns: bool

    def merge(self, left: State, right: State) -> State:
        """The state after both; weights do not change from batch to batch."""
        return {name: each if name == "weight" else each + right[name] for name, each in left.items()}

    def check(self, state: State, name: str) -> None:
        """Raise ValueError where a weight is not finite, or inputs are not or were not seen."""
        if not bool(np.isfinite(np.asarray(state["weight"], np.float32)).all()):
            raise ValueError(f"{name} has NaN or infinite elements and has no palette")
        if bad := float(np.sum(np.asarray(state.get("nonfinite", 0.0)))):
            raise ValueError(f"{name}: calibration saw {bad:.0f} inputs with NaN or infinities")
        if not float(np.sum(np.asarray(state.get("rows", 1.0)))):
            raise ValueError(f"{name}: calibration saw no input; give it batches that reach this place")

    def result(self, state: State) -> Found:
        """What the program is written by, over the loops."""
        weight = np.asarray(state["weight"])
        lead, shape = weight.shape[: self.loops], weight.shape[self.loops :]
        count = math.prod(lead)
        layers = weight.reshape(count, *shape)
        found = [palettize(w, self.scheme, self._importance(state, i)) for i, w in enumerate(layers)]
        error = _relative(layers, found, self.scheme)
        both = Palettized(*(_stacked(each, lead) for each in zip(*found, strict=True)))
        result: Found = {(self.name, ERROR): (jnp.asarray(np.zeros((round(error / UNIT), 0), np.float32)),)}
        result[self.name, PALETTE if self.learns else CENTROIDS] = (both.palette,)
        if self.learns:
            result[self.name, CODES] = (both.codes,)
        return result

    def _importance(self, state: Mapping[str, jax.Array], layer: int) -> Any:
        """The mean squares of the inputs of each element of a layer's weight."""
        if self.matrix is None:
            return None
        moments = np.asarray(state["matrix"])
        moments = moments.reshape(-1, *moments.shape[self.loops :])[layer]
        squares = np.diagonal(moments, axis1=-2, axis2=-1)
        shape = state["weight"].shape[self.loops :]
        batch, inputs, outputs = self.matrix.shape(shape)
        whole = np.broadcast_to(squares.reshape(-1, inputs, 1), (batch, inputs, outputs))
        return self.matrix.from_matrix(whole, shape)  # type: ignore[arg-type]


def _relative(layers: Any, found: Sequence[Palettized], scheme: PaletteScheme) -> float:
    """The norm of the error of all layers by that of the weight."""
    made = np.stack([decode(np.asarray(codes), np.asarray(palette), scheme) for codes, palette in found])
    wide = np.asarray(layers, np.float32)
    return float(np.linalg.norm(made - wide) / (np.linalg.norm(wide) or 1.0))


def _stacked(arrays: Sequence[jax.Array], lead: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.stack([np.asarray(each) for each in arrays]).reshape(*lead, *arrays[0].shape))


def watch(use: WeightUse, layout: Layout, learns: bool, graph: Graph, ctx: PassContext) -> str | None:
    """Let calibration see a weight, and its inputs if they are looked at; or why it cannot."""
    region = use.node.graph
    assert region is not None and ctx.watches is not None
    loops = "it is in a cond" if in_branch(region) else depth(region)
    if isinstance(loops, str):
        return loops
    same, matrix = same_in_loops(layout.base, region), None
    values = {"weight": lift_weight(layout.base, region, same)}
    if layout.hessian is not None:
        watcher, matrix = layout.hessian
        seen = write_before(rewrite(_see, use.other, watcher=watcher), use.node, RULE)
        values |= dict(zip(("matrix", "rows", "nonfinite"), lift_sums(seen, region, same), strict=True))
    names = sorted(values)
    graph.set_outputs([*graph.outputs, *(values[name] for name in names)])
    tree = jax.tree.structure(dict.fromkeys(names, 0))
    kind = PALETTE if matrix is None else "palette"
    observer = PaletteSeen(use.name, layout.scheme, loops - sum(same), matrix, learns)
    ctx.watches.append(Watch(use.name, kind, observer, tree, len(names), 0))
    return None


def _see(x: jax.Array, *, watcher: Any) -> tuple[jax.Array, ...]:
    return tuple(watcher.see(x))
