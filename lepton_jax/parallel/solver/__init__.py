"""`shard="auto"`: layouts by an integer program."""

from lepton_jax.parallel.solver.shapes import Found as Found
from lepton_jax.parallel.solver.shapes import search_mesh as search_mesh
from lepton_jax.parallel.solver.solution import Solution as Solution
from lepton_jax.parallel.solver.solve import solve as solve
