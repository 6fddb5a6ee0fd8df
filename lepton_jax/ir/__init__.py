"""The graph that Lepton rewrites: in from JAX, analyses, out to JAX."""

from lepton_jax.ir.export import evaluate as evaluate
from lepton_jax.ir.export import to_callable as to_callable
from lepton_jax.ir.graph import Graph as Graph
from lepton_jax.ir.graph import Node as Node
from lepton_jax.ir.graph import Value as Value
from lepton_jax.ir.importer import from_jaxpr as from_jaxpr
from lepton_jax.ir.importer import trace as trace
from lepton_jax.ir.printer import to_text as to_text
