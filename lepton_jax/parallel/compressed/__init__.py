"""Collectives that carry less: gradients and weights in 8 bits, thin factors or few elements, with feedback.

Functions here run inside `jax.shard_map`. See docs/compressed_collectives.md.
"""

from lepton_jax.parallel.compressed.blocks import block_all_gather as block_all_gather
from lepton_jax.parallel.compressed.blocks import block_all_reduce as block_all_reduce
from lepton_jax.parallel.compressed.blocks import block_reduce_scatter as block_reduce_scatter
from lepton_jax.parallel.compressed.optimizer import CompressedState as CompressedState
from lepton_jax.parallel.compressed.optimizer import compressed as compressed
from lepton_jax.parallel.compressed.optimizer import refit as refit
from lepton_jax.parallel.compressed.optimizer import state_specs as state_specs
from lepton_jax.parallel.compressed.options import Compression as Compression
from lepton_jax.parallel.compressed.power import power_all_reduce as power_all_reduce
from lepton_jax.parallel.compressed.reduce import Feedback as Feedback
from lepton_jax.parallel.compressed.reduce import all_reduce_mean as all_reduce_mean
from lepton_jax.parallel.compressed.reduce import init_feedback as init_feedback
from lepton_jax.parallel.compressed.step import DataParallel as DataParallel
from lepton_jax.parallel.compressed.step import data_parallel as data_parallel
from lepton_jax.parallel.compressed.top_k import top_k_all_reduce as top_k_all_reduce
from lepton_jax.parallel.compressed.weights import gather_weight as gather_weight
