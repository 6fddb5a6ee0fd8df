"""Sparse training: masks in the optimiser's state, zeros in the parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lepton_jax as lepton
from lepton_jax.numerics.masks import Channel, NofM
from lepton_jax.numerics.sparsity_schedules import cyclic, polynomial

RNG = np.random.default_rng(0)
TEACHER = {
    "first": {"kernel": jnp.asarray(RNG.normal(size=(8, 16)), jnp.float32), "bias": jnp.zeros(16)},
    "last": {"kernel": jnp.asarray(RNG.normal(size=(16, 4)), jnp.float32)},
}
X = jnp.asarray(RNG.normal(size=(64, 8)), jnp.float32)


def net(params: Any, x: jax.Array) -> Any:
    """Two layers."""
    return jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"]) @ params["last"]["kernel"]


Y = net(TEACHER, X)


def train(tx: Any, steps: int, through: bool = False) -> tuple[Any, Any, list[Any]]:
    """Parameters and state after some steps, and the masks on the way."""

    def loss(params: Any, state: Any) -> Any:
        return jnp.mean((net(lepton.masked(params, state) if through else params, X) - Y) ** 2)

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, state), state, params)
        masks = lepton._sparsify.sparse_state(state).masks
        return (optax.apply_updates(params, updates), state), masks

    def whole(params: Any) -> Any:
        params = jax.tree.map(lambda p: p * 0.5 + 0.05, params)
        return jax.lax.scan(step, (params, tx.init(params)), length=steps)

    (params, state), masks = jax.jit(whole)(TEACHER)
    return params, state, jax.tree.leaves(masks)


def zeros(tree: Any) -> dict[str, float]:
    """The share of zeros of each kernel."""
    return {name: float(jnp.mean(tree[name]["kernel"] == 0)) for name in ("first", "last")}


@pytest.mark.parametrize("importance", ["magnitude", "saliency", "movement", "fisher"])
def test_pruning_by_importance(importance: Any) -> None:
    """Sparsity rises as its schedule says, the parameters are zero where masks are, biases are left."""
    tx = lepton.sparsify(optax.adam(1e-2), polynomial(0.75, 5, 25), importance=importance, every=5)
    params, state, _ = train(tx, 40)
    assert zeros(params) == {"first": 0.75, "last": 0.75}
    assert lepton.sparsity_of(state) == {
        "params/first/kernel": 0.75,
        "params/last/kernel": 0.75,
        "total": 0.75,
    }
    assert bool((params["first"]["bias"] != 0).all())
    gone = params["first"]["kernel"] == 0
    moments = lepton._sparsify.sparse_state(state).inner[0].mu["first"]["kernel"]
    assert float(jnp.abs(jnp.where(gone, moments, 0)).max()) < 1  # no new gradients reach them
    masks = lepton._sparsify.sparse_state(state).masks
    assert isinstance(masks["first"]["bias"], optax.MaskedNode) and masks["last"].keys() == {"kernel"}


def test_scopes_patterns_and_selection() -> None:
    """Ranked over all, Erdős–Rényi, structured, chosen by path, within other optimisers."""
    options: dict[str, dict[str, Any]] = {
        "global": {"scope": "global"},
        "erk": {"distribution": "erk"},
        "2:4": {"pattern": NofM(2, 4)},
        "channels": {"pattern": Channel(0)},
        "only": {"only": "params/first"},
        "skip": {"skip": ".../last/kernel"},
    }
    for name, chosen in options.items():
        tx = optax.chain(optax.clip(1.0), lepton.sparsify(optax.sgd(0.1), 0.5, **chosen))
        params, state, _ = train(tx, 2)
        found, told = zeros(params), lepton.sparsity_of(state)
        total = (found["first"] * 128 + found["last"] * 64) / 192
        if name in ("only", "skip"):
            assert found == {"first": 0.5, "last": 0} and told["total"] == 0.5
        elif name == "erk":
            assert found["first"] > 0.5 > found["last"] and abs(total - 0.5) < 0.02
        else:
            assert abs(total - 0.5) < 0.01 and abs(told["total"] - total) < 1e-6
        if name == "channels":
            assert {int(n) for n in (params["first"]["kernel"] == 0).sum(1)} == {0, 16}


def test_masks_that_move() -> None:
    """RigL and SET keep their sparsity and change which weights stay, until they stop; static ones do not."""
    methods: tuple[Any, ...] = ("rigl", "set", "static")
    for method in methods:
        tx = lepton.sparsify(optax.sgd(0.05), 0.75, method=method, every=2, until=10, seed=3)
        params, _, (first, last) = train(tx, 16)
        assert zeros(params)["first"] >= 0.75
        assert {int(n) for n in first.sum((1, 2))} == {32} and {int(n) for n in last.sum((1, 2))} == {16}
        changes = (first[1:] != first[:-1]).any((1, 2))
        assert bool(changes.any()) == (method != "static") and not bool(changes[10:].any())


def test_rigl_takes_the_largest_gradients() -> None:
    """What comes has the largest gradients of what is gone, what goes is the smallest."""
    params = jnp.array([[1.0, 0.1], [0.0, 0.0]])
    tx = lepton.sparsify(optax.sgd(0.0), 0.5, method="rigl", until=100, drop=0.5)
    state = tx.init(params)._replace(masks=jnp.array([[True, True], [False, False]]))
    updates, state = tx.update(jnp.array([[9.0, 9.0], [1.0, 5.0]]), state, params)
    assert state.masks.tolist() == [[True, False], [False, True]]
    assert optax.apply_updates(params, updates).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_straight_through_and_cycles() -> None:
    """With all weights kept behind the masks, what was gone comes back; so it does in dense phases."""
    tx = lepton.sparsify(optax.sgd(0.1), 0.5, method="straight_through")
    params, state, (first, _) = train(tx, 30, through=True)
    assert zeros(params)["first"] == 0 and zeros(lepton.masked(params, state)) == {"first": 0.5, "last": 0.5}
    assert bool((~first[:-1] & first[1:]).any())
    gradients = jax.grad(lambda p: lepton.masked(p, state)["first"]["kernel"].sum())(params)
    assert bool((gradients["first"]["kernel"] == 1).all())
    tx = lepton.sparsify(optax.sgd(0.1), cyclic(0.5, 4, 20, 8))
    _, _, (first, _) = train(tx, 24)
    shares = [float(each.mean()) for each in first]
    assert shares == [1.0] * 4 + ([0.5] * 4 + [1.0] * 4) * 2 + [0.5] * 4


def test_sharded_as_the_weights_and_alike_on_all_replicas() -> None:
    """Masks lie where the weights lie; devices that hold the same part of the weights hold the same masks."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
    weight = jax.random.normal(jax.random.key(0), (4, 4))
    params = jax.device_put({"w": weight}, sharding)
    x = jax.random.normal(jax.random.key(1), (8, 4))
    batch = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    tx = lepton.sparsify(optax.adam(1e-3), 0.5, importance="fisher")

    def step(params: Any, state: Any, x: Any) -> Any:
        updates, state = tx.update(jax.grad(lambda p: jnp.mean((x @ p["w"]) ** 2))(params), state, params)
        return optax.apply_updates(params, updates), state

    found, state = jax.jit(step)(params, jax.jit(tx.init)(params), batch)
    assert state.masks["w"].sharding.is_equivalent_to(sharding, 2)
    lepton.check_replicas({"params": found, "state": state})
    _, alone = jax.jit(step)({"w": weight}, jax.jit(tx.init)({"w": weight}), x)
    assert state.masks["w"].tolist() == alone.masks["w"].tolist() and 0 < int(state.masks["w"].sum()) < 16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "magic"}, "method is one of prune"),
        ({"every": 0}, "every is 1 or more"),
        ({"method": "rigl"}, "wants until="),
        ({"method": "set", "until": 9, "pattern": NofM()}, "one by one"),
        ({"only": "params/none"}, "matches none of the arrays params/first/bias"),
        ({"only": "params/first/bias"}, "nothing is left to prune"),
    ],
)
def test_wrong_use_says_so(options: dict[str, Any], words: str) -> None:
    """Each mistake has its words."""
    with pytest.raises(ValueError, match=words):
        lepton.sparsify(optax.sgd(0.1), 0.5, **options).init(TEACHER)


@pytest.mark.parametrize("method", ["static", "prune"])
def test_no_end_is_needed_and_arrays_may_be_empty(method: Any) -> None:
    """Only moving masks need `until`; sparsity near 1 is met, also by shares of each array."""
    params = {"w": jnp.ones((100, 100)), "none": jnp.zeros((0, 3))}
    tx = lepton.sparsify(optax.sgd(0.1), 0.999, method=method, distribution="erk")
    _, state = tx.update(params, tx.init(params), params)
    found = lepton.sparsity_of(state)
    assert found["params/none"] == 0 and abs(found["total"] - 0.999) < 2e-4


def test_what_is_missing_is_named() -> None:
    """No parameters, no state of this kind."""
    tx = lepton.sparsify(optax.sgd(0.1), 0.5)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(TEACHER, tx.init(TEACHER))
    with pytest.raises(TypeError, match="found 0 in it"):
        lepton.masked(TEACHER, optax.sgd(0.1).init(TEACHER))
