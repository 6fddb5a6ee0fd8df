"""Random JAX programs, checked under `lepton.optimize` against plain `jax.jit`."""

from lepton_jax.fuzz.check import Failure as Failure
from lepton_jax.fuzz.check import Invalid as Invalid
from lepton_jax.fuzz.check import check as check
from lepton_jax.fuzz.command import add_arguments as add_arguments
from lepton_jax.fuzz.command import fuzz_command as fuzz_command
from lepton_jax.fuzz.generate import generate as generate
from lepton_jax.fuzz.program import Program as Program
from lepton_jax.fuzz.program import Type as Type
from lepton_jax.fuzz.run import FuzzResult as FuzzResult
from lepton_jax.fuzz.run import replay as replay
from lepton_jax.fuzz.run import run as run
from lepton_jax.fuzz.shrink import shrink as shrink
