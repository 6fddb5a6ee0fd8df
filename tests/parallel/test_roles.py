"""What the inputs of programs are found to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from lepton_jax.ir import trace
from lepton_jax.ir.cutting import inline_calls
from lepton_jax.ir.paths import leaf_paths
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.roles import Roles, roles_of

PARAMS = {"a": jnp.ones((8, 16)), "b": jnp.ones((16, 4)), "c": jnp.ones(16)}
X = jnp.ones((6, 8))


def loss(params: Any, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.tanh(x @ params["a"] + params["c"]) @ params["b"])


def found(fun: Callable[..., Any], *names: str, args: tuple[Any, ...], **kwargs: Any) -> Roles:
    """The roles of a call whose arguments have these names; without names, of one that has no paths."""
    graph = inline_calls(trace(fun, *args))
    paths = [path for name, each in zip(names, args, strict=False) for path in leaf_paths(name, each)]
    return roles_of(graph, paths, **kwargs)


def of(roles: Roles, kind: str) -> list[str]:
    return [path for path, each in zip(roles.paths, roles.kinds, strict=True) if each == kind]


def step_with(optimiser: Any) -> tuple[Callable[..., Any], Any]:
    def step(state: Any, x: jax.Array) -> Any:
        value, grads = jax.value_and_grad(loss)(state["w"], x)
        updates, moments = optimiser.update(grads, state["o"], state["w"])
        return {"o": moments, "w": optax.apply_updates(state["w"], updates)}, value

    return step, {"o": optimiser.init(PARAMS), "w": PARAMS}


def test_forward_and_gradient() -> None:
    forward = found(loss, "params", "x", args=(PARAMS, X))
    assert forward.kinds == ("param", "param", "param", "batch") and not forward.returned
    gradient = found(jax.value_and_grad(loss), "params", "x", args=(PARAMS, X))
    assert gradient.kinds == forward.kinds
    assert gradient.returned == {0: 1, 1: 2, 2: 3}
    swapped = found(lambda x, model: loss(model, x), "x", "model", args=(X, PARAMS))
    assert of(swapped, "batch") == ["x"]


def test_one_array_that_a_step_gives_back_is_a_parameter_where_it_is_multiplied() -> None:
    def last(w: jax.Array, x: jax.Array) -> jax.Array:
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w.T), None), x, w)
        return jnp.mean(h**2)

    w = jnp.ones((3, 8, 8))
    step = found(lambda w, x: w - jax.grad(last)(w, x), "w", "x", args=(w, X))
    assert step.kinds == ("param", "batch") and step.returned == {0: 0}
    mean = found(lambda m, x: 0.9 * m + 0.1 * x, "m", "x", args=(X, X))
    assert "param" not in mean.kinds


def test_what_the_user_names_is_believed() -> None:
    def fun(x: jax.Array, table: jax.Array, key: jax.Array, temperature: jax.Array) -> jax.Array:
        return x @ table * temperature + jax.random.normal(key, (6, 8))

    args = (X, jnp.ones((8, 8)), jax.random.key(0), jnp.float32(2))
    roles = found(fun, "x", "table", "key", "temperature", args=args, params=[1])
    assert roles.kinds == ("batch", "param", "other", "other")
    assert found(fun, args=args).kinds == ("param", "batch", "other", "other"), (
        "the first argument, if nothing tells"
    )
    with pytest.raises(ValueError, match="has 4 inputs, and 1 paths"):
        roles_of(trace(fun, *args), ["x"])


@pytest.mark.parametrize("named", [True, False])
def test_moments_belong_to_their_parameters(named: bool) -> None:
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    step, state = step_with(chain)
    roles = found(step, *(("state", "x") if named else ()), args=(state, X))
    count, mu, nu, params = (0,), (1, 2, 3), (4, 5, 6), (7, 8, 9)
    assert roles.params == params and roles.state == (*mu, *nu) and roles.batch == (10,)
    assert [roles.kinds[i] for i in count] == ["other"]
    assert {i: roles.owners[i] for i in mu} == {1: (7, (0, 1)), 2: (8, (0, 1)), 3: (9, (0,))}
    assert roles.returned == {i: i for i in range(10)}
    split = roles.follow({7: Layout((("data",), ("model",))), 9: Layout((("model",),))})
    assert {i: str(layout) for i, layout in split.items()} == {
        **dict.fromkeys((1, 4), "[data, model]"),
        **dict.fromkeys((3, 6), "[model]"),
    }


def test_adafactor_lacks_dimensions() -> None:
    step, state = step_with(optax.adafactor(1e-3, min_dim_size_to_factor=2))
    roles = found(step, "state", "x", args=(state, X))
    layouts = {roles.params[0]: Layout((("data",), ("model",)))}
    named = {roles.paths[i]: str(layout) for i, layout in roles.follow(layouts).items()}
    assert named == {"state/o/0/v_row/a": "[data]", "state/o/0/v_col/a": "[model]", "state/o/0/v/a": "[-]"}
    square = {
        "w": {"s": jnp.ones((8, 8))},
        "o": optax.adafactor(1e-3, min_dim_size_to_factor=2).init({"s": jnp.ones((8, 8))}),
    }

    def update(state: Any, x: jax.Array) -> Any:
        grads = jax.grad(lambda w: jnp.sum((x @ w["s"]) ** 2))(state["w"])
        updates, moments = optax.adafactor(1e-3, min_dim_size_to_factor=2).update(
            grads, state["o"], state["w"]
        )
        return {"o": moments, "w": optax.apply_updates(state["w"], updates)}

    roles = found(update, "state", "x", args=(square, X))
    kept = {roles.paths[i]: dims for i, (_, dims) in roles.owners.items()}
    assert kept["state/o/0/v_row/s"] == (0,) and kept["state/o/0/v_col/s"] == (1,)


def test_states_of_libraries() -> None:
    create: Any = TrainState.create

    def flax_step(state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(state.params, batch["x"])
        return state.apply_gradients(grads=grads), value

    made = create(apply_fn=loss, params=PARAMS, tx=optax.adam(1e-3))
    roles = found(flax_step, "state", "batch", args=(made, {"x": X}))
    assert of(roles, "param") == ["state/params/a", "state/params/b", "state/params/c"]
    assert of(roles, "batch") == ["batch/x"] and len(roles.state) == 6

    graphdef, params = nnx.split(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.Param)
    adam = optax.adam(1e-3)

    def nnx_step(params: Any, moments: Any, x: jax.Array) -> Any:
        grads = jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p)(x) ** 2))(params)
        updates, moments = adam.update(grads, moments)
        return optax.apply_updates(params, updates), moments

    roles = found(nnx_step, "weights", "moments", "x", args=(params, adam.init(params), X))
    assert len(roles.params) == 2 and len(roles.state) == 4 and roles.batch == (7,)
    assert sorted({owner for owner, _ in roles.owners.values()}) == list(roles.params)


def test_statistics_and_caches_are_state_and_frozen_arrays_are_not() -> None:
    def step(params: Any, batch_stats: Any, x: jax.Array) -> Any:
        grads = jax.grad(loss)(params, x - batch_stats["mean"])
        new = {"mean": batch_stats["mean"] * 0.9 + x.mean(0), "n": batch_stats["n"]}
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), new

    statistics = {"mean": jnp.ones(8), "n": jnp.ones(3)}
    roles = found(step, "params", "batch_stats", "x", args=(PARAMS, statistics, X))
    assert of(roles, "state") == ["batch_stats/mean", "batch_stats/n"] and not roles.owners
    assert of(roles, "batch") == ["x"]
    square = found(lambda w, x: x @ w, "w", "x", args=(jnp.ones((6, 6)), jnp.ones((6, 6))))
    assert square.kinds == ("param", "batch") and not square.returned, (
        "a result of the same shape is no state"
    )


def test_of_modules_only_what_changes_is_state() -> None:
    """All arguments of a function of NNX modules come out again, in the order of their names."""

    def step(batch: Any, net: Any, x: jax.Array) -> Any:
        grads = jax.grad(loss)(net, x + batch)
        return batch, jax.tree.map(jnp.subtract, net, grads), x, loss(net, x)

    roles = found(step, "batch", "net", "x", args=(X, PARAMS, X))
    assert of(roles, "param") == ["net/a", "net/b", "net/c"] and of(roles, "batch") == ["batch", "x"]
    assert set(roles.returned) == {1, 2, 3}


def test_a_module_that_is_evaluated_has_parameters_though_the_metrics_change() -> None:
    """All of its inputs come out again, and the first argument is as it was."""

    def evaluate(w: Any, seen: Any, x: jax.Array) -> Any:
        return w, {"total": seen["total"] + loss(w, x), "count": seen["count"] + 1}, x

    seen = {"total": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)}
    assert found(evaluate, "net", "seen", "x", args=(PARAMS, seen, X)).kinds == (
        *("param",) * 3,
        *("other",) * 2,
        "batch",
    )
