"""Pipelines: layers on different devices, microbatches that go through them."""

from lepton_jax.parallel.pipeline.marks import stage_boundary as stage_boundary
from lepton_jax.parallel.pipeline.pipelined import Pipelined as Pipelined
from lepton_jax.parallel.pipeline.pipelined import pipelined as pipelined
from lepton_jax.parallel.pipeline.schedules import Schedule as Schedule
from lepton_jax.parallel.pipeline.schedules import ScheduleError as ScheduleError
from lepton_jax.parallel.pipeline.schedules import bubble as bubble
from lepton_jax.parallel.pipeline.schedules import live as live
from lepton_jax.parallel.pipeline.schedules import schedule as schedule
from lepton_jax.parallel.pipeline.stages import Stage as Stage
from lepton_jax.parallel.pipeline.stages import StageError as StageError
from lepton_jax.parallel.pipeline.stages import Stages as Stages
from lepton_jax.parallel.pipeline.stages import cut as cut
