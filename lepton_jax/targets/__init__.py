"""What the machines are good at."""

from lepton_jax.targets.calibrate import calibrate as calibrate
from lepton_jax.targets.rates import CPU as CPU
from lepton_jax.targets.rates import GPU as GPU
from lepton_jax.targets.rates import TARGETS as TARGETS
from lepton_jax.targets.rates import TPU as TPU
from lepton_jax.targets.rates import Target as Target
from lepton_jax.targets.rates import get_target as get_target
