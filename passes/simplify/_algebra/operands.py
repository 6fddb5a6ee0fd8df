"""What the rules ask about operands, and the outcomes that they share.

Scalars stand for arrays in JAX's elementwise operations (`mul x 2.0`), so an operand may
have another shape than the result: `keep` and `fill` take care of that.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.facts import number_facts as number_facts
from lepton_jax.ir.graph import Node, Value
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.rule import Outcome

Kind = Literal["bool", "int", "float", "complex", "other"]


@functools.cache
def kind_of(dtype: Any) -> Kind:
    """What arithmetic a dtype has; numbers of less than 8 bits, floats of 8, keys and float0 are `other`."""
    if dtype is None or dtype == jax.dtypes.float0 or jnp.issubdtype(dtype, jax.dtypes.extended):
        return "other"
    if dtype == np.bool_:
        return "bool"
    if jnp.issubdtype(dtype, np.integer):
        return "int" if jnp.iinfo(dtype).bits >= 8 else "other"
    if jnp.issubdtype(dtype, np.complexfloating):
        return "complex"
    return "float" if jnp.issubdtype(dtype, np.floating) and np.dtype(dtype).itemsize > 1 else "other"


def is_float(value: Value) -> bool:
    """Whether its elements are real floating numbers of at least 16 bits."""
    return kind_of(value.dtype) == "float"


def is_int(value: Value) -> bool:
    """Whether its elements are integers (not booleans)."""
    return kind_of(value.dtype) == "int"


def is_bool(value: Value) -> bool:
    """Whether its elements are booleans."""
    return kind_of(value.dtype) == "bool"


def is_discrete(value: Value) -> bool:
    """Whether its elements are integers or booleans: no rounding, no NaN, one zero, no gradient."""
    return kind_of(value.dtype) in ("int", "bool")


def made_by(value: Value, *ops: str) -> Node | None:
    """The node that makes a value, if it is one of these operations."""
    node = value.node
    return node if node is not None and node.op in ops else None


def number_of(value: Value) -> Any:
    """The number that every element is, as a scalar of the dtype; None if unknown or no number."""
    return None if kind_of(value.dtype) == "other" else number_facts(value).splat


def has_number(node: Node) -> bool:
    """Whether an operand is one number throughout."""
    return any(number_facts(value).splat is not None for value in node.operands)


def has_unit(node: Node) -> bool:
    """Whether an operand is 0, 1 or -1 throughout."""
    for value in node.operands:
        number = number_facts(value).splat
        if number is not None and number in (0, 1, -1):
            return True
    return False


def has_term(node: Node) -> bool:
    """Whether an operand is a sum or a difference."""
    return any(value.op in ("add", "sub") for value in node.operands)


def has_factor(node: Node) -> bool:
    """Whether an operand is a product, a quotient or a negation."""
    return any(value.op in ("mul", "div", "neg") for value in node.operands)


def orders(node: Node) -> tuple[tuple[Value, Value], tuple[Value, Value]]:
    """The operands of a commutative operation in both orders."""
    a, b = node.operands
    return (a, b), (b, a)


def only_here(value: Value) -> bool:
    """Whether it has one reader, so that replacing that reader makes it dead."""
    return len(value.uses) == 1


def is_normal(number: Any) -> bool:
    """Whether a real floating number is finite and neither zero nor subnormal."""
    return _tiny(number.dtype) <= abs(float(number)) < math.inf


@functools.cache
def _tiny(dtype: Any) -> float:
    return float(jnp.finfo(dtype).tiny)


_NEVER_MINUS_ZERO: Final = frozenset({"abs", "exp", "exp2", "logistic", "square", "iota"})


def never_minus_zero(value: Value) -> bool:
    """Whether no element is -0.0."""
    if is_discrete(value):
        return True
    facts = facts_of(value)
    if facts.nonzero or facts.is_positive_zero:
        return True
    node = value.node
    if node is None or not is_float(value):
        return False
    if node.op == "integer_pow":
        return bool(node.params["y"] % 2 == 0)
    if node.op == "convert_element_type":
        return is_discrete(node.operands[0])
    return node.op in _NEVER_MINUS_ZERO or (node.op == "mul" and node.operands[0] is node.operands[1])


# Outcomes


def same_type(a: Value, b: Value) -> bool:
    """Whether one may stand for the other: same shape, dtype and sharding (weak types may differ)."""
    if a.aval == b.aval:
        return True
    return bool(a.aval.strip_weak_type() == b.aval.strip_weak_type())


def is_placed(value: Value) -> bool:
    """Whether its type speaks of a mesh, so that an array made from nothing would differ from it."""
    return not value.aval.sharding.mesh.empty


def keep(value: Value, node: Node) -> Outcome:
    """Read `value` instead of the node's result; a scalar is spread to the result's shape."""
    if same_type(value, node.result):
        return value
    if value.shape != () or value.dtype != node.result.dtype or is_placed(node.result):
        return None
    return rewrite(_spread, value, shape=node.result.shape)


def fill(node: Node, number: Any) -> Outcome:
    """Read an array full of one number instead of the node's result."""
    result = node.result
    if is_placed(result):
        return None
    return rewrite(_full, shape=result.shape, scalar=Scalar(number, result.dtype))


class Scalar:
    """A number of a dtype as a static argument: equal only if the bits are, so 0.0 is not -0.0."""

    __slots__ = ("bits", "dtype")

    def __init__(self, number: Any, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        with np.errstate(all="ignore"):
            self.bits = np.asarray(number).astype(self.dtype).tobytes()

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """The number as an array of no dimensions."""
        return np.frombuffer(self.bits, self.dtype).reshape(())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scalar) and self.dtype == other.dtype and self.bits == other.bits

    def __hash__(self) -> int:
        return hash((self.bits, self.dtype))

    def __repr__(self) -> str:
        return f"Scalar({self.array.item()}, {self.dtype.name})"


def _spread(x: jax.Array, shape: tuple[Any, ...]) -> jax.Array:
    return lax.broadcast(x, shape)


def _full(shape: tuple[Any, ...], scalar: Scalar) -> jax.Array:
    return lax.broadcast(scalar.array, shape) if shape else jnp.asarray(scalar.array)
