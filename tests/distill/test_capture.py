"""Values from inside functions, by scope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import lepton_jax as lepton
from lepton_jax.distill import At, capture, scopes

X = jnp.arange(6.0).reshape(2, 3) / 6
LAYERS = jnp.stack([jnp.eye(3), 2 * jnp.eye(3), jnp.ones((3, 3))])


@jax.jit
def block(x: Any) -> Any:
    with jax.named_scope("block"):
        with jax.named_scope("norm"):
            x = x / jnp.sum(jnp.square(x))
        return jax.nn.relu(x - 0.1)


def network(layers: Any, x: Any, scaled: bool = False) -> dict[str, Any]:
    with jax.named_scope("first"):
        x = block(x)
    with jax.named_scope("second"):
        x = block(jnp.sin(x))
    with jax.named_scope("stack"):

        def step(x: Any, w: Any) -> tuple[Any, Any]:
            with jax.named_scope("layer"):
                x = jnp.tanh(x @ w)
            return x, jnp.sum(x)

        x, _ = jax.lax.scan(step, x, layers)

    @jax.checkpoint
    def again(x: Any) -> Any:
        return jnp.cos(checkpoint_name(x * 3, "tripled"))

    with jax.named_scope("last"):
        x = again(x)
    with jax.named_scope("batched"):
        x = jax.vmap(lambda row: named(row, "row"))(x)
    return {"x": x * 2 if scaled else x}


def named(x: Any, name: str) -> Any:
    with jax.named_scope(name):
        return jnp.exp(x)


PLACES = (
    "first",
    "second",
    "first/block/norm",
    At("second/block", op="div"),
    "layer",
    At("layer", layer=1),
    At("stack", op="dot_general"),
    At("stack", index=-1),
    "tripled",
    "last",
    "row",
)


def by_hand(layers: Any, x: Any) -> list[Any]:
    first = jax.nn.relu(x / jnp.sum(x**2) - 0.1)
    s = jnp.sin(first)
    second = jax.nn.relu(s / jnp.sum(s**2) - 0.1)
    products, states = [], [second]
    for w in layers:
        products.append(states[-1] @ w)
        states.append(jnp.tanh(products[-1]))
    stacked, end = jnp.stack(states[1:]), states[-1]
    norms = x / jnp.sum(x**2), s / jnp.sum(s**2)
    cos = jnp.cos(3 * end)
    return [first, second, *norms, stacked, stacked[1], jnp.stack(products), end, 3 * end, cos, jnp.exp(cos)]


def test_values_and_their_derivatives_are_those_computed_by_hand() -> None:
    run = capture(network, PLACES)

    def all_of(values: Any) -> Any:
        return sum(jnp.sum(jnp.sin(i + value)) for i, value in enumerate(values))

    @jax.jit
    def both(layers: Any, x: Any) -> Any:
        result, values = run(layers, x, scaled=True)
        slopes = [jax.grad(lambda w, f=f: all_of(f(w, x)))(layers) for f in (lambda *a: run(*a)[1], by_hand)]
        return result["x"], network(layers, x, scaled=True)["x"], values, by_hand(layers, x), slopes

    result, plain, values, wanted, slopes = both(LAYERS, X)
    np.testing.assert_allclose(result, plain, rtol=1e-6)
    for place, value, hand in zip(PLACES, values, wanted, strict=True):
        np.testing.assert_allclose(value, hand, rtol=1e-5, atol=1e-6, err_msg=str(place))
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-4, atol=1e-5)
    batched = jax.vmap(lambda x: capture(network, ["first"])(LAYERS, x)[1][0])(jnp.stack([X, X + 1]))
    np.testing.assert_allclose(batched[0], wanted[0], rtol=1e-6)


def test_scopes_are_listed() -> None:
    found = scopes(network, LAYERS, X)
    assert found[:3] == ["first", "first/block", "first/block/norm"]
    assert {"second/block", "stack/layer", "last/tripled", "batched/row"} <= set(found)


def test_linen_modules_are_scopes() -> None:
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(2)(linen.relu(linen.Dense(4, name="up")(x)))

    net = Net()
    variables = net.init(jax.random.key(0), X)
    _, (up, end) = capture(net.apply, ["up", "Net"])(variables, X)
    np.testing.assert_allclose(up, X @ variables["params"]["up"]["kernel"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(end, np.asarray(net.apply(variables, X)), rtol=1e-5)


def branching(x: Any) -> Any:
    with jax.named_scope("branch"):
        x = jax.lax.cond(x[0, 0] > 0, lambda x: named(x, "taken"), lambda x: x, x)
    return jax.lax.while_loop(lambda x: x[0, 0] < 3, lambda x: named(x, "turn") + 1, x)


def counting(x: Any) -> Any:
    with jax.named_scope("count"):
        found = jnp.argmax(x)
    return x * found


@pytest.mark.parametrize(
    ("fun", "place", "message"),
    [
        (network, "secnd", "no scope 'secnd'; near it are second"),
        (network, "zzzz", "there are first, first/block"),
        (network, "block", "several scopes: first/block, second/block"),
        (network, "", "a scope has a name"),
        (network, At("first", op="dot_general"), "the scope first has no dot_general of floats; it has"),
        (network, At("first", index=3), "index is 3"),
        (network, At("first", layer=0), "stands in no scan"),
        (lambda layers, x: x, "first", "the function has none; give it some with jax.named_scope"),
        (lambda layers, x: branching(x), "taken", "computed in a cond"),
        (lambda layers, x: branching(x), "turn", "computed in a while"),
        (lambda layers, x: counting(x), "count", "0 such values of floats"),
    ],
)
def test_what_is_refused(fun: Callable[..., Any], place: Any, message: str) -> None:
    with pytest.raises(lepton.UsageError, match=message):
        jax.eval_shape(capture(fun, [place]), LAYERS, X)
