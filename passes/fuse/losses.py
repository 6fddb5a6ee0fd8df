"""Softmax losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.ir.graph import Graph
from lepton_jax.passes.fuse._losses import exponentials, logs, picks
from lepton_jax.passes.fuse._losses.tile import tile_logits
from lepton_jax.rewrite import Level, Pass, PassContext, Rule, run_rules

_TILE: Final = {"cpu": 16.0}
_USUAL_TILE: Final = 256.0
_MANY: Final = 4
"""Logits are tiled from so many tiles on."""

RULES: Final[tuple[Rule, ...]] = (*logs.RULES, *exponentials.RULES, *picks.RULES)


@dataclass(frozen=True)
class Losses(Pass):
    """Cross-entropy without an array of log-probabilities, and without whole logits where they are large.

    Before:
        %3 = dot_general %h %W;  %12 = log_softmax(%3);  %13 = gather %12 %labels
    After, for small logits:
        %3 = dot_general %h %W;  %12 = sub (gather %3 %labels) (log(sum(exp(…))))
    and for large ones:
        %12 = scan over tiles of %h, %labels { x = h @ W; x[label] - log(sum(exp(x))) }

    - `log-of-softmax`, `exp-of-log-softmax`, `pick-of-arithmetic`, and `pick-by-row-number` with
      `add-by-row-number`, which write indices so that the others know them;
    - `sum-of-labels`: in gradients, the sum over a row of what its label was given, without all classes;
    - `tiled-logits`: all that is done to the rows of a large product with a softmax in it, a tile of rows at
      a time. If the gradient is in the program too, each tile computes its part of it at once. If the program
      is differentiated later, the tiles keep what JAX needs, or compute it anew from `recompute` on.
      `flat-rows` prepares for it.

    With `stable`, also `log-of-sum-of-exp`, `log-of-logistic`, `log-of-one-minus-logistic` and
    `softplus-written-out`, which take more time on a CPU and are there for numbers that overflow.

    Level `reassociate`, but for moves of indices, which are `exact`.

    Attributes:
        level: a tighter limit than the run's on the semantics level.
        tile: MiB of logits at a time (default: 16 on a CPU, otherwise 256).
        least: MiB of logits from which on they are tiled (default: four tiles). More than two tiles.
        recompute: MiB of logits from which on differentiation computes them anew: one product
            more, for a memory that does not grow with the number of rows.
        stable: whether logarithms of sums of exponentials are written so that they do not overflow.

    Raises:
        ValueError: `tile` is not positive, or `least` not at least two tiles.
    """

    name: ClassVar[str] = "losses"

    level: Level | None = None
    tile: float | None = None
    least: float | None = None
    recompute: float = 1024.0
    stable: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile is not None and self.tile <= 0:
            raise ValueError(f"a tile of {self.tile} MiB holds nothing")
        if self.least is not None and self.tile is not None and self.least < 2 * self.tile:
            raise ValueError(f"logits of {self.least} MiB are less than two tiles of {self.tile} MiB")

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """The rules first: they leave fewer large arrays to tile."""
        rules = (*RULES, *logs.STABLE) if self.stable else RULES
        run_rules(graph, rules, ctx, level=self.level, since=ctx.settled.get(self, 0))
        if not ctx.allows("reassociate", self.level):
            return
        tile = _TILE.get(ctx.rates.platform, _USUAL_TILE) if self.tile is None else self.tile
        least = _MANY * tile if self.least is None else self.least
        for inner in graph.graphs():
            tile_logits(inner, ctx, *(int(size * 2**20) for size in (tile, least, self.recompute)))
