"""Scales, shifts and low-rank updates of parameters alone, taken into weights."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

import lepton_jax as lepton
from lepton_jax.ir import Graph, to_callable
from lepton_jax.ir.split import split
from lepton_jax.rewrite import CheckStructure, PassManager, Pipeline, Report
from lepton_jax.targets import get_target

PASSES = "inline,cse,dce,absorb,early,cse,dce"
AFTER, BEFORE, SUM = (
    "scale-and-shift-into-weight",
    "scale-and-shift-into-readers",
    "sum-of-products-into-weight",
)
RANDOM = np.random.default_rng(0)


def numbers(*shape: int) -> Any:
    return RANDOM.normal(size=shape).astype(np.float32)


class Case(NamedTuple):
    """A function of parameters and one input; what fires; the arithmetic of `apply`; and a reason given."""

    fun: Callable[..., Any]
    params: dict[str, Any]
    x: Any
    rules: dict[str, int]
    ops: dict[str, int]
    miss: str = ""


def rewritten(fun: Callable[..., Any], params: Any, *args: Any, passes: str = PASSES) -> tuple[Graph, Report]:
    manager = PassManager(
        Pipeline.parse(passes), get_target("cpu"), strict=True, explain=True, instruments=[CheckStructure()]
    )
    count = len(jax.tree.leaves(params))
    paths = tuple(f"p{i}" for i in range(count))
    return manager.run(jax.make_jaxpr(fun)(params, *args), "f", frozenset(range(count)), paths)


def apply_of(graph: Graph, params: Any) -> Graph:
    return split(graph, range(len(jax.tree.leaves(params)))).apply


WANTED = ("add", "sub", "mul", "div", "neg", "dot_general", "conv_general_dilated")


def arithmetic(graph: Graph) -> dict[str, int]:
    """How often `apply` computes, outside of norms' statistics."""
    counts = Counter(node.op for node in graph.walk())
    return {op: counts[op] for op in WANTED if counts[op]}


def batch_norm(y: Any, p: Any) -> Any:
    return (y - p["m"]) * lax.rsqrt(p["v"] + 1e-5) * p["g"] + p["t"]


def conv(x: Any, w: Any, **options: Any) -> Any:
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    return lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def norm(c: int) -> dict[str, Any]:
    return {"m": numbers(c), "v": np.abs(numbers(c)) + 0.5, "g": numbers(c), "t": numbers(c)}


W, B, S = numbers(6, 4), numbers(4), numbers(6)
X = numbers(3, 6)
IMAGE = numbers(2, 5, 5, 4)
ONE_DOT = {"dot_general": 1}
ONE_CONV = {"add": 1, "conv_general_dilated": 1}


def block(p: Any, x: Any) -> Any:
    """Attention without its softmax: norm, three projections, scaled scores."""
    h = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * p["g"]
    q, k, v = [(h @ p[n]).reshape(2, 4, 2, 3).transpose(0, 2, 1, 3) for n in "qkv"]
    return jnp.einsum("bhts,bhsd->bhtd", jnp.einsum("bhtd,bhsd->bhts", q * 3**-0.5, k), v)


def layer_norm(p: Any, x: Any) -> Any:
    centred = x - jnp.mean(x, -1, keepdims=True)
    scale = lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + 1e-6) * p["s"]
    return (centred * scale + p["t"]) @ p["w"] + p["b"]


def scanned(p: Any, x: Any) -> Any:
    def layer(h: Any, p: Any) -> Any:
        return jnp.tanh((h @ p["w"] + p["b"]) * p["s"]), None

    return lax.scan(layer, x, p)[0]


TAKEN = {
    "hand-written batch norm": Case(
        lambda p, x: (x @ p["w"] + p["b"] - p["m"]) / jnp.sqrt(p["v"] + 1e-5) * p["g"] + p["t"],
        {"w": W, "b": B, **norm(4)},
        X,
        {AFTER: 1},
        {"add": 1, **ONE_DOT},
    ),
    "convolution": Case(
        lambda p, x: batch_norm(conv(x, p["w"]), p),
        {"w": numbers(3, 3, 4, 6), **norm(6)},
        IMAGE,
        {AFTER: 1},
        ONE_CONV,
    ),
    "depthwise": Case(
        lambda p, x: batch_norm(conv(x, p["w"], feature_group_count=4), p),
        {"w": numbers(3, 3, 1, 8), **norm(8)},
        IMAGE,
        {AFTER: 1},
        ONE_CONV,
    ),
    "transposed, channels first": Case(
        lambda p, x: (
            -lax.conv_general_dilated(
                x,
                p["w"],
                (1, 1),
                [(1, 1), (1, 1)],
                lhs_dilation=(2, 2),
                dimension_numbers=("NCHW", "OIHW", "NCHW"),
            )
            * p["s"][:, None, None]
        ),
        {"w": numbers(3, 5, 3, 3), "s": numbers(3)},
        numbers(2, 5, 4, 4),
        {AFTER: 1},
        {"conv_general_dilated": 1},
    ),
    "scale in front of grouped": Case(
        lambda p, x: conv(x * p["s"], p["w"], feature_group_count=2),
        {"w": numbers(3, 3, 2, 6), "s": numbers(4)},
        IMAGE,
        {BEFORE: 1},
        {"conv_general_dilated": 1},
    ),
    "shift in front, unpadded": Case(
        lambda p, x: conv(x / p["s"] - p["t"], p["w"], feature_group_count=2, padding="VALID") + p["b"],
        {"w": numbers(3, 3, 2, 6), "s": np.abs(numbers(4)) + 1, "t": numbers(4), "b": numbers(6)},
        IMAGE,
        {BEFORE: 2, AFTER: 1},
        ONE_CONV,
    ),
    "coefficient minus product, weight on the left": Case(
        lambda p, x: (p["b"] - jnp.einsum("oi,bi->ob", p["w"], x).T) * p["s"] - p["b"],
        {"w": W.T, "b": B, "s": numbers(4)},
        X,
        {AFTER: 1},
        {"add": 1, **ONE_DOT},
    ),
    "batched": Case(
        lambda p, x: jnp.einsum("ebi,eio->ebo", x * p["s"][:, None], p["w"]) * p["t"][:, None, :],
        {"w": numbers(2, 6, 4), "s": numbers(2, 6), "t": numbers(2, 4)},
        numbers(2, 3, 6),
        {BEFORE: 1, AFTER: 1},
        ONE_DOT,
    ),
    "heads": Case(
        lambda p, x: (x @ p["w"]).reshape(3, 2, 2).transpose(1, 0, 2) * p["s"][:, None, None] * p["t"],
        {"w": W, "s": numbers(2), "t": numbers(2)},
        X,
        {AFTER: 1},
        ONE_DOT,
    ),
    "mixed precision": Case(
        lambda p, x: lax.dot(x.astype(jnp.bfloat16), p["w"]).astype(jnp.float32) * p["s"] + p["b"],
        {"w": W.astype(jnp.bfloat16), "s": numbers(4), "b": B},
        X,
        {AFTER: 1},
        {"add": 1, **ONE_DOT},
    ),
    "a branch": Case(
        lambda p, x: lax.cond(x[0, 0] > 0, lambda: (x @ p["w"]) * p["s"], lambda: x[:, :4]),
        {"w": W, "s": B},
        X,
        {AFTER: 1},
        ONE_DOT,
    ),
    "block": Case(
        block,
        {"g": numbers(6), "q": numbers(6, 6), "k": numbers(6, 6), "v": numbers(6, 6)},
        numbers(2, 4, 6),
        {BEFORE: 1, AFTER: 1},
        {"add": 1, "mul": 2, "div": 1, "dot_general": 5},
    ),
    "layer norm": Case(
        layer_norm,
        {"s": S, "t": numbers(6), "w": W, "b": B},
        X,
        {BEFORE: 2, AFTER: 1},
        {"add": 2, "sub": 1, "mul": 2, "div": 2, "dot_general": 1},
    ),
    "adapter": Case(
        lambda p, x: x @ p["w"] + p["b"] + (x @ p["a"]) @ p["c"] * 0.5,
        {"w": W, "b": B, "a": numbers(6, 2), "c": numbers(2, 4)},
        X,
        {AFTER: 1, SUM: 1},
        {"add": 1, **ONE_DOT},
    ),
    "adapter of several axes": Case(
        lambda p, x: (
            jnp.einsum("bij,jik->bk", x, p["w"])
            + jnp.einsum("brs,srk->bk", jnp.einsum("bij,irjs->brs", x, p["a"]), p["c"])
        ),
        {"w": numbers(3, 2, 4), "a": numbers(2, 5, 3, 2), "c": numbers(2, 5, 4)},
        numbers(3, 2, 3),
        {SUM: 1},
        ONE_DOT,
    ),
    "layers of a scan": Case(
        scanned,
        {"w": numbers(3, 6, 6), "b": numbers(3, 6), "s": numbers(3, 6)},
        X,
        {AFTER: 1},
        {"add": 1, **ONE_DOT},
    ),
}

LEFT = {
    "activation between": Case(
        lambda p, x: jax.nn.relu(x @ p["w"]) * p["s"], {"w": W, "s": B}, X, {}, {"mul": 1, **ONE_DOT}
    ),
    "residual": Case(
        lambda p, x: (x @ p["w"] + x) * p["s"],
        {"w": numbers(6, 6), "s": S},
        X,
        {},
        {"add": 1, "mul": 1, **ONE_DOT},
    ),
    "also read elsewhere": Case(
        lambda p, x: (lambda y: (y * p["s"], y))(x @ p["w"]),
        {"w": W, "s": B},
        X,
        {},
        {"mul": 1, **ONE_DOT},
        "also read elsewhere",
    ),
    "along rows": Case(
        lambda p, x: (x @ p["w"]) * p["s"],
        {"w": W, "s": numbers(3, 1)},
        X,
        {},
        {"mul": 1, **ONE_DOT},
        "along other axes than the weight's",
    ),
    "tied weight": Case(
        lambda p, x: (x @ p["w"]) * p["s"] @ p["w"].T,
        {"w": W, "s": B},
        X,
        {},
        {"mul": 1, "dot_general": 2},
        "would be kept twice",
    ),
    "another branch": Case(
        lambda p, x: lax.cond(x[0, 0] > 0, lambda: (x @ p["w"]) * p["s"], lambda: x @ p["w"]),
        {"w": W, "s": B},
        X,
        {},
        {"mul": 1, "dot_general": 2},
        "would be kept twice",
    ),
    "decoded weight": Case(
        lambda p, x: (x @ p["w"].astype(jnp.float32)) * p["s"],
        {"w": np.ones((6, 4), np.int8), "s": B},
        X,
        {},
        {"mul": 1, **ONE_DOT},
        "made of something smaller",
    ),
    "late scale": Case(
        lambda p, x: (x @ p["w"]) * x[:, :4] * p["s"], {"w": W, "s": B}, X, {}, {"mul": 2, **ONE_DOT}
    ),
    "a reader that cannot": Case(
        lambda p, x: (lambda h: h @ p["w"] + h[:, :4])(x * p["s"]),
        {"w": W, "s": S},
        X,
        {},
        {"mul": 1, "add": 1, **ONE_DOT},
    ),
    "squared": Case(
        lambda p, x: (lambda h: (h * -h) @ p["w"])(x * p["s"]),
        {"w": W, "s": S},
        X,
        {},
        {"mul": 2, "neg": 1, **ONE_DOT},
    ),
    "padded shift": Case(
        lambda p, x: conv(x + p["t"], p["w"]) + p["b"],
        {"w": numbers(3, 3, 4, 6), "t": numbers(4), "b": numbers(6)},
        IMAGE,
        {},
        {"add": 2, "conv_general_dilated": 1},
        "pads it",
    ),
    "shift without a bias": Case(
        lambda p, x: (x + p["t"]) @ p["w"], {"w": W, "t": S}, X, {}, {"add": 1, **ONE_DOT}, "no bias follows"
    ),
    "float16": Case(
        lambda p, x: (x.astype(jnp.float16) @ p["w"]) * p["s"],
        {"w": W.astype(np.float16), "s": B.astype(np.float16)},
        X,
        {},
        {"mul": 1, **ONE_DOT},
    ),
    "adapters of different inputs": Case(
        lambda p, x: x @ p["w"] + (jnp.sin(x) @ p["a"]) @ p["c"],
        {"w": W, "a": numbers(6, 2), "c": numbers(2, 4)},
        X,
        {},
        {"add": 1, "dot_general": 3},
    ),
    "one bias": Case(lambda p, x: x @ p["w"] + p["b"], {"w": W, "b": B}, X, {}, {"add": 1, **ONE_DOT}),
}


@functools.cache
def program(name: str) -> tuple[Graph, Report]:
    case = {**TAKEN, **LEFT}[name]
    return rewritten(case.fun, case.params, case.x)


@pytest.mark.parametrize("name", [*TAKEN, *LEFT])
def test_what_is_taken_in_and_what_is_left(name: str) -> None:
    case = {**TAKEN, **LEFT}[name]
    graph, report = program(name)
    fired = {rule: count for rule, count in report.rules.items() if rule in (AFTER, BEFORE, SUM)}
    assert fired == case.rules
    assert arithmetic(apply_of(graph, case.params)) == case.ops
    assert not case.miss or any(case.miss in miss.reason for miss in report.misses)
    assert set(rewritten(to_callable_of(graph), case.params, case.x)[1].rules) <= {"early-value"}


def to_callable_of(graph: Graph) -> Callable[..., Any]:
    run = to_callable(graph)
    return lambda *args: run(*jax.tree.leaves(args))


def test_numbers_and_gradients_stay() -> None:
    graphs = {name: to_callable_of(program(name)[0]) for name in TAKEN}

    def total(fun: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(fun(*args)))

    @jax.jit
    def everything(given: Any) -> Any:
        found = {}
        for name, case in TAKEN.items():
            wanted = (0, 1) if name in ("depthwise", "layer norm", "adapter") else 1
            found[name] = [
                (jax.tree.leaves(fun(*given[name])), jax.grad(total(fun), wanted)(*given[name]))
                for fun in (case.fun, graphs[name])
            ]
        return found

    given = {name: (case.params, case.x) for name, case in TAKEN.items()}
    for name, (before, after) in everything(given).items():
        tolerance = 5e-2 if name == "mixed precision" else 2e-4
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
            np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance * np.abs(a).max(), err_msg=name)


def test_batch_norm_leaves_a_convolution_and_a_bias() -> None:
    case = TAKEN["convolution"]
    assert apply_of(program("convolution")[0], case.params).to_text() == GOLDEN
    fun = to_callable_of(program("convolution")[0])
    assert jax.export.export(jax.jit(fun))(case.params, case.x).mlir_module_serialized
    many = jax.eval_shape(jax.vmap(fun, (None, 0)), case.params, case.x[None])
    assert [each.shape for each in many] == [(1, 2, 5, 5, 6)]
    with jax.numpy_dtype_promotion("strict"):
        for name in ("mixed precision", "adapter", "layer norm"):
            mixed = TAKEN[name]
            assert rewritten(mixed.fun, mixed.params, mixed.x)[1].rules == program(name)[1].rules


GOLDEN = """\
graph f(%0: f32[1,1,1,6], %1: f32[3,3,4,6], %2: f32[2,5,5,4]) {
  %3: f32[2,5,5,6] = conv_general_dilated[batch_group_count=1 dimension_numbers=\
ConvDimensionNumbers(lhs_spec=(0,3,1,2),rhs_spec=(3,2,0,1),out_spec=(0,3,1,2)) feature_group_count=1 \
lhs_dilation=(1,1) padding=((1,1),(1,1)) rhs_dilation=(1,1) window_strides=(1,1)] %2 %1
  %4: f32[2,5,5,6] = add %3 %0
  return %4
}"""


def test_nothing_happens_unless_parameters_are_known() -> None:
    case = TAKEN["convolution"]
    graph, report = rewritten(lambda _, x: case.fun(case.params, x), (), case.x)
    assert not report.rules.get(AFTER) and arithmetic(graph)["mul"] == 2
    _, report = rewritten(lambda _, *args: case.fun(*args), (), case.params, case.x)
    assert not report.rules.get(AFTER)


def test_nan_and_infinities_of_the_input_stay() -> None:
    case = TAKEN["hand-written batch norm"]
    x = np.array([[np.nan, 1, 1, 1, 1, 1], [np.inf, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, -0.0]], np.float32)
    after = to_callable_of(program("hand-written batch norm")[0])(case.params, x)[0]
    np.testing.assert_allclose(after, case.fun(case.params, x), rtol=1e-4)
    assert np.isfinite(np.asarray(after)).all(1).tolist() == [False, False, True]


# Models


def stage(p: Any, x: Any) -> Any:
    """Two convolutions with batch norms and a shortcut, as in ResNet-20."""
    y = jax.nn.relu(batch_norm(conv(x, p[0]["w"]), p[0]))
    return jax.nn.relu(batch_norm(conv(y, p[1]["w"]), p[1]) + x)


def residual_network(p: Any, x: Any) -> Any:
    x = jax.nn.relu(batch_norm(conv(x, p["stem"]["w"]), p["stem"]))
    for each in p["stages"]:
        x = stage(each, x)
    return x.mean((1, 2)) @ p["head"] + 1


def test_a_residual_network_has_no_batch_norm_left() -> None:
    def layer() -> dict[str, Any]:
        return {"w": numbers(3, 3, 4, 4) / 6, **norm(4)}

    stages = [[layer(), layer()] for _ in range(9)]
    params = {"stem": layer(), "stages": stages, "head": W[:4]}
    graph, report = rewritten(residual_network, params, IMAGE)
    assert report.rules[AFTER] == 19 and report.rules[BEFORE] == 1  # the norms, and the mean over pixels
    found = arithmetic(apply_of(graph, params))
    assert found == {"conv_general_dilated": 19, "add": 19 + 9 + 1, "dot_general": 1}
    result = to_callable_of(graph)(params, IMAGE)[0]
    np.testing.assert_allclose(result, residual_network(params, IMAGE), rtol=1e-3, atol=1e-3)


def shaken(tree: Any) -> Any:
    """Other numbers than the initial ones and zeros; those that were positive everywhere stay so."""
    return jax.tree.map(
        lambda a: a * (1 + 0.3 * np.abs(numbers(*a.shape))) + (0.1 if a.ndim == 1 else 0.0), tree
    )


class Net(equinox.Module):
    conv: equinox.nn.Conv2d
    norm: Any
    linear: equinox.nn.Linear

    def __init__(self, key: Any) -> None:
        self.conv = equinox.nn.Conv2d(3, 4, 3, key=key)
        self.norm = equinox.nn.BatchNorm(4, "batch", mode="batch")
        self.linear = equinox.nn.Linear(4, 2, key=key)

    def __call__(self, x: Any, state: Any) -> Any:
        y, _ = self.norm(self.conv(x), state)
        return self.linear(jax.nn.relu(y).mean((1, 2)))


class Cnn(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.linear = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.linear(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


def test_norms_of_flax_and_equinox_go() -> None:
    net, state = equinox.nn.make_with_state(Net)(jax.random.key(0))
    arrays, static = equinox.partition(equinox.nn.inference_mode((net, state)), equinox.is_array)

    def of_equinox(p: Any, x: Any) -> Any:
        net, state = equinox.combine(p, static)
        return jax.vmap(net, axis_name="batch", in_axes=(0, None))(x, state)

    class Layers(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.BatchNorm(use_running_average=True)(linen.Conv(4, (3, 3), use_bias=False)(x))
            return linen.Dense(2)(linen.relu(x).mean((1, 2)))

    module = Cnn(nnx.Rngs(0))
    module.eval()  # type: ignore[no-untyped-call]
    definition, weights = nnx.split(module)
    layers, x = Layers(), numbers(2, 5, 5, 3)
    variables = shaken(layers.init(jax.random.key(0), x))
    cases: list[tuple[Callable[..., Any], Any, Any]] = [
        (of_equinox, arrays, np.moveaxis(x, -1, 1)),
        (lambda p, x: layers.apply(p, x), variables, x),
        (lambda p, x: nnx.merge(definition, p)(x), shaken(weights), x),
    ]
    pairs = []
    for fun, params, sample in cases:
        graph, _ = rewritten(fun, params, sample, passes="inline,dce,movement,absorb,early,cse,dce")
        found = arithmetic(apply_of(graph, params))
        assert found == {"add": 2, "dot_general": 1, "conv_general_dilated": 1}
        pairs.append((fun, to_callable_of(graph)))
    given = [(params, sample) for _, params, sample in cases]
    both = jax.jit(lambda given: [[f(*args) for f in pair] for pair, args in zip(pairs, given, strict=True)])
    for expected, (result,) in both(given):
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("passes", ["default,absorb", "cleanup,absorb,default"])
def test_other_passes_neither_hide_nor_undo_it(passes: str) -> None:
    for name in ("convolution", "hand-written batch norm", "layer norm", "adapter", "layers of a scan"):
        case = TAKEN[name]
        graph, report = rewritten(case.fun, case.params, case.x, passes=f"{passes},early,cse,dce")
        found = arithmetic(apply_of(graph, case.params))
        assert sum(found.values()) <= sum(case.ops.values()), name
        assert sum(report.rules.get(rule, 0) for rule in (AFTER, BEFORE, SUM)) == sum(case.rules.values()), (
            name
        )


def test_quantisation_takes_the_folded_weights() -> None:
    case = TAKEN["convolution"]
    model = lepton.compile(case.fun, case.params, case.x, passes="default,absorb,quantize")
    rules = model.report().passes.rules
    assert rules[AFTER] == 1 and rules["quantized-weight"] == 1
    assert model.nbytes < 0.5 * model.report().bytes_before
    expected = case.fun(case.params, case.x)
    np.testing.assert_allclose(model(case.x), expected, atol=0.03 * float(jnp.abs(expected).max()))
