"""Small reference models (Flax NNX) for the demo, the tests and the benchmarks."""

from __future__ import annotations

from lepton_jax.models.create import create
from lepton_jax.models.decoder import Decoder, DecoderConfig
from lepton_jax.models.lepton_net import LeptonNet, LeptonNetConfig

__all__ = ["Decoder", "DecoderConfig", "LeptonNet", "LeptonNetConfig", "create"]
