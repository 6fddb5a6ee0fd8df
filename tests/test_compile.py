"""Models from `compile`: of functions and modules, with a report, calibrated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import lepton_jax as lepton
from lepton_jax import CalibrationError, PrepareError, UsageError
from tests.small_model import PARAMS, X, close, forward


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.dropout(self.norm(self.layers[0](x)))

    def double(self, x: Any) -> Any:
        return 2 * self(x)


class Recurrent(nnx.Module):
    """It draws a key for each first state, which is zeros."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs), rngs=rngs)
        self.second = nnx.RNN(nnx.GRUCell(4, 4, rngs=rngs), rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.second(self.first(x))


def _mapped(mlp: Any, x: Any) -> Any:
    """Of a module whose activation functions are leaves as well."""
    return jax.vmap(mlp)(x)


def test_compile_takes_functions_and_modules() -> None:
    module = Block(nnx.Rngs(0))
    with pytest.raises(PrepareError, match=r"changes the module's .*: call module.eval\(\)"):
        lepton.compile(module, X)
    with pytest.raises(PrepareError, match="random numbers that the call draws from the module's rngs/count"):
        lepton.compile(module.dropout, X)
    recurrent, sequence = Recurrent(nnx.Rngs(0)), jnp.stack([X, -X])
    module.eval()  # type: ignore[no-untyped-call]
    mlp = equinox.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    dense = linen.Dense(4)
    variables = dense.init(jax.random.key(0), X)
    cases: list[tuple[tuple[Any, ...], Callable[[Any], Any], Any]] = [
        ((forward, PARAMS, X), lambda x: forward(PARAMS, x), X),
        ((module, X), module, X),
        ((recurrent, sequence), recurrent, sequence),
        ((module.double, X), module.double, X),
        ((mlp, X[0]), mlp, X[0]),
        ((_mapped, mlp, X), jax.vmap(mlp), X),
        ((dense, variables, X), lambda x: dense.apply(variables, x), X),
    ]
    for args, expected, x in cases:
        model = lepton.compile(*args)
        close(model(x), expected(x))
        assert model.nbytes == sum(array.nbytes for array in model.params.arrays)


def test_a_model_is_a_pytree_with_a_report() -> None:
    model = lepton.compile(forward, PARAMS, X)
    close(jax.jit(lambda m, x: m(x))(model, X), forward(PARAMS, X))
    report = model.report()
    assert (report.bytes_before, report.bytes_after) == (64, 64)
    assert "64 bytes became 64 (1.000×)" in str(report) and "params/w" in str(report)
    lowered = model.jit.lower(model.params, X)
    assert "sine" not in lowered.as_text()
    assert "forward" in repr(model) and "64 bytes" in repr(model)


def test_what_compile_cannot_take_is_named() -> None:
    with pytest.raises(TypeError, match="expects a function or a module, not int"):
        lepton.compile(3)
    with pytest.raises(TypeError, match="the parameters are missing"):
        lepton.compile(forward)


def test_calibration_that_cannot_be_used_is_named() -> None:
    passes = "default,quantize{activations=static}"
    with pytest.raises(UsageError, match="needs calibration"):
        lepton.compile(forward, PARAMS, X, passes=passes)
    wrong: list[tuple[Any, str]] = [
        ([], "calibration is empty"),
        ([X, X[:, :2]], "calibration batch 1 does not fit the function"),
        ([X * np.nan], "params/w: calibration saw 6 NaN"),
    ]
    for batches, message in wrong:
        with pytest.raises(CalibrationError, match=message):
            lepton.compile(forward, PARAMS, X, passes=passes, calibration=batches)
    with pytest.raises(CalibrationError, match="no pass needs calibration"):
        lepton.compile(forward, PARAMS, X, calibration=[X])


def test_batches_of_several_shapes_and_loops_are_calibrated_together() -> None:
    ws = np.stack([np.eye(3, dtype=np.float32) * 2, np.eye(3, dtype=np.float32) * 3])

    def f(ws: Any, x: Any) -> Any:
        return jax.lax.scan(lambda h, w: (h @ w, None), x, ws)[0]

    model = lepton.compile(
        f,
        ws,
        X,
        passes="default,quantize{activations=static}",
        calibration=[X, (np.ones((1, 3), np.float32) * 5,)],
    )
    scales = next(array for array in model.params.values() if array.shape == (2,))
    close(scales * 127, np.array([5.0, 10.0]))
    np.testing.assert_allclose(model(X), f(ws, X), atol=0.2)
