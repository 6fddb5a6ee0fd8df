"""`lepton.optimize(mesh=…, shard=…)`: the same numbers as on one device, laid out as asked."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from lepton_jax.ir import trace
from lepton_jax.parallel.constraints import constrain
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.plan import Plan, PlanError

AUTO = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
EXPLICIT = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
MIXED = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit, AxisType.Auto))
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def spec(array: Any) -> P:
    assert isinstance(array.sharding, NamedSharding)
    return array.sharding.spec


def close(got: Any, wanted: Any) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), got, wanted)


# A training step with a scan

TX = optax.adam(0.1)
PARAMS = {"layers": {"up": normal(3, 16, 32) * 0.1, "down": normal(3, 32, 16) * 0.1}, "out": normal(16, 8)}
BATCH = {"x": normal(8, 16), "y": normal(8, 8)}
SPECS = {"batch": P("data"), "state/params/layers/up": P(None, None, "model"), ".../down": (None, "model")}


def loss(params: Any, batch: Any) -> Any:
    def layer(x: Any, w: Any) -> Any:
        return x + jax.nn.relu(x @ w["up"]) @ w["down"], None

    x, _ = jax.lax.scan(layer, batch["x"], params["layers"])
    return jnp.mean((x @ params["out"] - batch["y"]) ** 2)


def step(state: Any, batch: Any) -> Any:
    value, grads = jax.value_and_grad(loss)(state["params"], batch)
    updates, tx = TX.update(grads, state["tx"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "tx": tx}, value


def state() -> Any:
    return {"params": PARAMS, "tx": jax.tree.map(np.asarray, TX.init(PARAMS))}


def test_a_training_step(tmp_path: Path) -> None:
    f = lepton.optimize(step, mesh=AUTO, shard=SPECS, donate="auto")
    plain = jax.jit(step)
    wanted, got = state(), state()
    for _ in range(2):
        before = got
        wanted, value = plain(wanted, BATCH)
        got, found = f(got, BATCH)
        close(found, value)
    close(got, wanted)
    up, down = P(None, None, "model"), P(None, "model")
    for tree in (
        got["params"],
        got["tx"][0].mu,
        got["tx"][0].nu,
    ):  # the optimiser's state follows its parameters
        assert (spec(tree["layers"]["up"]), spec(tree["layers"]["down"])) == (up, down)
        assert spec(tree["out"]) == P()
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before) if leaf.ndim)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(got))

    traced = f.trace(got, BATCH)  # constraints stand in the bodies of both loops
    forward, backward = (node for node in traced.graph if node.op == "scan")
    for node in (forward, backward):
        assert "sharding_constraint[sharding=P('data','model')" in node.regions[0].to_text()
    text = traced.lower().as_text()
    body = text[text.index("stablehlo.while") :]
    assert "sdy.sharding_constraint" in body and '[{"data"}, {"model"}]' in body
    assert any("layouts written into the program" in note for note in f.report.notes)

    plan = f.plan(got, BATCH)
    assert plan.way == "annotations" and "state/params/layers/up" in str(plan)
    assert {each.kind for each in plan.collectives} >= {"all-reduce"}
    plan.save(tmp_path / "plan.json")
    again = lepton.optimize(step, mesh=AUTO, shard=Plan.load(tmp_path / "plan.json"), donate="auto")
    assert again.plan(got, BATCH) == plan
    assert again.trace(got, BATCH).graph.to_text() == traced.graph.to_text()
    with pytest.raises(PlanError, match=r"made for the mesh data=2,model=4"):
        lepton.optimize(step, mesh="data=8", shard=plan).plan(got, BATCH)
    with pytest.raises(PlanError, match="made for another program"):
        lepton.optimize(loss, mesh=AUTO, shard=plan).plan(PARAMS, BATCH)
    with pytest.raises(ValueError, match="leave out the patterns beside it"):
        lepton.optimize(step, mesh=AUTO, shard=(plan, {"batch": None})).plan(got, BATCH)


@pytest.mark.parametrize(
    "tx",
    [
        optax.adamw(0.1),
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.masked(optax.sgd(0.1, momentum=0.9), {"a": True, "b": False}),
        ),
        optax.multi_transform({"x": optax.adam(0.1), "y": optax.sgd(0.1)}, {"a": "x", "b": "y"}),
        optax.adafactor(0.1, min_dim_size_to_factor=4),
    ],
    ids=["adamw", "masked", "multi", "adafactor"],
)
def test_state_follows_its_parameters(tx: optax.GradientTransformation) -> None:
    params = {"a": jax.ShapeDtypeStruct((8, 16), "float32"), "b": jax.ShapeDtypeStruct((16,), "float32")}

    def update(state: Any, grads: Any) -> Any:
        updates, new = tx.update(grads, state["tx"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "tx": new}

    given = {"params": params, "tx": jax.eval_shape(tx.init, params)}
    plan = lepton.optimize(update, mesh=AUTO, shard={"state/params/a": P("data", "model")}).plan(
        given, params
    )
    found = {
        each.name: each
        for each in plan.arrays
        if each.name.startswith("state/tx/") and each.name.endswith("/a")
    }
    assert found
    for name, each in found.items():
        lies = {(8, 16): "[data, model]", (8,): "[data]", (16,): "[model]"}.get(each.shape, "[-]")
        assert str(each.layout) == (lies if each.shape else "[]"), name


# Ways to call

W = {"a": normal(16, 32), "b": normal(32, 16)}
X = normal(8, 16)
DENSE = {"x": P("data"), "w/a": P(None, "model"), "w/b": P("model")}


@functools.cache
def plain() -> tuple[Any, Any, Any]:
    """On one device: the function at X and at 2 X, and its gradient."""
    grad = jax.grad(lambda w: jnp.sum(dense(w, X)))
    return jax.device_get(jax.jit(lambda w: (dense(w, X), dense(w, 2 * X), grad(w)))(W))  # type: ignore[no-any-return]


def dense(w: Any, x: Any, scale: Any = 1.0, *, power: int = 1) -> Any:
    return (jnp.tanh(x @ w["a"]) @ w["b"] * scale) ** power


@pytest.mark.parametrize("mesh", [AUTO, EXPLICIT, MIXED], ids=["auto", "explicit", "mixed"])
def test_transformations(mesh: Any) -> None:
    once, twice, wanted = plain()
    f = lepton.optimize(dense, mesh=mesh, shard=DENSE, static_argnames="power")
    with jax.set_mesh(mesh):
        y = f(W, x=X, power=2)
    close(jax.device_get(y), once**2)
    assert spec(y) == P("data") and y.sharding.mesh == mesh
    lies = jax.device_put(X, NamedSharding(mesh, P("model")))  # committed, but otherwise
    with jax.set_mesh(mesh):
        grads, both = jax.jit(
            lambda w, xs: (jax.grad(lambda w: jnp.sum(f(w, X)))(w), jax.vmap(f, (None, 0))(w, xs))
        )(W, np.stack([X, 2 * X]))
    assert spec(grads["a"]) == P(None, "model")
    close(jax.device_get((grads, both)), (wanted, np.stack([once, twice])))
    compiled = f.lower(W, lies).compile()
    close(jax.device_get(compiled(jax.device_put(W, jax.devices()[3]), lies)), once)
    assert f.eval_shape(W, X).sharding.spec == P("data")


def test_gradients_of_arrays_that_lie_otherwise() -> None:
    f = lepton.optimize(dense, mesh=AUTO, shard=DENSE)
    w = jax.device_put(W, NamedSharding(AUTO, P("data")))
    grads = jax.grad(lambda w: jnp.sum(f(w, X)))(w)  # no jit around: arrays cannot be moved before
    close(jax.device_get(grads), plain()[2])


def test_where_arrays_lie_is_believed() -> None:
    f = lepton.optimize(lambda w, x: x @ w["a"], mesh=AUTO)
    plan = f.plan(
        {"a": jax.ShapeDtypeStruct((16, 32), "float32", sharding=NamedSharding(AUTO, P(None, "model")))}, X
    )
    assert {each.name: str(each.layout) for each in plan.arrays}["w/a"] == "[-, model]"


@jax.tree_util.register_pytree_node_class
class Scaled:
    """Something with a method."""

    def tree_flatten(self) -> Any:
        return (), None

    @classmethod
    def tree_unflatten(cls, _: Any, __: Any) -> Scaled:
        return cls()

    @lepton.optimize(mesh="data=2,model=4", shard={"x": P("data")}, static_argnums=2)
    def times(self, x: Any, n: int) -> Any:
        return x * n


def test_methods_static_arguments_and_places() -> None:
    assert spec(Scaled().times(X, 3)) == P("data")
    close(Scaled().times(X, 5), X * 5)
    _, placed, n = Scaled.times.place(Scaled(), X, 3)
    assert spec(placed) == P("data") and n == 3


class Net(nnx.Module):
    """Two layers, the first with a sharding written on it."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(16, 32, rngs=rngs)
        self.down = nnx.Linear(32, 4, rngs=rngs)
        self.up.kernel.set_metadata(out_sharding=("embed", "mlp"), sharding_rules=(("mlp", "model"),))

    def __call__(self, x: Any) -> Any:
        return self.down(jax.nn.relu(self.up(x)))


def train(model: Net, optimizer: nnx.Optimizer[Net], x: Any) -> Any:
    value, grads = nnx.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)
    optimizer.update(model, grads)
    return value


def test_modules_and_what_is_written_on_them() -> None:
    def run(fun: Any) -> Any:
        with nnx.use_eager_sharding(False):  # type: ignore[no-untyped-call]
            model = Net(nnx.Rngs(0))
            optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
        return [float(fun(model, optimizer, X)) for _ in range(2)], model, optimizer

    shard = lepton.Sharding({"x": P("data")}, rules={"embed": None})
    f = lepton.optimize(train, mesh=AUTO, shard=shard, donate="auto")
    losses, model, optimizer = run(f)
    close(losses, run(nnx.jit(train))[0])
    assert spec(model.up.kernel[...]) == P(None, "model")
    moments = [leaf for leaf in jax.tree.leaves(nnx.state(optimizer)) if leaf.shape == (16, 32)]
    assert [spec(each) for each in moments] == [P(None, "model")]
    kept = model.up.kernel[...]
    f.place(model, optimizer, X)
    assert model.up.kernel[...].sharding == kept.sharding
    f(model, optimizer, X)
    assert kept.is_deleted()


def test_what_is_written_on_a_parameter_is_not_that_of_its_rows_and_columns() -> None:
    """Flax writes a bias's name on Adafactor's arrays of one element too."""
    with nnx.use_eager_sharding(False):  # type: ignore[no-untyped-call]
        model = Net(nnx.Rngs(0))
        assert model.up.bias is not None
        model.up.bias.set_metadata(out_sharding=("model",))
        optimizer = nnx.Optimizer(model, optax.adafactor(0.1, min_dim_size_to_factor=4), wrt=nnx.Param)
    f = lepton.optimize(train, mesh=AUTO, shard=lepton.Sharding({"x": P("data")}, rules={"embed": None}))
    found = {each.name: str(each.layout) for each in f.plan(model, optimizer, X).arrays}
    assert found["model/up/bias"] == found["optimizer/opt_state/0/v/up/bias"] == "[model]"
    assert (
        found["optimizer/opt_state/0/v_row/up/bias"] == found["optimizer/opt_state/0/v_col/up/bias"] == "[-]"
    )
    assert found["optimizer/opt_state/0/v_col/up/kernel"] == "[model]"


class Mlp(nn.Module):
    """Boxes of both kinds."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        init = nn.initializers.lecun_normal()
        x = nn.Dense(32, kernel_init=nn.with_logical_partitioning(init, ("embed", "mlp")))(x)
        return nn.Dense(16, kernel_init=nn.with_partitioning(init, ("model", None)))(nn.relu(x))


def test_boxes_of_linen() -> None:
    variables = jax.eval_shape(Mlp().init, jax.random.key(0), X)

    def layouts(shard: Any) -> dict[str, str]:
        plan = lepton.optimize(Mlp().apply, mesh=AUTO, shard=shard).plan(variables, X)
        return {
            each.name: str(each.layout) for each in plan.arrays if each.name.endswith(("kernel", "args/0"))
        }

    first, second = "variables/params/Dense_0/kernel", "variables/params/Dense_1/kernel"
    found = layouts(lepton.Sharding(rules={"embed": None, "mlp": "model"}))
    assert (found[first], found[second]) == ("[-, model]", "[model, -]")
    with nn.logical_axis_rules((("embed", "data"), ("mlp", None))):
        assert layouts({second: None})[first] == "[data, -]"
    with pytest.raises(ValueError, match=rf"'embed' in the spec of {first} is not an axis"):
        layouts({})


def test_presets_with_pins() -> None:
    def layouts(shard: Any) -> dict[str, str]:
        plan = lepton.optimize(step, mesh=AUTO, shard=shard).plan(state(), BATCH)
        return {each.name: str(each.layout) for each in plan.arrays}

    up, moment = "state/params/layers/up", "state/tx/0/mu/layers/up"
    whole = "[-, -, -]"
    found, pinned = layouts("tp"), layouts(("tp", {up: None}))
    assert found[up] == found[moment] != whole
    assert pinned[up] == pinned[moment] == whole
    solved = lepton.optimize(step, mesh=AUTO, shard=("auto", SPECS), memory="1GB")
    plan = solved.plan(state(), BATCH)
    assert {each.name: str(each.layout) for each in plan.arrays}[up] == "[-, -, model]" and plan.way == "auto"


def test_constraints_stand_where_a_layout_changes() -> None:
    graph = trace(lambda x: jnp.cos(jnp.sin(x).T) * 2, X)
    rows, columns = Layout((("data",), ())), Layout(((), ("data",)))
    sine, turned, cosine, double = graph
    given = {graph.inputs[0]: rows, sine.result: rows, turned.result: columns}
    given |= {cosine.result: columns, double.result: rows}
    assert constrain(graph, given, AUTO) == 1 and graph.outputs[0].op == "sharding_constraint"
    (other,) = (node for node in graph if node.op == "sharding_constraint")
    assert other.operands[0] is double.result and other.params["sharding"].spec == P("data")

    graph = trace(lambda x: jnp.sin(x).T, X)
    sine, turned = graph
    given = {graph.inputs[0]: rows, sine.result: rows, turned.result: rows}
    assert constrain(graph, given, AUTO) == 1  # the transpose of rows lies by columns
    assert graph.outputs[0].op == "sharding_constraint"


# Meshes


def test_an_abstract_mesh_is_planned_not_run() -> None:
    f = lepton.optimize(dense, mesh=AbstractMesh((64, 64), ("data", "model")), shard={"x": P("data")})
    x = jax.ShapeDtypeStruct((4096, 16), "float32")
    assert "4096" in str(f.plan(W, x))
    assert '"data"=64' in f.trace(W, x).lower(lowering_platforms=("tpu",)).as_text()
    assert f.lower(W, x).out_info.sharding.spec == P("data")
    with pytest.raises(ValueError, match="abstract mesh, which has no devices"):
        f(W, jnp.zeros((4096, 16)))


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "dp"}, "shard='dp' needs a mesh"),
        ({"donate": "auto"}, "donate='auto' needs a mesh"),
        ({"mesh": "data=8", "shard": "ddp"}, "no preset 'ddp'; there are dp, fsdp"),
        ({"mesh": "data=8", "shard": "plan.json"}, "a saved plan is read by Plan.load"),
        ({"mesh": "data=8", "donate": "all"}, "donate is 'auto' or None"),
        ({"mesh": "data=8", "donate": "auto", "donate_argnums": 0}, "leave out donate_argnums"),
        ({"mesh": "data=8", "memory": "much"}, "memory is a number of bytes, 1 or more, or as '14GB'"),
        ({"mesh": "data=8", "memory": -1.0}, "1 or more, or as '14GB', not -1.0"),
        ({"mesh": "data=8", "donate_argnums": 7}, r"donate_argnums=\(7,\), but only accepts"),
        ({"mesh": "data=8", "donate_argnames": "weights"}, "invalid argnames {'weights'}"),
        ({"mesh": "data"}, "a mesh in words is as"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lepton.optimize(dense, **options)


@pytest.mark.parametrize(
    "options", [{"mesh": 8.0}, {"mesh": AUTO, "shard": ("tp", 3)}, {"mesh": AUTO, "shard": {"x": 3}}]
)
def test_options_of_the_wrong_kind(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"mesh is a|is a pair, as|the spec of 'x' is"):
        lepton.optimize(dense, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mesh": "data=16", "shard": "dp"}, r"needs 16 devices, JAX has 8 \(cpu\)"),
        ({"mesh": AUTO}, "nothing says how to spread this program"),
        ({"mesh": AUTO, "shard": {"y": P("data")}}, "'y' matches none of the arrays w/a, w/b, x"),
        ({"mesh": AUTO, "shard": {"x": P(None, None, "data")}}, "x has 2 dimensions"),
        ({"mesh": AUTO, "shard": {"x": P("rows")}}, "'rows' in the spec of x is not an axis"),
        ({"mesh": "data=3", "shard": {"x": P("data")}}, "x has size 8 in dimension 0, .* 6 or 9 would do"),
        ({"mesh": "model=7", "shard": "tp"}, "nothing to split"),
        (
            {"mesh": AUTO, "shard": lepton.Sharding({"x": "data"}, local="scale")},
            "local: 'scale' matches none",
        ),
    ],
)
def test_what_does_not_fit_the_program(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lepton.optimize(dense, **options)(W, X)


def test_one_device_takes_all() -> None:
    for shard in ("fsdp+tp", "auto"):
        run = lepton.optimize(dense, mesh="data=1,model=1", shard=shard)
        close(run(W, X), dense(W, X))
    assert "has one device" in str(lepton.optimize(dense, mesh="data=1", shard="dp").plan(W, X))


def test_without_a_mesh() -> None:
    with pytest.raises(ValueError, match="has no mesh"):
        lepton.optimize(dense).plan(W, X)
