"""How far rounding alone can move a program's results: run it with every operation a little off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir import _jax
from lepton_jax.ir.export import bind
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.ir.regions import RUN_ONCE

_LENGTH: Final = 509
_SAMPLES: Final = 16
_EXACT: Final = frozenset(
    {
        "abs",
        "argmax",
        "argmin",
        "broadcast_in_dim",
        "ceil",
        "clamp",
        "concatenate",
        "copy",
        "cummax",
        "cummin",
        "dynamic_slice",
        "dynamic_update_slice",
        "floor",
        "gather",
        "imag",
        "max",
        "min",
        "neg",
        "optimization_barrier",
        "pad",
        "real",
        "reduce_max",
        "reduce_min",
        "reshape",
        "rev",
        "round",
        "scatter",
        "select_n",
        "sign",
        "slice",
        "sort",
        "split",
        "squeeze",
        "stop_gradient",
        "tile",
        "top_k",
        "transpose",
        "unstack",
    }
)


def samples(jaxpr: Any, args: Sequence[Any]) -> list[list[np.ndarray]]:
    """Results of a closed jaxpr on flat arguments, sixteen times, with every operation off by an ulp or two.

    Each rounded operation, argument and constant is multiplied by one plus or minus two units in the
    last place, at random for each element. What this moves, another order of operations may move too.
    """
    run = jax.jit(_Noisy(from_jaxpr(jaxpr)))
    rng = np.random.default_rng(0)
    found = []
    for _ in range(_SAMPLES):
        signs = rng.choice(np.array([-1, 1], np.float32), _LENGTH)
        found.append([np.asarray(plain(x)) for x in run(jnp.asarray(signs), *args)])
    jax.effects_barrier()
    return found


def plain(array: Any) -> Any:
    """An array, or the data of PRNG keys."""
    return jax.random.key_data(array) if _jax.is_extended(array.dtype) else array


class _Noisy:
    """Evaluates a graph with noise; the first argument holds random signs."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.count = 0
        self.signs: Any = None

    def __call__(self, signs: Any, *args: Any) -> list[Any]:
        self.signs, self.count = signs, 0
        return self.evaluate(self.graph, [self.shake(x) for x in args])

    def shake(self, x: Any) -> Any:
        """`x` with every element off by about two units in the last place."""
        aval = jax.typeof(x)
        if _jax.is_extended(aval.dtype) or not jnp.issubdtype(aval.dtype, jnp.inexact):
            return x
        self.count += 1
        places = (np.arange(int(np.prod(aval.shape))) * 7 + self.count * 31) % _LENGTH
        off = self.signs[places.reshape(aval.shape)] * (2 * float(jnp.finfo(aval.dtype).eps))
        return x * (1 + off).astype(aval.dtype)

    def evaluate(self, graph: Graph, args: Sequence[Any]) -> list[Any]:
        env: dict[Value, Any] = dict(zip(graph.inputs, args, strict=True))

        def read(value: Value) -> Any:
            if not value.is_const:
                return env[value]
            return self.shake(value.const) if value.ndim else value.const

        for node in graph:
            results = self.node(node, [read(value) for value in node.operands])
            env.update(zip(node.results, results, strict=True))
        return [read(value) for value in graph.outputs]

    def node(self, node: Node, operands: list[Any]) -> Sequence[Any]:
        if node.op in RUN_ONCE and node.regions:
            return self.evaluate(node.regions[0], operands)
        loop = {"scan": self.scan, "while": self.loop, "cond": self.cond}.get(node.op)
        if loop is not None and node.regions:
            return loop(node, operands)
        results = bind(node, operands)
        return results if node.op in _EXACT else [self.shake(x) for x in results]

    def scan(self, node: Node, operands: list[Any]) -> Sequence[Any]:
        p = node.params
        consts, carry = p["num_consts"], p["num_carry"]

        def step(state: Any, xs: Any) -> Any:
            out = self.evaluate(node.regions[0], [*operands[:consts], *state, *xs])
            return out[:carry], out[carry:]

        init, xs = operands[consts : consts + carry], operands[consts + carry :]
        state, ys = lax.scan(step, init, xs, length=p["length"], reverse=p["reverse"])
        return [*state, *ys]

    def loop(self, node: Node, operands: list[Any]) -> Sequence[Any]:
        cond, body = node.regions
        nc, nb = node.params["cond_nconsts"], node.params["body_nconsts"]
        for_cond, for_body, init = operands[:nc], operands[nc : nc + nb], operands[nc + nb :]
        return lax.while_loop(
            lambda s: self.evaluate(cond, [*for_cond, *s])[0],
            lambda s: self.evaluate(body, [*for_body, *s]),
            init,
        )

    def cond(self, node: Node, operands: list[Any]) -> Sequence[Any]:
        branches: list[Callable[..., list[Any]]] = [
            lambda *args, region=region: self.evaluate(region, args) for region in node.regions
        ]
        return list(lax.switch(operands[0].astype(jnp.int32), branches, *operands[1:]))


def differs(want: np.ndarray, got: np.ndarray, noisy: Sequence[np.ndarray] | None, strict_odd: bool) -> str:
    """Why two results are not the same but for rounding, or an empty text.

    Args:
        want: of the plain program.
        got: of the optimised one.
        noisy: results of the plain program with noise; None to compare within a few ulps.
        strict_odd: whether nan and infinity must be the same too; else they may become anything.
    """
    if want.shape != got.shape or want.dtype != got.dtype:
        return f"{want.dtype}{list(want.shape)} became {got.dtype}{list(got.shape)}"
    eps = float(jnp.finfo(want.dtype).eps) if jnp.issubdtype(want.dtype, jnp.inexact) else 0.0
    a, b = _real(want), _real(got)
    allowed = 8 * eps * np.abs(a)
    unknown = np.zeros(a.shape, bool)
    if noisy is not None:
        runs = np.stack([a, *map(_real, noisy)])
        unknown = ~np.isfinite(runs).all(0) if np.isfinite(a).all() else _unsteady(runs)
        with np.errstate(invalid="ignore"):
            allowed = allowed + 4 * (runs.max(0) - runs.min(0))
    odd = ~np.isfinite(a)
    with np.errstate(invalid="ignore"):
        off = np.where(odd, _unlike(a, b) & strict_odd, ~(np.abs(a - b) <= allowed))
    bad = off & ~unknown
    if not bad.any():
        return ""
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"{int(bad.sum())} of {bad.size} elements differ; at {list(at)} {a[at]!s} became {b[at]!s}"


def _real(x: np.ndarray) -> np.ndarray:
    """Numbers as float64, complex ones as pairs."""
    if np.issubdtype(x.dtype, np.complexfloating):
        return np.stack([x.real, x.imag], -1).astype(np.float64)
    return x.astype(np.float64)


def _unsteady(runs: np.ndarray) -> np.ndarray:
    """Where runs disagree about what is finite, or about which odd number it is."""
    first = runs[0]
    return np.asarray(
        np.logical_or.reduce([_unlike(first, run) & ~(np.isfinite(first) & np.isfinite(run)) for run in runs])
    )


def _unlike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where numbers differ, nan being like nan."""
    return np.asarray(~((a == b) | (np.isnan(a) & np.isnan(b))))
