"""Lepton: an optimising front end for JAX.

import lepton_jax as lepton

@lepton.optimize
def loss(params, batch): ...
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

from lepton_jax import ir as ir
from lepton_jax import storage as storage
from lepton_jax._api import Optimized as Optimized
from lepton_jax._api import Traced as Traced
from lepton_jax._api import optimize as optimize
from lepton_jax._bisect import Culprit as Culprit
from lepton_jax._bisect import bisect as bisect
from lepton_jax._calibrate import CalibrationError as CalibrationError
from lepton_jax._compile import Model as Model
from lepton_jax._compile import compile as compile
from lepton_jax._delayed import DelayedScaling as DelayedScaling
from lepton_jax._delayed import delayed_scaling as delayed_scaling
from lepton_jax._explain import Explanation as Explanation
from lepton_jax._file import SavedModel as SavedModel
from lepton_jax._file import load as load
from lepton_jax._lora import lora as lora
from lepton_jax._model_report import ModelReport as ModelReport
from lepton_jax._prepared import Prepared as Prepared
from lepton_jax._prepared import PrepareError as PrepareError
from lepton_jax._sensitivity import sensitivity as sensitivity
from lepton_jax._sharded.hints import shard_hint as shard_hint
from lepton_jax._sharded.sharding import Sharding as Sharding
from lepton_jax._site_damage import Sensitivity as Sensitivity
from lepton_jax._site_damage import SiteDamage as SiteDamage
from lepton_jax._sparsify import SparseState as SparseState
from lepton_jax._sparsify import masked as masked
from lepton_jax._sparsify import sparsify as sparsify
from lepton_jax._sparsify import sparsity_of as sparsity_of
from lepton_jax._trainable import Trainable as Trainable
from lepton_jax._trainable import trainable as trainable
from lepton_jax._verify import Verification as Verification
from lepton_jax._verify import VerificationError as VerificationError
from lepton_jax._verify import verify as verify
from lepton_jax._verify_each import VerifyEach as VerifyEach
from lepton_jax.distill import distill as distill
from lepton_jax.numerics.loss_scale import loss_scaled as loss_scaled
from lepton_jax.numerics.loss_scale import scale_loss as scale_loss
from lepton_jax.rewrite import LeptonError as LeptonError
from lepton_jax.rewrite import Pass as Pass
from lepton_jax.rewrite import PassContext as PassContext
from lepton_jax.rewrite import PassError as PassError
from lepton_jax.rewrite import PassWarning as PassWarning
from lepton_jax.rewrite import Pipeline as Pipeline
from lepton_jax.rewrite import PipelineError as PipelineError
from lepton_jax.rewrite import Report as Report
from lepton_jax.rewrite import RulePass as RulePass
from lepton_jax.rewrite import UsageError as UsageError
from lepton_jax.rewrite import node_rule as node_rule
from lepton_jax.rewrite import register as register
from lepton_jax.rewrite import rewrite as rewrite
from lepton_jax.rewrite import rule as rule
from lepton_jax.rewrite import run_rules as run_rules
from lepton_jax.storage import LeptonFileError as LeptonFileError
from lepton_jax.structured.dependencies import dependencies as dependencies
from lepton_jax.structured.prune import StructurallyPruned as StructurallyPruned
from lepton_jax.structured.prune import structured_prune as structured_prune

if TYPE_CHECKING:
    from lepton_jax.parallel import processes as processes
    from lepton_jax.parallel.compressed import CompressedState as CompressedState
    from lepton_jax.parallel.compressed import compressed as compressed
    from lepton_jax.parallel.compressed import data_parallel as data_parallel
    from lepton_jax.parallel.compressed import refit as refit
    from lepton_jax.parallel.compressed import state_specs as state_specs
    from lepton_jax.parallel.consistency import ReplicaError as ReplicaError
    from lepton_jax.parallel.consistency import check_replicas as check_replicas
    from lepton_jax.parallel.pipeline import pipelined as pipelined
    from lepton_jax.parallel.pipeline import stage_boundary as stage_boundary
    from lepton_jax.parallel.processes import ProcessError as ProcessError

_OVER_DEVICES: Final = {
    "CompressedState": "lepton_jax.parallel.compressed",
    "compressed": "lepton_jax.parallel.compressed",
    "data_parallel": "lepton_jax.parallel.compressed",
    "refit": "lepton_jax.parallel.compressed",
    "state_specs": "lepton_jax.parallel.compressed",
    "ReplicaError": "lepton_jax.parallel.consistency",
    "check_replicas": "lepton_jax.parallel.consistency",
    "pipelined": "lepton_jax.parallel.pipeline",
    "stage_boundary": "lepton_jax.parallel.pipeline",
    "ProcessError": "lepton_jax.parallel.processes",
}
"""What most programs do not need, and where it is: it is imported when it is asked for."""


def __getattr__(name: str) -> Any:
    if name == "processes":
        return importlib.import_module("lepton_jax.parallel.processes")
    if name not in _OVER_DEVICES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OVER_DEVICES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OVER_DEVICES, "processes"})
