"""Running a part of a program on a few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._losses.cuts import params_at
from lepton_jax.passes.fuse._losses.region import Region

_NARROW: Final = frozenset({jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)})


@dataclass(eq=False)
class Tiling:
    """A region and how many of its parts run at a time.

    Attributes:
        region: what runs.
        rows: so many of its parts at a time; what is left over runs at the end.
        recompute: whether differentiation computes the logits anew instead of keeping them.
    """

    region: Region
    rows: int
    recompute: bool

    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        region = self.region
        self.nodes = region.ordered()
        outer = [
            (v, at is not None)
            for node in self.nodes
            for v, at in zip(node.operands, region.cuts(node, region.nodes[node]) or (), strict=True)
            if v.node not in region.nodes and not (v.is_const and v.ndim == 0)
        ]
        self.scanned = list(dict.fromkeys(v for v, is_cut in outer if is_cut))
        self.fixed = list(dict.fromkeys(v for v, is_cut in outer if not is_cut))
        outputs = region.outputs()
        self.kept = [v for v in outputs if v in region.cut]
        self.sums = [v for v in outputs if v not in region.cut]

    @property
    def values(self) -> list[Value]:
        """What `run` takes."""
        return self.scanned + self.fixed

    @property
    def results(self) -> list[Value]:
        """What `run` makes."""
        return self.kept + self.sums

    def length(self, value: Value, rows: int) -> int:
        """How long a value's cut dimension is for so many rows."""
        return rows * (int(value.shape[self.region.cut[value]]) // self.region.parts)

    def piece(self, scanned: list[Any], fixed: list[Any], rows: int) -> tuple[list[Any], list[Any]]:
        """What is kept of some rows, and their sums, narrow ones in float32."""
        made: dict[Value, Any] = {}
        cut = dict(zip(self.scanned, scanned, strict=True))
        whole = dict(zip(self.fixed, fixed, strict=True))
        for node in self.nodes:
            d = self.region.nodes[node]
            cuts = self.region.cuts(node, d) or []
            args = [
                made[v]
                if v in made
                else v.const
                if v.is_const and v.ndim == 0
                else (whole if at is None else cut)[v]
                for v, at in zip(node.operands, cuts, strict=True)
            ]
            made[node.result] = _summed(node, args) if d is None else self.bind(node, args, d, rows)
        return [made[v] for v in self.kept], [made[v] for v in self.sums]

    def bind(self, node: Node, args: list[Any], d: int, rows: int) -> Any:
        """Run a node for so many rows."""
        params = params_at(node, d, self.length(node.result, rows))
        return node.primitive.bind(*args, **node.primitive.get_bind_params(params))


def run(*arrays: Any, tiling: Tiling) -> list[Any]:
    """The results of a region, computed a few rows at a time in a scan."""
    scanned, fixed = list(arrays[: len(tiling.scanned)]), list(arrays[len(tiling.scanned) :])
    policy = None if tiling.recompute else jax.checkpoint_policies.everything_saveable

    def piece(scanned: list[Any], fixed: list[Any], rows: int) -> tuple[list[Any], list[Any]]:
        def fun(scanned: list[Any], fixed: list[Any]) -> tuple[list[Any], list[Any]]:
            return tiling.piece(scanned, fixed, rows)

        out: tuple[list[Any], list[Any]] = jax.checkpoint(fun, policy=policy, prevent_cse=False)(
            scanned, fixed
        )
        return out

    def step(sums: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
        kept, more = piece(slices, fixed, tiling.rows)
        return [lax.add(a, b) for a, b in zip(sums, more, strict=True)], kept

    dims = [tiling.region.cut[v] for v in tiling.scanned]
    count, left = divmod(tiling.region.parts, tiling.rows)
    whole = [tiling.length(v, count * tiling.rows) for v in tiling.scanned]
    zeros = [lax.full(v.shape, 0, _wide(v.dtype)) for v in tiling.sums]
    parts = zip(scanned, whole, dims, strict=True)
    sums, stacked = lax.scan(step, zeros, [_split(x, n, d, count) for x, n, d in parts])
    kept = [_joined(x, tiling.region.cut[v]) for x, v in zip(stacked, tiling.kept, strict=True)]
    if left:
        parts = zip(scanned, whole, dims, strict=True)
        last, more = piece([lax.slice_in_dim(x, n, None, axis=d) for x, n, d in parts], fixed, left)
        ends = zip(kept, last, tiling.kept, strict=True)
        kept = [lax.concatenate([x, y], tiling.region.cut[v]) for x, y, v in ends]
        sums = [lax.add(a, b) for a, b in zip(sums, more, strict=True)]
    return kept + [lax.convert_element_type(x, v.dtype) for x, v in zip(sums, tiling.sums, strict=True)]


def _wide(dtype: Any) -> Any:
    """What sums over the rows are kept in between tiles."""
    return jnp.float32 if dtype in _NARROW else dtype


def _summed(node: Node, args: list[Any]) -> Any:
    """A sum over rows; of narrow floating numbers in float32, as it is to be added to others."""
    wide = _wide(node.result.dtype)
    params = dict(node.params)
    if wide != node.result.dtype:
        if node.op == "dot_general":
            params["preferred_element_type"] = wide
        else:
            args = [lax.convert_element_type(x, wide) for x in args]
    return node.primitive.bind(*args, **node.primitive.get_bind_params(params))


def _split(x: Any, whole: int, d: int, count: int) -> Any:
    """The first `whole` elements along a dimension in so many parts, the parts first."""
    x = x if x.shape[d] == whole else lax.slice_in_dim(x, 0, whole, axis=d)
    x = lax.reshape(x, (*x.shape[:d], count, whole // count, *x.shape[d + 1 :]))
    return x if d == 0 else jnp.moveaxis(x, d, 0)


def _joined(x: Any, d: int) -> Any:
    """Stacked parts put one after another along a dimension."""
    x = x if d == 0 else jnp.moveaxis(x, 0, d)
    return lax.reshape(x, (*x.shape[:d], x.shape[d] * x.shape[d + 1], *x.shape[d + 2 :]))
