"""What is known of values is found out anew where a constant takes the place of what fed them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import trace
from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import constant


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
