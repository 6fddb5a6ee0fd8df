"""A smaller program: only some indices of some dimensions are kept.

Nothing here builds equations. The graph is evaluated again, each node bound to the smaller arrays by JAX,
which checks every type; parameters that carry shapes are computed anew, and regions are traced anew through
JAX's public functions. So a smaller program is differentiated, batched and exported as any other.
"""

from lepton_jax.ir.cutting.cut import Cut as Cut
from lepton_jax.ir.cutting.cut import CutError as CutError
from lepton_jax.ir.cutting.cut import Indices as Indices
from lepton_jax.ir.cutting.cut import take as take
from lepton_jax.ir.cutting.estimate import cut_cost as cut_cost
from lepton_jax.ir.cutting.evaluate import cut_graph as cut_graph
from lepton_jax.ir.cutting.evaluate import evaluate_cut as evaluate_cut
from lepton_jax.ir.cutting.inlined import inline_calls as inline_calls
from lepton_jax.ir.cutting.rules import scan_length as scan_length
