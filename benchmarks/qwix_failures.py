"""What the installed Qwix does with weights that are not those of a plain layer; Lepton quantises them all.

    python benchmarks/qwix_failures.py

Needs Qwix, of the extra `peers`. `tests/passes/test_quantize_failures.py` has the same rows for Lepton. A
weight of two or more axes that is still float32 counts as left in floats.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from flax import linen
from jax import lax

Function = Callable[[Any, Any], Any]
X, IMAGE, IDS = jnp.ones((8, 64)), jnp.ones((2, 8, 8, 16)), jnp.arange(8)
W8A8, KERNEL = {"weight_qtype": "int8", "act_qtype": "int8"}, (3, 3, 16, 16)


class One(linen.Module):
    """A function of a weight and an input."""

    fun: Function
    shape: tuple[int, ...] = (64, 64)

    @linen.compact
    def __call__(self, x: Any) -> Any:
        """What the function gives."""
        return self.fun(self.param("w", linen.initializers.normal(), self.shape), x)


class Tied(linen.Module):
    """A table that is read and multiplied with."""

    @linen.compact
    def __call__(self, ids: Any) -> Any:
        """Logits."""
        table = linen.Embed(50, 64)
        return table.attend(table(ids))


class Layer(linen.Module):
    """A layer of a loop."""

    @linen.compact
    def __call__(self, h: Any, _: Any) -> Any:
        """The next state."""
        return linen.Dense(64, use_bias=False)(h), None


SCANNED = linen.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)


def conv(w: Any, x: Any) -> Any:
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


ROWS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "nn.Dense (to compare)": (linen.Dense(64), (X,), W8A8),
    "weight on the left": (One(lambda w, x: jnp.dot(w, x.T)), (X,), W8A8),
    "transposed, jnp.dot(x, w.T)": (One(lambda w, x: jnp.dot(x, w.T)), (X,), W8A8),
    "transposed, x @ w.T": (One(lambda w, x: x @ w.T), (X,), W8A8),
    "derived (weight norm)": (One(lambda w, x: jnp.dot(x, w / jnp.linalg.norm(w))), (X,), W8A8),
    "lax.dot": (One(lambda w, x: lax.dot(x, w)), (X,), W8A8),
    "einsum of three": (One(lambda w, x: jnp.einsum("bi,io,o->bo", x, w, x[0])), (X,), W8A8),
    "scanned layers": (SCANNED(), (X, None), W8A8),
    "embedding": (One(lambda w, i: w[i]), (IDS,), W8A8),
    "tied embedding": (Tied(), (IDS,), W8A8),
    "convolution, weights alone": (One(conv, KERNEL), (IMAGE,), {"weight_qtype": "int8"}),
    "convolution, int4": (One(conv, KERNEL), (IMAGE,), {"weight_qtype": "int4", "act_qtype": "int4"}),
    "convolution, groups of 16": (One(conv, KERNEL), (IMAGE,), W8A8 | {"tile_size": 16}),
}


def outcome(model: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> str:
    """Whether the weights were quantised, left in floats, or what was raised."""
    try:
        params = model.init(jax.random.key(0), *inputs)["params"]
        rules = [qwix.QuantizationRule(module_path=".*", **options)]
        quantised = qwix.quantize_model(model, qwix.PtqProvider(rules))
        shapes = jax.eval_shape(quantised.init, jax.random.key(0), *inputs)["params"]
        small = qwix.quantize_params(params, shapes)
        jax.block_until_ready(quantised.apply({"params": small}, *inputs))
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:90]}"
    large = [leaf for leaf in jax.tree.leaves(small) if leaf.ndim > 1 and min(leaf.shape) > 1]
    return "left in floats" if any(leaf.dtype == jnp.float32 for leaf in large) else "quantised"


def after_floats() -> str:
    """A product `x @ w` that has run in floats before."""
    model = One(lambda w, x: x @ w)
    model.apply({"params": {"w": jnp.ones((64, 64))}}, X)
    return outcome(model, (X,), W8A8)


def floats_after() -> str:
    """What a product `x @ w` outside of the model is traced as, once a quantised model has run."""
    jax.clear_caches()
    rules = [qwix.QuantizationRule(module_path=".*", **W8A8)]
    model = qwix.quantize_model(One(lambda w, x: x @ w), qwix.QtProvider(rules))
    model.apply(model.init(jax.random.key(0), X), X)
    text = str(jax.make_jaxpr(lambda x, w: x @ w)(X, jnp.ones((64, 64))))
    return "other products become int8" if "i8[" in text else "other products stay in floats"


def plain() -> str:
    """A function that is no Flax module."""
    rules = [qwix.QuantizationRule(module_path=".*", **W8A8)]
    try:
        qwix.quantize_model(lambda w, x: x @ w, qwix.PtqProvider(rules))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "quantised"


def main() -> None:
    """Print the table."""
    print(f"Qwix {version('qwix')}, jax {jax.__version__}\n\n| weight | Qwix |\n|---|---|")
    print(f"| plain function | {plain()} |")
    for name, (model, inputs, options) in ROWS.items():
        jax.clear_caches()  # a product that was traced in floats before would stay in floats
        print(f"| {name} | {outcome(model, inputs, options)} |", flush=True)
    print(f"| x @ w after the same in floats | {after_floats()} |")
    print(f"| x @ w in floats after a quantised model | {floats_after()} |")


if __name__ == "__main__":
    main()
