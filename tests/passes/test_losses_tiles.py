"""Losses: logits that are never whole in memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from lepton_jax.ir.export import to_callable
from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import Report
from tests.passes._check import all_kept, check, kept, optimised, run, same

PASSES = (
    "inline,dce,fixpoint(fold,algebra,movement,cse,dce),losses{tile=0.03,least=0.2},"
    "fixpoint(fold,algebra,movement,cse,dce)"
)
TOKENS, WIDTH, CLASSES = 256, 16, 512

Loss = Callable[..., jax.Array]


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def labels(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(2).integers(0, CLASSES, size=shape), jnp.int32)


def flat(dtype: Any = jnp.float32, tokens: int = TOKENS) -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(tokens, WIDTH, dtype=dtype), normal(WIDTH, CLASSES, seed=1, dtype=dtype), labels(tokens)


def batched() -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(2, TOKENS, WIDTH), normal(WIDTH, CLASSES, seed=1), labels(2, TOKENS)


def along_axis(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """Mean negative log-likelihood."""
    return -jnp.take_along_axis(jax.nn.log_softmax(h @ w), y[..., None], axis=-1).mean()


def one_hot(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """The same with one-hot labels."""
    return -(jax.nn.one_hot(y, CLASSES) * jax.nn.log_softmax(h @ w)).sum(-1).mean()


def by_row_number(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """The same by indexing."""
    return -jax.nn.log_softmax(h @ w)[jnp.arange(TOKENS), y].mean()


def by_row_numbers(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """The same by indexing two dimensions of rows."""
    rows = jnp.arange(2)[:, None], jnp.arange(TOKENS)[None, :]
    return -jax.nn.log_softmax(h @ w)[*rows, y].mean()


def reshaped(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """The same on flattened logits."""
    logits = (h @ w).reshape(-1, CLASSES)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y.reshape(-1)[:, None], axis=-1).mean()


def tied(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """With the weights of an embedding."""
    return along_axis(h, w.T, y)


def with_extras(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """Soft-cap, labels that do not count, label smoothing, and a penalty on the normaliser."""
    logits = 30.0 * jnp.tanh((h @ w).astype(jnp.float32) / 30.0)
    norm = jax.nn.logsumexp(logits, axis=-1)
    counts = y != 3
    picked = jnp.take_along_axis(logits, y[:, None], axis=-1)[:, 0]
    loss = norm - 0.9 * picked - 0.1 * logits.mean(-1) + 1e-4 * norm**2
    return jnp.where(counts, loss, 0.0).sum() / counts.sum()


def with_bias(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """With a bias, and what was predicted right."""
    logits = h @ w + w[0]
    right = jnp.argmax(logits, -1) == y
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1)
    return loss.mean() + right.mean()


def not_stabilised(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """The normaliser as the definition has it."""
    logits = h @ w
    return (jnp.log(jnp.exp(logits).sum(-1)) - logits[jnp.arange(TOKENS), y]).mean()


def softmax_over_tokens(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """A normaliser over the tokens: the classes are the rows."""
    return jax.nn.logsumexp(h @ w, axis=0).mean() + y.mean()


LOSSES: list[tuple[Loss, Callable[[], tuple[jax.Array, ...]]]] = [
    (along_axis, flat),
    (along_axis, batched),
    (one_hot, flat),
    (by_row_number, flat),
    (by_row_numbers, batched),
    (reshaped, batched),
    (tied, lambda: (normal(TOKENS, WIDTH), normal(CLASSES, WIDTH, seed=1), labels(TOKENS))),
    (with_extras, flat),
    (with_bias, flat),
    (not_stabilised, flat),
    (softmax_over_tokens, flat),
]
IDS = [f"{loss.__name__}-{i}" for i, (loss, _) in enumerate(LOSSES)]


def sizes(text: str) -> list[int]:
    """The elements of every array in a graph's text, of those with known shapes."""
    shapes = re.findall(r"f(?:16|32|64)\[([\d,]+)\]", text)
    return [int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes]


def check_tiled(fun: Callable[..., Any], args: tuple[jax.Array, ...], logits: int = TOKENS * CLASSES) -> None:
    """Assert that no array of the size of the logits is left, the numbers stay, and twice is once."""
    assert_tiled(*kept(fun, *args, passes=PASSES, grad=False, vmap=False, export=False), logits)


def assert_tiled(graph: Graph, report: Report, logits: int = TOKENS * CLASSES) -> None:
    """Assert that no array of the size of the logits is left."""
    assert report.rules["tiled-logits"] == 1
    assert max(sizes(graph.to_text())) <= logits // 2


def test_forward() -> None:
    programs = {name: (loss, make()) for name, (loss, make) in zip(IDS, LOSSES, strict=True)}
    for graph, report in all_kept(programs, passes=PASSES).values():
        assert_tiled(graph, report)


def test_forward_and_backward_in_one_loop() -> None:
    programs = {
        name: (jax.value_and_grad(loss, (0, 1)), make())
        for name, (loss, make) in zip(IDS, LOSSES, strict=True)
    }
    found = all_kept(programs, passes=PASSES, grad=False, vmap=False, export=False)
    for name, (graph, report) in found.items():
        assert_tiled(graph, report)
        text = graph.to_text()
        assert text.count(" = scan[") == 1, name
        assert text.count(" = dot_general[") == 3, name


def test_golden() -> None:
    def loss(h: jax.Array, w: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(h @ w, axis=-1)

    h, w, _ = flat()
    text = optimised(loss, h, w, passes=PASSES).to_text()
    text = re.sub(r"dot_general\[.*\] ", "DOT ", text)
    assert re.sub(r"(remat2|checkpoint)\[.*?\] ", "REMAT ", text).strip() == GOLDEN.strip()


GOLDEN = """graph loss(%0: f32[256,16], %1: f32[16,512]) {
  %2: f32[16,16,16] = reshape[new_sizes=(16,16,16)] %0
  %3: f32[16,16] = broadcast_in_dim[broadcast_dimensions=() shape=(16,16)] 0.0
  %4: f32[16,16], %5: f32[16,16] = scan[length=16 num_carry=0 num_consts=1 reverse=False unroll=1] %1 %2 %3 {
    region body(%0: f32[16,512], %1: f32[16,16], %2: f32[16]) {
      %3: f32[16], %4: f32[16] = REMAT %1 %2 %0 {
        region body(%0: f32[16,16], %1: f32[16], %2: f32[16,512]) {
          %3: f32[16,512] = DOT %0 %2
          %4: f32[16] = reduce_max[axes=(1,)] %3
          %5: bool[16] = is_finite %4
          %6: f32[16] = select_n %5 %1 %4
          %7: f32[16] = stop_gradient %6
          %8: f32[16,1] = broadcast_in_dim[broadcast_dimensions=(0,) shape=(16,1)] %7
          %9: f32[16,512] = sub %3 %8
          %10: f32[16,512] = exp[accuracy=None] %9
          %11: f32[16] = reduce_sum[axes=(1,)] %10
          return %7, %11
        }
      }
      return %3, %4
    }
  }
  %6: f32[256] = reshape[new_sizes=(256,)] %4
  %7: f32[256] = reshape[new_sizes=(256,)] %5
  %8: f32[256] = log[accuracy=None] %7
  %9: f32[256] = add %8 %6
  return %9
}
"""


def test_tokens_that_leave_a_rest() -> None:
    h, w, y = flat(tokens=251)
    graph = same(along_axis, h, w, y, passes=PASSES)
    assert "f32[11,512]" in graph.to_text()
    check_tiled(jax.value_and_grad(along_axis, (0, 1)), (h, w, y), 251 * CLASSES)


def test_bfloat16() -> None:
    def loss(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
        logits = (h @ w).astype(jnp.float32)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1).mean()

    h, w, y = flat(jnp.bfloat16, 2 * TOKENS)
    check_tiled(loss, (h, w, y), 2 * TOKENS * CLASSES)
    step = jax.value_and_grad(loss, (0, 1))
    graph, report = run(step, h, w, y, passes=PASSES)
    assert report.rules["tiled-logits"] == 1
    value, (rows, weights) = step(h, w, y)
    results = to_callable(graph)(h, w, y)
    assert [r.dtype for r in results] == [jnp.float32, jnp.bfloat16, jnp.bfloat16]
    check(value, results[0])
    check([rows, weights], results[1:])


def test_numbers_that_are_not_finite() -> None:
    h, w, y = flat()
    flat_fun = to_callable(optimised(along_axis, h, w, y, passes=PASSES))
    both = jax.jit(lambda h: (along_axis(h, w, y), flat_fun(h, w, y)[0]))
    for bad in (jnp.nan, jnp.inf, -jnp.inf, 1e30):
        expected, result = both(h.at[7, 3].set(bad))
        np.testing.assert_array_equal(np.isnan(expected), np.isnan(result))


def test_labels_out_of_bounds() -> None:
    h, w, y = flat()

    def losses(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.take_along_axis(jax.nn.log_softmax(h @ w), y[:, None], axis=-1)

    y = y.at[3].set(CLASSES + 5).at[4].set(-2)
    (result,) = to_callable(optimised(losses, h, w, y, passes=PASSES))(h, w, y)
    assert np.isnan(result[3, 0])
    check(losses(h, w, y), result)


def test_differentiated_later() -> None:
    """Forward mode, reverse mode, and reverse over reverse of the rewritten loss."""
    h, w, y = flat()

    def later(f: Loss) -> list[Any]:
        def norm(w: jax.Array) -> Any:
            return (jax.grad(f, 1)(h, w, y) ** 2).sum()

        few = h[:, :2], w[:2], y
        return [jax.jacfwd(f)(*few), jax.value_and_grad(f, (0, 1))(h, w, y), jax.grad(norm)(w)]

    pipelines = [PASSES, PASSES.replace("least=0.2", "least=0.2,recompute=0.1")]
    losses: list[Loss] = [along_axis, *(lepton.optimize(along_axis, passes) for passes in pipelines)]
    expected, *found = jax.jit(lambda: [later(loss) for loss in losses])()
    for result in found:
        check(expected, result)


def temporary(fun: Any, *args: jax.Array) -> int:
    """Bytes of temporaries of a compiled function."""
    analysis = jax.jit(fun).lower(*args).compile().memory_analysis()
    assert analysis is not None
    return int(analysis.temp_size_in_bytes)


@pytest.mark.parametrize("inside", [False, True], ids=["grad-outside", "grad-inside"])
def test_memory(inside: bool) -> None:
    """Temporaries do not grow with the number of tokens, but for the rows themselves."""
    passes = PASSES.replace("least=0.2", "least=0.2,recompute=0.1")

    def step(tokens: int) -> tuple[int, int]:
        args = flat(tokens=tokens)
        naive = jax.value_and_grad(along_axis, (0, 1))
        if inside:
            return temporary(naive, *args), temporary(lepton.optimize(naive, passes), *args)
        rewritten = lepton.optimize(along_axis, passes)
        return temporary(naive, *args), temporary(jax.value_and_grad(rewritten, (0, 1)), *args)

    few, many = step(512), step(4096)
    rows = 4 * 4 * WIDTH * (4096 - 512)
    assert many[0] > 4096 * CLASSES * 4
    assert many[1] < 4096 * CLASSES * 4 // 8
    assert many[1] - few[1] < 4 * rows


def test_loop_over_microbatches() -> None:
    h, w, y = flat()

    def total(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
        def step(s: jax.Array, xs: Any) -> tuple[jax.Array, None]:
            return s + along_axis(xs[0], w, xs[1]), None

        out: jax.Array = jax.lax.scan(step, jnp.zeros(()), (jnp.stack([h] * 2), jnp.stack([y] * 2)))[0]
        return out

    check_tiled(total, (h, w, y))
