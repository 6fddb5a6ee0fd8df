"""What is known of values is found out anew where something better known takes the place of what fed them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.facts import facts_of, renew
from lepton_jax.ir.graph import Graph, Value, constant
from tests.ir._facts import Fun

X = jnp.ones((2, 3))


def test_a_constant_in_place_of_something_unknown() -> None:
    graph = trace(lambda x: jnp.transpose(jnp.sin(x)), jnp.ones((2, 3)))
    sine, turned = graph
    assert facts_of(turned.result).splat is None
    version = graph.version
    sine.result.replace_uses(constant(np.zeros((2, 3), np.float32), sine.result.aval))
    assert facts_of(turned.result).splat == 0 and turned.changed > version


def test_through_a_value_of_which_nothing_was_asked() -> None:
    graph = trace(lambda x: jnp.transpose(jnp.sin(jnp.cos(x))), jnp.ones((2, 3)))
    cosine, sine, turned = graph
    assert facts_of(turned.result).splat is None
    cosine.result.facts = None
    sine.result.facts = None
    sine.result.replace_uses(constant(np.ones((2, 3), np.float32), sine.result.aval))
    assert facts_of(turned.result).splat == 1


def replaced(fun: Fun, *args: Any) -> tuple[Graph, Value, Value]:
    """A graph that returns something of its first value, which is replaced by its second."""
    graph = trace(fun, *args)
    first, second = (node.result for node in graph if node.op in ("sin", "exp"))
    for value in graph.outputs:
        facts_of(value)
    first.replace_uses(second)
    return graph, first, second


def test_more_is_known_behind_a_value_of_which_more_is_known() -> None:
    graph, *_ = replaced(lambda x: (-jnp.sin(x), jnp.exp(x))[:1], X)
    negated = graph.outputs[0].node
    version = graph.version
    assert negated is not None and not facts_of(negated.result).nonpositive
    renew(graph)
    assert facts_of(negated.result).nonpositive and negated.changed > version


def test_replaced_twice() -> None:
    graph, _, second = replaced(lambda x: (-jnp.sin(x), jnp.exp(x), jnp.sinh(x), jnp.square(x))[:1], X)
    other, square = (node.result for node in graph if node.op in ("sinh", "square"))
    second.facts = None
    second.replace_uses(other)
    other.replace_uses(square)
    renew(graph)
    assert facts_of(graph.outputs[0]).nonpositive


def test_values_may_change_places() -> None:
    graph, first, second = replaced(lambda x: (-jnp.sin(x), jnp.exp(x))[:1], X)
    second.replace_uses(first)
    renew(graph)
    assert not facts_of(graph.outputs[0]).nonpositive


def test_where_no_more_is_known_nothing_changes() -> None:
    graph = trace(lambda x: jnp.tanh(jnp.exp(x)), X)
    assert facts_of(graph.outputs[0]).nonnegative
    next(iter(graph)).result.replace_uses(graph.inputs[0])
    before, version = graph.outputs[0].facts, graph.version
    renew(graph)
    assert graph.outputs[0].facts is before and graph.version == version


def test_only_as_far_as_more_is_known() -> None:
    graph, *_ = replaced(lambda x: (jnp.log(jnp.cos(jnp.sin(x))), jnp.exp(x))[:1], X)
    logarithm = graph.outputs[0].node
    assert logarithm is not None
    before, changed = logarithm.result.facts, logarithm.changed
    renew(graph)
    assert logarithm.result.facts is before and logarithm.changed == changed


def test_into_regions_and_out_of_them() -> None:
    def f(x: Any) -> Any:
        called = jax.jit(lambda v: -v)(jnp.sin(x))
        looped = lax.scan(lambda c, y: (c, -(c + jnp.abs(y))), jnp.sin(x), x)
        return called, *looped, jnp.exp(x)

    graph = trace(lambda x: f(x)[:3], X)
    sines = [node.result for node in graph if node.op == "sin"]
    exponential = next(node.result for node in graph if node.op == "exp")
    assert not any(facts_of(v).nonnegative or facts_of(v).nonpositive for v in graph.outputs)
    for sine in sines:
        sine.replace_uses(exponential)
    renew(graph)
    called, carry, stacked = map(facts_of, graph.outputs)
    assert called.nonpositive and carry.nonnegative and stacked.nonpositive
