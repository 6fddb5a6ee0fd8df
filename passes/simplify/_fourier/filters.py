"""Products of transforms of real numbers, transformed back: half of the spectrum is enough."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import jax
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._fourier.sources import half, is_worth_it, lengths_of, real_source, transform
from lepton_jax.passes.simplify._movement.common import bind, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_MOST_NODES: Final = 16

_EVEN: Final = frozenset({"abs", "square", "integer_pow", "real", "sqrt", "convert_element_type"})
"""What makes a Hermitian array of one, among them magnitudes, real and even, and powers of these."""

Step = tuple[Any, ...]


def _params(maker: Node) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(maker.params.items()))


@dataclass
class _Spectrum:
    """A spectrum as steps over transforms of real numbers, if it is Hermitian: the transform of real numbers.

    Attributes:
        length: of the transforms.
        node: the node that reads it.
        values: what is transformed, and real factors.
        steps: an operation and where its operands stand among the steps.
    """

    length: int
    node: Node
    values: list[Value] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    known: dict[Value, int] = field(default_factory=dict)

    def add(self, value: Value) -> int | None:
        """Where the steps that make `value` stand, or None where it is not known to be Hermitian."""
        if value in self.known:
            return self.known[value]
        if len(self.steps) >= _MOST_NODES:
            return None
        step = self._step(value)
        if step is None:
            return None
        self.steps.append(step)
        self.known[value] = len(self.steps) - 1
        return len(self.steps) - 1

    def _step(self, value: Value) -> Step | None:
        if value.ndim == 0:
            return self._factor(value)
        maker = value.node
        if maker is None or maker.context is not self.node.context:
            return None
        if maker.op == "fft":
            return self._leaf(value)
        if maker.op == "broadcast_in_dim":
            return self._broadcast(maker)
        if maker.op in _EVEN:
            if maker.op == "sqrt" and np.issubdtype(value.dtype, np.complexfloating):
                return None  # two roots of a negative number, not conjugates: -1 twice gives 1j twice
            place = self.add(maker.operands[0])
            return None if place is None else ("apply", place, maker.primitive, _params(maker))
        if maker.op not in ("mul", "add", "sub", "neg", "conj"):
            return None
        places = [self.add(operand) for operand in maker.operands]
        numbers = [v.ndim == 0 for v in maker.operands]
        if any(place is None for place in places) or (maker.op in ("add", "sub") and any(numbers)):
            return None
        return (maker.op, *places)

    def is_private(self) -> bool:
        """Whether nothing else reads it or what it is made of."""
        inside = {value.node for value in self.known} | {self.node}
        made = [value for value in self.known if value.ndim]
        return all(user in inside for value in made for user, _ in value.uses)

    def _factor(self, value: Value) -> Step | None:
        if not value.is_const or complex(value.const).imag != 0:
            return None
        self.values.append(value)
        return ("number", len(self.values) - 1)

    def _leaf(self, value: Value) -> Step | None:
        inner = transform(value, self.node, lax.FftType.FFT)
        x = None if inner is None or lengths_of(inner) != (self.length,) else real_source(inner.operands[0])
        if x is None:
            return None
        self.values.append(x)
        return ("fft", len(self.values) - 1)

    def _broadcast(self, maker: Node) -> Step | None:
        inner, shape = maker.operands[0], tuple(maker.params["shape"])
        dims = tuple(maker.params["broadcast_dimensions"])
        keeps = inner.ndim > 0 and dims[-1] == len(shape) - 1 and inner.shape[-1] == shape[-1]
        place = self.add(inner) if keeps else None
        return None if place is None else ("broadcast", place, shape[:-1], dims)


@movement_rule("real", level="reassociate", backends=("cpu",))
def filter_of_real(node: Node, ctx: PassContext) -> Outcome:
    """real(ifft(fft(x) * fft(w))) → irfft(rfft(x) * rfft(w)) for real x and w

    Also with sums, differences, conjugates, real factors and magnitudes (`abs(fft(x)) ** 2`), over one
    dimension, where there are at least four transforms. 1.4× and more
    (`python benchmarks/rewrites.py --only fourier`).
    """
    outer = transform(node.operands[0], node, lax.FftType.IFFT)
    if outer is None or len(outer.result.uses) != 1 or len(lengths_of(outer)) != 1:
        return None
    if not is_worth_it(outer.result, 1):
        return None
    spectrum = _Spectrum(lengths_of(outer)[0], outer)
    if spectrum.add(outer.operands[0]) is None:
        return None
    if not spectrum.is_private():
        ctx.miss("filter-of-real", node, "the spectrum is also read elsewhere")
        return None
    steps, dtype = tuple(spectrum.steps), outer.result.dtype
    return rewrite(_filtered, *spectrum.values, steps=steps, length=spectrum.length, dtype=dtype)


def _filtered(*values: jax.Array, steps: tuple[Step, ...], length: int, dtype: Any) -> jax.Array:
    made: list[jax.Array] = []
    for name, *operands in steps:
        made.append(_run(name, operands, made, values, length, dtype))
    result: jax.Array = lax.fft(made[-1], lax.FftType.IRFFT, (length,))
    return result


def _run(
    name: str,
    operands: list[Any],
    made: list[jax.Array],
    values: tuple[jax.Array, ...],
    length: int,
    dtype: Any,
) -> jax.Array:
    if name == "number":
        factor: jax.Array = values[operands[0]]
        return factor
    if name == "fft":
        return half(values[operands[0]], (length,), dtype)
    if name == "apply":
        place, primitive, params = operands
        applied: jax.Array = bind(made[place], primitive=primitive, params=params)
        return applied
    if name == "broadcast":
        inner = made[operands[0]]
        return lax.broadcast_in_dim(inner, (*operands[1], length // 2 + 1), operands[2])
    arrays = [made[place] for place in operands]
    ops: dict[str, Any] = {
        "mul": lambda a, b: a * b,
        "add": lax.add,
        "sub": lax.sub,
        "neg": lax.neg,
        "conj": lax.conj,
    }
    result: jax.Array = ops[name](*arrays)
    return result


RULES: Final[tuple[Rule, ...]] = (filter_of_real,)
