"""What stands between quantised layers is computed on codes, and every code stays as it is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lepton_jax as lepton
from lepton_jax.numerics.quantize import Scheme, encode, scale_of_range
from lepton_jax.rewrite import PassManager, Pipeline
from lepton_jax.targets import get_target
from tests.passes._check import run
from tests.passes._quantize import floats, sqnr

SCHEME = Scheme("int8")
PASSES = "cse,requantize,cse"


def codes(x: Any, most: Any) -> Any:
    """Codes of an array whose largest magnitude is known."""
    return encode(x, scale_of_range(-most, most, SCHEME)[0], None, SCHEME)


def pool(x: Any, taps: int = 3, stride: int = 2, padding: int = 1) -> Any:
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    window, strides = (1, taps, taps, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, pads)


def decoded(x: Any, most: Any) -> Any:
    return codes(x, most).astype(jnp.float32) * scale_of_range(-most, most, SCHEME)[0]


FIRES: dict[str, tuple[Any, set[str]]] = {
    "relu": (lambda x, m: codes(jax.nn.relu(x), m), {"relu-in-clamp"}),
    "maximum": (lambda x, m: codes(jnp.maximum(0.0, x), m), {"relu-in-clamp"}),
    "pool": (lambda x, m: codes(pool(x), m), {"maximum-of-codes"}),
    "pool of relu": (lambda x, m: codes(pool(jax.nn.relu(x)), m), {"maximum-of-codes", "relu-in-clamp"}),
    "part": (lambda x, m: (codes(x, m), codes(x[:, ::2, ::2], m)), {"part-of-codes"}),
    "average": (lambda x, m: decoded(x, m).mean((1, 2)), {"sum-of-codes"}),
}


def gelu(x: Any) -> Any:
    return jax.nn.gelu(x, approximate=True)


def with_double(x: Any, m: Any) -> Any:
    return codes(x, m), x * 2


LEFT = {
    "read elsewhere": lambda x, m: with_double(jax.nn.relu(x), m),
    "another limit": lambda x, m: codes(jnp.maximum(x, 0.1), m),
    "a scale of any sign": lambda x, m: jnp.clip(jnp.round(jax.nn.relu(x) * m), -127, 127).astype(jnp.int8),
    "windows of padding": lambda x, m: codes(pool(x, 1, 1, 1), m),
    "pooled and read": lambda x, m: with_double(pool(x), m),
    "part alone": lambda x, m: codes(x[:, ::2, ::2], m),
    "another scale": lambda x, m: (codes(x, m), codes(x[:, ::2, ::2], m * 2)),
    "sum of floats": lambda x, m: (x * m).sum((1, 2)),
    "gelu of floats": lambda x, m: (codes(x, m), gelu(x)),
    "gelu read twice": lambda x, m: with_double(gelu(x), m),
    "more than tanh": lambda x, m: codes(x * (2 + jnp.tanh(x)), m),
}


def rewritten(fun: Any, *args: Any) -> tuple[Any, set[str]]:
    """The function after the pass, and the rules of it that fired."""
    graph, report = run(fun, *args, passes=PASSES)
    return graph, set(report.rules) - {"same-node"}


def test_codes_stay_bit_for_bit() -> None:
    """Ties, saturation, zeros and infinities; under jit, vmap and export."""
    x = floats(2, 9, 8, 4).at[0, 0].set(jnp.array([jnp.inf, -jnp.inf, -0.0, 1e9]))
    x = jnp.where(jnp.abs(x) < 4, jnp.round(x * 16) / 16, x)
    most = jnp.float32(127 / 8)
    fast = {}
    for name, (fun, rules) in FIRES.items():
        graph, fired = rewritten(fun, x, most)
        assert fired == rules, name
        fast[name] = lepton.ir.to_callable(graph)
        assert rewritten(fast[name], x, most)[1] == set(), name

    def both(x: Any, most: Any) -> Any:
        return {name: (jax.tree.leaves(FIRES[name][0](x, most)), f(x, most)) for name, f in fast.items()}

    jitted = jax.jit(lambda x, most: (both(x, most), jax.vmap(both, (0, None))(x[None], most)))
    for found in jitted(x, most):
        for name, (expected, result) in found.items():
            for a, b in zip(expected, result, strict=True):
                if a.dtype == jnp.int8:
                    np.testing.assert_array_equal(a, b, err_msg=name)
                else:
                    np.testing.assert_allclose(a, b, 1e-5, err_msg=name)
    assert jax.export.export(jitted)(x, most).mlir_module_serialized


def test_gelu_before_codes_is_a_logistic_function() -> None:
    """The codes are those of tanh, but for ties that rounding decides."""
    x, most = floats(64, 300) * 4, jnp.float32(8)
    for fun in (lambda x, m: codes(gelu(x), m), lambda x, m: codes(0.5 * (1 + jnp.tanh(x)) * m, m)):
        graph, fired = rewritten(fun, x, most)
        assert fired == {"logistic-before-codes"}
        found, expected = jax.jit(lepton.ir.to_callable(graph))(x, most)[0], jax.jit(fun)(x, most)
        wrong = np.abs(found.astype(jnp.int32) - expected)
        assert wrong.max() <= 1 and wrong.mean() < 1e-4


def test_what_would_give_other_codes_stays() -> None:
    x, most = floats(2, 9, 8, 4), jnp.float32(3)
    for name, fun in LEFT.items():
        assert rewritten(fun, x, most)[1] == set(), name


def test_programs_without_codes_are_left_as_they_are() -> None:
    closed = jax.make_jaxpr(lambda x: jnp.round(pool(jax.nn.relu(x))))(floats(1, 8, 8, 4))
    graph, report = PassManager(Pipeline.parse("requantize"), get_target("cpu"), "exact").run(closed, "f")
    assert not report.rules and any(node.op == "jit" for node in graph)


# networks

CONV = ("NHWC", "HWIO", "NHWC")


def conv(x: Any, kernel: Any, stride: int = 1) -> Any:
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=CONV)


def network(params: Any, x: Any) -> Any:
    """A small residual network: a pooled stem, a block, a block with strides, an average."""
    x = pool(jax.nn.relu(conv(x, params["stem"], 2)))
    h = jax.nn.relu(conv(x, params["a"]) + params["bias"])
    x = jax.nn.relu(x + conv(h, params["b"]))
    h = jax.nn.relu(conv(x, params["c"], 2))
    x = jax.nn.relu(conv(x, params["down"], 2) + conv(h, params["d"]))
    return x.mean((1, 2)) @ params["head"]


def kernel(*shape: int) -> Any:
    return floats(*shape, scale=float(np.prod(shape[:-1])) ** -0.5)


PARAMS = {
    "stem": kernel(7, 7, 3, 16),
    "a": kernel(3, 3, 16, 16),
    "bias": floats(16, scale=0.1),
    "b": kernel(3, 3, 16, 16),
    "c": kernel(3, 3, 16, 32),
    "down": kernel(1, 1, 16, 32),
    "d": kernel(3, 3, 32, 32),
    "head": kernel(32, 10),
}


def test_nothing_but_codes_goes_from_layer_to_layer() -> None:
    """Sums of floats are there too, if asked for."""
    x = floats(2, 16, 16, 3)
    exact, errors = jax.jit(network)(PARAMS, x), {}
    for residuals in ("codes", "floats"):
        passes = f"default,quantize{{activations=static,residuals={residuals}}}"
        model = lepton.compile(network, PARAMS, x, passes=passes, calibration=[x], strict=True)
        rules = model.report().passes.rules
        in_codes = residuals == "codes"
        assert rules["relu-in-clamp"] == (4 if in_codes else 2)
        for rule in ("maximum-of-codes", "maximum-of-shifts", "residual-in-codes"):
            assert (rules.get(rule, 0) > 0) == in_codes, rule
        scales = [array for array in model.params.arrays if array.shape == ()]
        assert len(scales) == 6  # of the inputs of seven layers, two of which read the same
        errors[residuals] = sqnr(exact, model(x))
    assert errors["codes"] > 25 and errors["floats"] > 25
