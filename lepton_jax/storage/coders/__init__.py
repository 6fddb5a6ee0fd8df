"""Coders of blocks of bytes: each makes them shorter in its own way, the shortest code is kept."""

from lepton_jax.storage.coders.base import Kind as Kind
from lepton_jax.storage.coders.block import CODERS as CODERS
from lepton_jax.storage.coders.block import LOSSES as LOSSES
from lepton_jax.storage.coders.block import MOST_BYTES as MOST_BYTES
from lepton_jax.storage.coders.block import decode_block as decode_block
from lepton_jax.storage.coders.block import describe_block as describe_block
from lepton_jax.storage.coders.block import encode_block as encode_block
