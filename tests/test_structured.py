"""Structured pruning: smaller programs that compute what the whole ones do without their units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import lepton_jax as lepton
from lepton_jax.ir.dimensions import Group
from lepton_jax.ir.paths import leaf_paths
from lepton_jax.numerics.group_importance import angle, change, l1, magnitude, relative, taylor, unit_slices
from tests import structured_models as models

KINDS = ("mlp", "resnet", "depthwise", "dense_net", "flattened", "gated", "attention", "recurrent")
DIFFERENTIATED = ("mlp",)
FAST: Any = {"xla_backend_optimization_level": 0}


def without(small: lepton.StructurallyPruned, params: Any) -> Any:
    """The parameters with zeros where something was cut."""
    leaves, tree = jax.tree.flatten(jax.tree.map(np.array, params))
    for position, leaf in enumerate(leaves):
        for dim, kept in enumerate(small.change.of(position)):
            if kept is not None:
                np.moveaxis(leaf, dim, 0)[np.setdiff1d(np.arange(leaf.shape[dim]), kept)] = 0
    return jax.tree.unflatten(tree, leaves)


def total(fun: Callable[..., Any], args: Any) -> Callable[[Any], Any]:
    def loss(params: Any) -> Any:
        out = fun(params, *args)
        return sum(jnp.sum(jnp.sin(each)) for each in jax.tree.leaves(out)), out

    return loss


def assert_close(found: Any, expected: Any, what: str = "") -> None:
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        size = max(1.0, float(np.abs(right).max()))
        np.testing.assert_allclose(left, right, rtol=2e-5, atol=2e-5 * size, err_msg=what)


def test_units_of_zeros_are_not_missed() -> None:
    """Outputs and gradients are those of the whole program whose units are zero; so at another batch size."""
    programs: dict[str, Any] = {}
    given: dict[str, Any] = {}
    small: dict[str, lepton.StructurallyPruned] = {}
    for kind in KINDS:
        fun, params, sample = getattr(models, kind)()
        small[kind] = pruned = lepton.structured_prune(
            fun, params, *sample, ratio=0.4, importance="random", seed=1
        )
        assert pruned.report.share("flops") < 0.75 and pruned.report.share("parameters") < 0.75, kind
        assert not any(0 in leaf.shape for leaf in jax.tree.leaves(pruned.params)), kind
        assert pruned.change.paths == tuple(leaf_paths("p", pruned.params)), kind
        inputs = sample if kind == "attention" else tuple(jnp.concatenate([x, x[:1]]) for x in sample)
        programs[kind] = total(fun, inputs), total(pruned.fun, inputs)
        given[kind] = without(pruned, params), pruned.params

    def every(given: Any) -> Any:
        found = {}
        for kind, (whole, fewer) in programs.items():
            runs = [
                jax.value_and_grad(f, has_aux=True) if kind in DIFFERENTIATED else f for f in (whole, fewer)
            ]
            found[kind] = [run(params) for run, params in zip(runs, given[kind], strict=True)]
        return found

    for kind, (expected, found) in jax.jit(every, compiler_options=FAST)(given).items():
        if kind not in DIFFERENTIATED:
            assert_close(found, expected, kind)
            continue
        assert_close(found[0], expected[0], kind)
        assert_close(found[1], small[kind].shrink(expected[1]), f"the gradient of {kind}")


def test_layers_that_normalise_count_what_is_left() -> None:
    """The model written for any sizes gives the same of the smaller parameters; layers of the scan go too.

    So it does where it is exported for any batch size.
    """
    fun, params, (tokens,) = models.stacked()
    small = lepton.structured_prune(fun, params, tokens, ratio=0.5, round_to=2, depth=1)
    assert small.params["layers"]["up"].shape == (3, 4, 6)
    (rows,) = jax.export.symbolic_shape("rows")
    sample = jax.ShapeDtypeStruct((rows, tokens.shape[1]), tokens.dtype)
    exported = jax.export.export(jax.jit(small.fun))(small.params, sample)
    found, expected = jax.jit(
        lambda p: ([exported.call(p, tokens), small.fun(p, tokens)], [fun(p, tokens)] * 2),
        compiler_options=FAST,
    )(small.params)
    assert_close(found, expected)
    group = next(each for each in small.report.groups if each.kind == "layers")
    assert (group.before, group.after, len(group.importance)) == (4, 3, 4)


def test_a_smaller_function_goes_anywhere() -> None:
    """Trained, exported, compiled, batched, pruned once more, at other shapes."""
    fun, params, (x,) = models.mlp()
    small = lepton.structured_prune(fun, params, x, ratio=0.5, round_to=2, protect="p/b[1]")
    assert {path: [k if k is None else len(k) for k in kept] for path, kept in small.kept.items()} == {
        "p/a": [None, 6],
        "p/b": [6, None],
        "p/bias": [6],
    }
    tx = optax.adam(1e-2)
    state = tx.init(params)
    moved = small.shrink(state[0].mu)
    assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, small.params)

    @jax.jit
    def step(p: Any, mu: Any) -> Any:
        moments = state[0]._replace(mu=mu, nu=mu)
        return optax.apply_updates(
            p, tx.update(jax.grad(lambda p: small.fun(p, x).sum())(p), (moments, *state[1:]))[0]
        )

    trained = step(small.params, moved)
    exported = jax.export.export(jax.jit(small.fun))(trained, x)
    again = jax.export.deserialize(exported.serialize()).call(trained, x)
    batched = jax.vmap(small.fun, (None, 0))
    expected, mapped = jax.jit(lambda p: (fun(p, x), batched(p, x)), compiler_options=FAST)(trained)
    assert_close([again, mapped], [expected, expected])
    assert_close(lepton.compile(small.fun, trained, x, passes="cleanup")(x), expected)
    twice = lepton.structured_prune(small.fun, trained, x, ratio=0.5, only="p/b[1]")
    assert twice.params["b"].shape == (6, 4) and twice.fun.original is fun
    found, wanted = jax.jit(lambda p: (twice.fun(p, x[:1]), fun(p, x[:1])), compiler_options=FAST)(
        twice.params
    )
    assert_close(found, wanted)
    with pytest.raises(
        ValueError, match=r"p/a is \(16, 12\); \(16, 6\) of its \(16, 12\) are kept: give .params"
    ):
        small.fun(params, x)
    with pytest.raises(ValueError, match=r"shrink: p/a is \(16, 6\), the parameter was \(16, 12\)"):
        small.shrink(small.params)


def test_another_function_of_the_same_parameters() -> None:
    """The training mode returns new statistics, which become smaller too; static arguments stay so."""
    fun, params, (x,) = models.resnet()

    def training(p: Any, x: Any, rate: float) -> Any:
        h = models.conv(x, p["stem"])
        mean = (1 - rate) * p["norm"]["mean"] + rate * h.mean((0, 1, 2))
        return fun(p, x), p | {"norm": p["norm"] | {"mean": mean}}

    small = lepton.structured_prune(fun, params, x, ratio=0.5)
    run = small.cut(training, static_argnums=2)
    _, updated = jax.eval_shape(lambda p: run(p, x, 0.5), small.params)
    assert jax.tree.map(jnp.shape, updated) == jax.tree.map(jnp.shape, small.params)


def test_modules_of_flax() -> None:
    """NNX modules take the smaller parameters back; Linen's statistics follow in the training mode."""

    class Small(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            def init(key: Any, shape: Any, dtype: Any = None) -> Any:
                return models.weight(*shape)

            self.a = nnx.Linear(16, 8, kernel_init=init, rngs=rngs)
            self.norm = nnx.BatchNorm(8, use_running_average=True, scale_init=init, rngs=rngs)
            self.b = nnx.Linear(8, 3, kernel_init=init, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.b(jax.nn.relu(self.norm(self.a(x))))

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            norm = nn.BatchNorm(use_running_average=not train)
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(norm(nn.Dense(8)(x))))

    x = models.ROWS[0]
    model = Small(nnx.Rngs(0))
    small = lepton.structured_prune(model, x, ratio=0.5)
    assert small.params["norm"]["mean"].shape == (4,) and small.params["b"]["kernel"].shape == (4, 3)
    found = small.fun(small.params, x)
    nnx.update(model, small.params)
    assert_close(found, model(x))

    linen = Linen()
    shapes = jax.eval_shape(linen.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes)
    less = lepton.structured_prune(linen, variables, x, False, ratio=0.5, static_argnums=2)
    assert jax.eval_shape(lambda v: less.fun(v, x, False), less.params).shape == (5, 3)

    def training(variables: Any, x: Any, key: Any) -> Any:
        return linen.apply(variables, x, True, mutable=["batch_stats"], rngs={"dropout": key})

    _, new = jax.eval_shape(less.cut(training), less.params, x, jax.random.key(0))
    assert jax.tree.map(jnp.shape, new["batch_stats"]) == {"BatchNorm_0": {"mean": (4,), "var": (4,)}}
    assert less.params["params"]["Dense_1"]["kernel"].shape == (16, 4)


def test_budgets_are_met_or_said_to_be_missed() -> None:
    fun, params, (x,) = models.resnet()
    shapes = jax.ShapeDtypeStruct(x.shape, x.dtype)
    for budget, what in (("flops<=0.5", "flops"), ("parameters<=0.4", "parameters"), ("time<=.96", "time")):
        small = lepton.structured_prune(fun, params, shapes, budget=budget, ranking="global", target="cpu")
        assert small.report.missed is None
        assert 0.6 * float(budget[-3:]) < small.report.share(what) <= float(budget[-3:])
    tight = lepton.structured_prune(fun, params, shapes, budget="parameters<=10", least=0.5)
    assert tight.report.missed is not None and tight.report.missed.startswith("parameters<=10 is missed by")
    assert min(group.after for group in tight.report.groups if group.before > 1) >= 1
    text = str(tight.report)
    assert tight.report.missed in text and "p/a[3]: 8 units → 4; alone it saves" in text
    assert "cannot be cut: p/stem[2]: x is given by the caller" in text


def test_what_matters_stays() -> None:
    """Each measure keeps the units that it finds important."""
    fun, params, (x,) = models.mlp()
    big = params | {"a": params["a"].at[:, 3].mul(100.0), "b": params["b"].at[3].mul(100.0)}
    dead = params | {"b": params["b"].at[5].set(0.0)}

    def first(group: Group, slices: Any) -> Any:
        assert all(len(each) == group.units for each in slices)
        return -np.arange(group.units)

    def loss(p: Any, x: Any) -> Any:
        return jnp.sum(fun(p, x) ** 2)

    def kept(params: Any, **options: Any) -> list[int]:
        small = lepton.structured_prune(fun, params, x, **options)
        indices = small.kept["p/a"][1]
        assert indices is not None
        return [int(i) for i in indices]

    assert 3 in kept(big, ratio=0.9) and 3 in kept(big, ratio=0.9, importance="l1")
    assert 3 in kept(big, ratio=0.7, ranking="global", least=2)
    assert 5 not in kept(dead, ratio=0.1, importance="taylor", loss=loss, batches=[x, (x,)])
    assert kept(params, ratio={"p/a[1]": 0.75}, importance=first) == [0, 1, 2]
    assert len(kept(params, ratio=0.4, round_to=4)) == 8
    random = [kept(params, ratio=0.5, importance="random", seed=seed) for seed in (0, 0, 1)]
    assert random[0] == random[1] != random[2]


def test_heads_go_whole() -> None:
    """With all their features, and the queries that share keys together."""
    fun, params, (x,) = models.attention()
    small = lepton.structured_prune(fun, params, jax.ShapeDtypeStruct(x.shape, x.dtype), ratio=0.5)
    shapes = {name: p.shape for name, p in small.params.items()}
    assert shapes["q"] == (16, 16) and shapes["k"] == shapes["v"] == (16, 8) and shapes["out"] == (16, 16)
    assert shapes["qkv"] == (16, 24) and shapes["last"] == (8, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "wants ratio=, budget= or depth="),
        ({"ratio": 0.5, "budget": "flops<=0.5"}, "not both"),
        ({"ratio": 1.0}, "from 0 to below 1"),
        ({"ratio": "0.5"}, "from 0 to below 1"),
        ({"budget": "flops<0"}, "give flops<=0.5"),
        ({"budget": "flops<=1..5"}, "give flops<=0.5"),
        ({"budget": "time<=2"}, "give seconds<="),
        ({"ratio": 0.5, "importance": "size"}, "importance is one of magnitude, l1, taylor, random"),
        ({"ratio": 0.5, "importance": "taylor"}, "needs loss="),
        ({"ratio": 0.5, "importance": lambda group, slices: np.ones(1)}, r"gave \(1,\) for p/"),
        ({"ratio": 0.5, "importance": lambda group, slices: [np.nan] * group.units}, "p/a.1. is NaN"),
        ({"ratio": {"p/a": 0.5}, "ranking": "global"}, "need ranking='group'"),
        ({"ratio": 0.5, "round_to": 0}, "round_to is a whole number from 1"),
        ({"ratio": 0.5, "round_to": 2.5}, "round_to is a whole number from 1"),
        ({"ratio": 0.5, "protect": "p/z"}, "protect: 'p/z' matches none of"),
        ({"ratio": 0.5, "only": "p/z"}, "only: 'p/z' matches none of"),
        ({"ratio": 0.5, "protect": "p/b[2]"}, r"protect: 'p/b\[2\]' is no dimension .*: p/b has 2"),
        ({"ratio": 0.5, "only": "p/b[-3]"}, r"only: 'p/b\[-3\]' is no dimension"),
        ({"ratio": 0.5, "only": "p/c[1]"}, "nothing of what only= and ratio= choose can be cut"),
        ({"ratio": 0.5, "protect": "p"}, "nothing can be cut"),
        ({"depth": 1}, "no residual blocks with parameters"),
        ({"depth": 1, "batches": []}, "batches= is empty"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    fun, params, sample = models.mlp()
    with pytest.raises(lepton.UsageError, match=message):
        lepton.structured_prune(fun, params, *sample, **options)


def test_importance_of_slices() -> None:
    array = np.arange(12.0).reshape(2, 6)
    slices = unit_slices(array, 1, np.array([[0, 3], [1, 4], [2, 5]]))
    assert slices.tolist() == [[0, 6, 3, 9], [1, 7, 4, 10], [2, 8, 5, 11]]
    np.testing.assert_allclose(l1([slices, -slices]), 2 * slices.sum(1))
    np.testing.assert_allclose(magnitude([slices]), np.linalg.norm(slices, axis=1))
    assert taylor([np.array([[1.0, -1.0], [2.0, 0.0]]), np.array([[3.0], [0.0]])]).tolist() == [9.0, 4.0]
    assert relative(np.array([1.0, 3.0])).tolist() == [0.5, 1.5] and relative(np.zeros(2)).tolist() == [0, 0]
    zeros, ones = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    both = jax.jit(lambda a, b: (angle(a, b), change(a, b)), compiler_options=FAST)
    assert [float(each) for each in both(zeros, zeros)] == [0.0, 0.0]
    assert [float(each) for each in both(ones, -ones)] == [1.0, 2.0]
    assert float(both(zeros, ones)[1]) == np.inf
