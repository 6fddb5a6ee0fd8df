"""Factors: of each operation, which dimensions of its operands and results are split together."""

from lepton_jax.parallel.factors import elementwise as elementwise
from lepton_jax.parallel.factors import indexing as indexing
from lepton_jax.parallel.factors import linear_algebra as linear_algebra
from lepton_jax.parallel.factors import movement as movement
from lepton_jax.parallel.factors import products as products
from lepton_jax.parallel.factors import randomness as randomness
from lepton_jax.parallel.factors import reductions as reductions
from lepton_jax.parallel.factors import slicing as slicing
from lepton_jax.parallel.factors.lookup import factors_of as factors_of
from lepton_jax.parallel.factors.projection import dims_axes as dims_axes
from lepton_jax.parallel.factors.projection import factor_axes as factor_axes
from lepton_jax.parallel.factors.rule import Dims as Dims
from lepton_jax.parallel.factors.rule import Factors as Factors
from lepton_jax.parallel.factors.rule import Reduction as Reduction
from lepton_jax.parallel.factors.rule import factor_rule as factor_rule
