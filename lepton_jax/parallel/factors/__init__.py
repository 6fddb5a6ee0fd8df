"""Factors: of each operation, which dimensions of its operands and results are split together."""

from lepton_jax.parallel.factors.rule import Dims as Dims
from lepton_jax.parallel.factors.rule import Factors as Factors
from lepton_jax.parallel.factors.rule import Reduction as Reduction
from lepton_jax.parallel.factors.rule import factor_rule as factor_rule
