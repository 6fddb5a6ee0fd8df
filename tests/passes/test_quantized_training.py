"""Products on codes, forwards and backwards: what they are, and that networks train with them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import lepton_jax as lepton
from tests.passes._quantize import floats, sqnr

X, Y = floats(64, 16), jnp.sin(floats(64, 4))
START = {"a": floats(16, 64, scale=0.25), "b": floats(64, 4, scale=0.12)}
TX = optax.adam(1e-2)


def loss(params: Any, x: Any, y: Any) -> Any:
    with jax.named_scope("body"):
        h = jnp.tanh(x @ params["a"])
    return jnp.mean((h @ params["b"] - y) ** 2)


def step(carry: Any, fun: Any = loss) -> Any:
    """One step of Adam, and the loss before it."""
    params, state = carry
    value, slopes = jax.value_and_grad(fun)(params, X, Y)
    updates, state = TX.update(slopes, state, params)
    return (optax.apply_updates(params, updates), state), value


def train(one: Any) -> Any:
    """The losses of 60 steps."""
    return jax.jit(lambda p: lax.scan(lambda c, _: one(c), (p, TX.init(p)), length=60)[1])(START)


@functools.cache
def in_floats() -> Any:
    """The losses of 60 steps in floats."""
    return train(step)


OPTIONS = {
    "": {("float8_e4m3fn", "float8_e4m3fn"): 2, ("float8_e4m3fn", "float8_e5m2"): 3},
    "forward=int8,backward=int8": {("int8", "int8"): 5},
}


@pytest.mark.parametrize(("options", "kinds"), OPTIONS.items())
def test_a_network_trains_as_in_floats(options: str, kinds: dict[tuple[str, ...], int]) -> None:
    """Whether the loss is rewritten or the step that holds its gradients, losses are the same."""
    passes = "default,quantized-training" + (f"{{{options}}}" if options else "")
    inner = lepton.optimize(loss, passes, strict=True)
    outer = lepton.optimize(step, passes, strict=True)
    exact, outside, inside = in_floats(), train(lambda carry: step(carry, inner)), train(outer)
    np.testing.assert_allclose(outside, inside, rtol=1e-3)
    assert exact[-1] < 0.2 * exact[0]
    np.testing.assert_allclose(outside, exact, atol=0.05 * float(exact[0]))
    graph = outer.trace((START, TX.init(START))).graph
    found: dict[tuple[str, ...], int] = {}
    for node in graph.walk():
        if node.op == "dot_general" and "float32" not in {str(v.dtype) for v in node.operands}:
            formats = tuple(sorted(str(v.dtype) for v in node.operands))
            found[formats] = found.get(formats, 0) + 1
    assert found == kinds
    assert outer.report.notes[0].startswith("quantized-training: 5 of 5 products run on codes")


def test_gradients_of_every_form_of_product() -> None:
    """Batched, transposed, several contracted axes; in loops; under vmap; in bfloat16."""
    operands = {
        "btk,kn->btn": (floats(2, 5, 6), floats(6, 7)),
        "kn,btk->nbt": (floats(6, 7), floats(2, 5, 6)),
        "gkn,bgk->gbn": (floats(3, 6, 7), floats(4, 3, 6)),
        "bkij,jkn->bin": (floats(4, 3, 5, 2), floats(2, 3, 7)),
        "abc,dcba->d": (floats(2, 3, 4), floats(5, 4, 3, 2)),
    }

    def every(pairs: Any) -> Any:
        found = {form: jnp.einsum(form, *pair) for form, pair in pairs.items()}
        w = pairs["gkn,bgk->gbn"][0][:, :, :6]
        found["scan"] = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), pairs["btk,kn->btn"][0], w)[0]
        found["vmap"] = jax.vmap(jnp.matmul)(*(x[:2, :5, :5] for x in (w, w)))
        half = [x.astype(jnp.bfloat16) for x in pairs["btk,kn->btn"]]
        found["half"] = (half[0] @ half[1]).astype(jnp.float32)
        return found

    def slopes(fun: Any) -> Any:
        def total(pairs: Any) -> Any:
            return sum((y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum() for y in fun(pairs).values())

        return jax.jit(lambda pairs: (fun(pairs), jax.grad(total)(pairs)))(operands)

    passes = "inline,quantized-training{forward=int8,backward=int8}"
    rounded = lepton.optimize(every, passes, strict=True)
    for a, b in zip(jax.tree.leaves(slopes(every)), jax.tree.leaves(slopes(rounded)), strict=True):
        assert a.dtype == b.dtype
        assert sqnr(a, b) > 20, a.shape


def test_selectors_and_wrong_use() -> None:
    def products(options: str) -> int:
        f = lepton.optimize(loss, f"inline,quantized-training{{{options}}}", strict=True)
        graph = f.trace(START, X, Y).graph
        return sum(
            n.op == "dot_general" and str(n.operands[0].dtype) == "float8_e4m3fn" for n in graph.walk()
        )

    assert [products(o) for o in ("scope=body", "skip=body", "least=1000", "least=5000")] == [1, 1, 1, 0]
    with pytest.raises(lepton.UsageError, match="matches the scope of no product"):
        products("scope=head")
    with pytest.raises(ValueError, match="cannot be multiplied"):
        products("forward=nf4")
    with pytest.raises(TypeError, match="forward-mode"):
        f = lepton.optimize(loss, "inline,quantized-training", strict=True)
        jax.jvp(lambda p: f(p, X, Y), (START,), (START,))
