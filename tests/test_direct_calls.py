"""After a first call, a call of an optimised function is a call of jit's own function."""

from __future__ import annotations

import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import io_callback

import lepton_jax as lepton
from lepton_jax._api import Optimized


def direct(fun: Any) -> bool:
    return type(fun).__dict__["__call__"] is not Optimized.__dict__["__call__"]


def twice(x: Any) -> Any:
    return x * 2.0


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no rewritten program can be evaluated."""

    def fail(*_: Any) -> Any:
        raise ValueError("no")

    monkeypatch.setattr("lepton_jax._stage.evaluate", fail)
    monkeypatch.setenv("LEPTON_STRICT", "0")


def test_the_same_function_after_the_first_call() -> None:
    f = lepton.optimize(twice)
    f.lower(jnp.ones(2))
    assert not direct(f)
    f(jnp.ones(2))
    assert direct(f) and isinstance(f, Optimized) and repr(f) == "<lepton.optimize of twice>"
    np.testing.assert_array_equal(f(x=jnp.ones(3)), [2.0, 2.0, 2.0])
    assert f.trace(jnp.ones(3)).graph.num_nodes() == 1
    assert float(jax.grad(lambda x: f(x).sum())(jnp.float32(1.0))) == 2.0
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        f(y=1)  # type: ignore[call-arg]


def test_methods_stay_bound() -> None:
    class Scaled:
        scale = 3.0

        @lepton.optimize
        def times(self, x: Any) -> Any:
            return x * 3.0

    jax.tree_util.register_static(Scaled)
    for _ in range(2):
        assert float(Scaled().times(jnp.float32(2.0))) == 6.0


def test_a_later_shape_that_cannot_be_evaluated_runs_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    f = lepton.optimize(lambda x: x * 2.0)
    f(jnp.ones(2))
    failing(monkeypatch)
    with pytest.warns(lepton.PassWarning, match="as plain jax.jit"):
        np.testing.assert_array_equal(f(jnp.ones(3)), [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(f(jnp.ones(3)), [2.0, 2.0, 2.0])


def test_effects_happen_once_where_a_program_cannot_be_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    @lepton.optimize
    def noted(x: Any) -> Any:
        io_callback(lambda v: seen.append(float(v)), None, x, ordered=True)
        return x * 2.0

    noted(jnp.float32(1.0))
    assert not direct(noted)
    failing(monkeypatch)
    with pytest.warns(lepton.PassWarning, match="as plain jax.jit"):
        assert int(noted(jnp.int32(3))) == 6
    jax.effects_barrier()
    assert seen == [1.0, 3.0]


def test_modules_after_arrays() -> None:
    class Counter(nnx.Module):
        def __init__(self) -> None:
            self.count = nnx.Variable(jnp.zeros(()))

    @lepton.optimize
    def step(counter: Any, x: Any) -> Any:
        if isinstance(counter, Counter):
            counter.count[...] += 1
        return x * 2.0

    step(jnp.ones(()), jnp.ones(2))
    counter = Counter()
    with pytest.raises(Exception, match="call the function again"):
        step(counter, jnp.ones(2))
    step(counter, jnp.ones(2))
    assert float(counter.count[...]) == 1.0
    np.testing.assert_array_equal(step(jnp.ones(()), jnp.ones(2)), [2.0, 2.0])


def test_threads_that_make_the_first_call_together() -> None:
    f = lepton.optimize(lambda x: x @ x)
    start, results = threading.Barrier(4), []

    def call(size: int) -> None:
        start.wait()
        results.append(float(f(jnp.ones((size, size)))[0, 0]))

    threads = [threading.Thread(target=call, args=(size,)) for size in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [1.0, 2.0, 3.0, 4.0] and direct(f)
