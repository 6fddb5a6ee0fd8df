"""Micro-batches: a program as a loop over parts of its batch."""

from lepton_jax.parallel.microbatches.choosing import batch_of as batch_of
from lepton_jax.parallel.microbatches.choosing import loop_of as loop_of
from lepton_jax.parallel.microbatches.choosing import nearest as nearest
from lepton_jax.parallel.microbatches.choosing import parts_of as parts_of
from lepton_jax.parallel.microbatches.gathering import gather_first as gather_first
from lepton_jax.parallel.microbatches.gathering import split_weights as split_weights
from lepton_jax.parallel.microbatches.rewriting import SCOPE as SCOPE
from lepton_jax.parallel.microbatches.rewriting import in_parts as in_parts
from lepton_jax.parallel.microbatches.states import MicrobatchError as MicrobatchError
from lepton_jax.parallel.microbatches.states import Part as Part
