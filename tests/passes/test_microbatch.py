"""A step in parts of its batch: the same numbers, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.ir import trace
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.ir.export import evaluate
from lepton_jax.numerics.compare import compare_trees
from lepton_jax.parallel.microbatches.numbered import tie_numbered_rows
from tests.parallel import models
from tests.passes._check import optimised

Step = Callable[..., Any]
RNG = np.random.default_rng(0)
FAST: Any = {"xla_backend_optimization_level": 0}


def array(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.3, shape).astype("f")


def step(loss: Step) -> Step:
    """One step of gradient descent."""

    def run(params: Any, *batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, *batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    return run


def images(params: Any, x: Any, labels: Any, key: Any) -> tuple[Any, Any]:
    """A convnet: depthwise, pooling, a tied scale, dropout; the mean over the labels that count.

    Beside it a loss for each example, and what needs a maximum and an `any` over the examples.
    """
    numbers = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(x, params["first"], (1, 1), "SAME", dimension_numbers=numbers)
    x = jax.nn.relu(x * params["scale"])
    x = lax.conv_general_dilated(
        x, params["each"], (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=4
    )
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    keep = jax.random.bernoulli(jax.random.fold_in(key, 3), 0.8, x.shape)
    x = jnp.where(keep, x / 0.8, 0.0)
    logits = x.reshape(x.shape[0], -1) @ params["head"]
    picked = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], -1)[:, 0]
    losses, mask = jax.nn.logsumexp(logits, -1) - picked, labels >= 0
    loss = jnp.sum(losses * mask) / jnp.sum(mask) + jnp.sum(params["scale"] ** 2)
    return loss, (losses, jnp.max(losses), jnp.any(logits.argmax(-1) == 1))


def images_step(params: Any, x: Any, labels: Any, key: Any) -> Any:
    (value, others), grads = jax.value_and_grad(images, has_aux=True)(params, x, labels, key)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value, others


def numbered(params: Any, x: Any, lengths: Any, labels: Any) -> Any:
    """Examples that are found by their own number: read, written, with what else is picked, in a loop."""
    h, rows = jnp.tanh(x @ params["embed"].T), jnp.arange(x.shape[0])
    last = h[rows, lengths]
    picked = jax.nn.log_softmax(last)[rows, labels[:, 0]]
    margins = jnp.maximum(0, last - picked[:, None] + 1).at[rows, labels[:, 0]].set(0)
    tokens = jax.nn.log_softmax(h)[rows[:, None], np.arange(x.shape[1]), labels]
    mask = labels >= 0

    def body(total: Any, each: Any) -> tuple[Any, None]:
        own, label = each
        return total - jax.nn.log_softmax(own)[rows, label].sum(), None

    total, _ = lax.scan(body, 0.0, (h.swapaxes(0, 1), labels.T))
    return margins.mean() - jnp.mean(tokens, where=mask) + jnp.sum(tokens * mask) / jnp.sum(mask) + total


def looped(params: Any, ids: Any) -> Any:
    """Regions: remat and attention in a scan, a while loop, a branch, random numbers in a loop, own rules."""

    @jax.checkpoint
    def layer(h: Any, w: Any) -> Any:
        scores = jax.nn.softmax(jnp.einsum("btd,bsd->bts", h @ w, h))
        return h + jnp.tanh(scores @ h) + params["bias"]

    def body(carry: tuple[Any, Any], w: Any) -> Any:
        h, key = carry
        key, own = jax.random.split(key)
        h = layer(h, w) * jax.random.bernoulli(own, 0.9, h.shape)
        return (h, key), (h**2).mean(-1)

    (h, _), seen = lax.scan(body, (params["embed"][ids], KEY), params["layers"])
    h = lax.cond(params["bias"][0] > 0, lambda h: h * 2, lambda h: jnp.zeros_like(h), h)
    h = lax.fori_loop(0, 3, lambda i, h: h * 0.5 + jnp.arange(h.shape[0])[:, None, None] * i, h)
    return jnp.mean(h**2) + jnp.sum(jax.nn.silu(jax.nn.relu(seen)))


BATCH = 8
KEY = jax.random.key(1, impl="unsafe_rbg")  # compiles sooner than threefry
LAYERS = {"embed": array(5, 4), "layers": array(3, 4, 4), "bias": np.full(4, 0.1, "f")}
CONVNET = {"first": array(3, 3, 3, 4), "each": array(3, 3, 1, 4), "scale": array(4), "head": array(16, 5)}
LABELS = np.array([1, -1, 2, 0, 4, -1, 3, 1], np.int32)


TOKENS = (np.arange(BATCH * 3, dtype=np.int32) * 7 % 6 - 1).reshape(BATCH, 3)


def programs() -> dict[str, tuple[Step, tuple[Any, ...]]]:
    mlp = models.mlp()
    return {
        "mlp": (step(mlp.loss), (mlp.params, *mlp.batch)),
        "images": (images_step, (CONVNET, array(BATCH, 8, 8, 3), LABELS, KEY)),
        "numbered": (step(numbered), (LAYERS, array(BATCH, 3, 4), LABELS % 3, TOKENS)),
    }


def test_a_loop_over_parts_gives_what_the_whole_batch_gives() -> None:
    """Values, new parameters, gradients of and under the pass, examples of neighbours and apart."""
    given = programs()
    wholes = {name: fun for name, (fun, _) in given.items()}
    passes = {"mlp": "default,microbatch{count=2}", "images": "microbatch{count=4,interleaved=true}"}
    passes["numbered"] = passes["images"]
    parts = {name: lepton.optimize(fun, passes[name], params=0, strict=True) for name, fun in wholes.items()}
    mlp = models.mlp()
    cut = lepton.optimize(mlp.loss, "microbatch{count=4}", params=0, strict=True)
    twice = [jnp.stack([each, each * 2]) for each in mlp.batch]

    def run(funs: Any, loss: Step, args: Any, pairs: Any) -> Any:
        found = {name: fun(*args[name]) for name, fun in funs.items()}
        found["vmap"] = jax.vmap(jax.value_and_grad(loss, (0, 1)), (None, 0, 0))(mlp.params, *pairs)
        return found

    inputs = {name: each for name, (_, each) in given.items()}
    both = jax.jit(
        lambda *each: (run(wholes, mlp.loss, *each), run(parts, cut, *each)), compiler_options=FAST
    )
    want, got = both(inputs, twice)
    for name in want:
        found = compare_trees(want[name], got[name])
        assert found.ok, f"{name}: {found}"
        assert name not in parts or parts[name].report.rules["loop-over-batch"] == 1, name


def test_the_loop() -> None:
    def small(w: Any, x: Any) -> Any:
        loss, grad = jax.value_and_grad(lambda w: jnp.sum((x @ w) ** 2))(w)
        return w - grad, loss, (x @ w)[:, 0]

    args = jnp.ones((3, 2), jnp.bfloat16), jnp.ones((8, 3), jnp.bfloat16)
    graph = optimised(small, *args, passes="microbatch{count=4},cse,dce")
    (loop,) = [node for node in graph if node.op == "scan"]
    assert loop.params["length"] == 4
    carried = [str(value.aval.str_short()) for value in loop.results]
    assert sorted(carried) == ["bfloat16[4,2]", "float32[2,3]", "float32[]"]
    assert [node.op for node in loop.regions[0]].count("dot_general") == 2
    again = optimised(small, *args, passes="microbatch{count=4},cse,dce,microbatch{count=4}")
    assert again.to_text() == graph.to_text()
    assert not any(n.op == "scan" for n in optimised(small, *args, passes="microbatch{count=1}"))
    assert not any(n.op == "scan" for n in optimised(small, *args, passes="microbatch", level="exact"))


def test_memory_falls() -> None:
    """Temporary memory of a step whose layers are in a loop; the results are the same."""
    args = LAYERS, np.arange(4096, dtype=np.int32).reshape(-1, 16) % 5
    sizes, results = {}, {}
    for count in (1, 4):
        run = lepton.optimize(step(looped), "none", microbatches=count, strict=True)
        compiled = run.lower(*args).compile(FAST)
        sizes[count] = compiled.memory_analysis().temp_size_in_bytes
        results[count] = compiled(*args)
    assert sizes[4] < 0.3 * sizes[1], sizes
    found = compare_trees(results[1], results[4])
    assert found.ok, found


def batch_norm(w: Any, x: Any) -> Any:
    h = x @ w
    return jnp.mean(((h - h.mean(0)) / h.std(0)) ** 3)


def contrastive(w: Any, x: Any) -> Any:
    h = x @ w
    return jnp.mean(jax.nn.log_softmax(h @ h.T)[0])


def in_order(w: Any, x: Any) -> Any:
    return jnp.sort((x @ w)[:, 0])[:2].sum()


def along(w: Any, x: Any) -> Any:
    return lax.scan(lambda c, row: (c * 0.9 + (row @ w).sum(), None), 0.0, x)[0]


def reversed_rows(w: Any, x: Any) -> Any:
    return (x @ w)[jnp.arange(x.shape[0])[::-1], jnp.zeros(x.shape[0], int)].sum()


def root(w: Any, x: Any) -> Any:
    return jax.grad(lambda w: jnp.sqrt(jnp.mean((x @ w) ** 2)))(w)


def shown(w: Any, x: Any) -> Any:
    h = x @ w
    jax.debug.print("{}", h)
    return h.sum()


@pytest.mark.parametrize(
    ("fun", "operation"),
    [
        (batch_norm, "sub .* from reduce_sum"),
        (contrastive, "dot_general needs all examples"),
        (in_order, "sort needs all examples"),
        (along, "scan goes along the batch"),
        (reversed_rows, "finds examples by their number .*take_along_axis"),
        (root, "mul .* functions of a mean loss"),
        (shown, "debug_.* needs all examples"),
    ],
)
def test_what_needs_all_examples_is_named(fun: Step, operation: str) -> None:
    run = lepton.optimize(fun, 'microbatch{count=4,batch="x"}', params="w")
    with pytest.raises(lepton.UsageError, match=operation) as error:
        run.trace(array(4, 4), array(BATCH, 4))
    assert "test_microbatch.py" in str(error.value)


def test_numbered_rows_are_tied_without_a_change_of_a_bit() -> None:
    """Gathers and scatters of all modes, indices out of bounds too; what counts otherwise stays."""
    x, at = array(6, 5, 4), np.array([0, -1, 4, 7, 2, -9], np.int32)

    def own(x: Any, i: Any, mode: Any) -> list[Any]:
        rows, places = jnp.arange(6), x[:, 0]
        found = [
            x.at[rows, i].get(mode=mode),
            x.at[i, :, rows % 4].get(mode=mode),
            places.at[i, rows % 4].get(),
        ]
        found += [x.at[rows, i, 1].get(mode=mode), x.at[rows[:, None], i[:4], 3].get(mode=mode)]
        found += [x.at[rows, i].add(places, mode=mode), x.at[rows, i].set(places, mode=mode)]
        return [*found, x.at[rows, i, 2].max(i * 1.0, mode=mode), x[rows[::-1], i], x[rows[:5], i[:5]]]

    def every(x: Any, i: Any) -> list[Any]:
        return [each for mode in ("clip", "fill", "drop") for each in own(x, i, mode)]

    graph = inline_calls(trace(every, x, at))
    tie_numbered_rows(graph)
    want, got = jax.jit(lambda *each: (every(*each), evaluate(graph, each)))(x, at)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(want, got, strict=True))
    tied = [
        n.params["dimension_numbers"].operand_batching_dims for n in graph if n.op in ("gather", "scatter")
    ]
    assert tied.count((0,)) == 3 * 4 and tied.count(()) == 3 * 4


def test_errors_say_what_would_do() -> None:
    mlp = models.mlp()
    args = mlp.params, *mlp.batch
    with pytest.raises(lepton.UsageError, match=r"x has 8 examples, which 3 .* 2 or 4 would do"):
        lepton.optimize(mlp.loss, microbatches=3, params=0).trace(*args)
    with pytest.raises(lepton.UsageError, match="over 4 parts of its batch already"):
        lepton.optimize(mlp.loss, "microbatch{count=4},microbatch{count=2}", params=0).trace(*args)
    with pytest.raises(lepton.PipelineError, match="count is at least 1"):
        lepton.optimize(mlp.loss, "microbatch{count=0}")
    with pytest.raises(ValueError, match="on a mesh also 'auto'"):
        lepton.optimize(mlp.loss, microbatches="auto")
    with pytest.raises(lepton.UsageError, match="have not the same leading size"):
        lepton.optimize(mlp.loss, 'microbatch{batch="x params/w0"}', params=0).trace(*args)
    named = lepton.optimize(mlp.loss, 'microbatch{batch="x y"}', params=0, strict=True)
    counted = lepton.optimize(mlp.loss, 'microbatch{batch="4 5"}', strict=True)
    assert named.trace(*args).graph.to_text() == counted.trace(*args).graph.to_text()
