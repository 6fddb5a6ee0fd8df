"""Everything Lepton knows about JAX that changes between JAX versions.

Nothing else but `_primitives`, beside it, imports `jax._src`, `jax.interpreters` or `jax.extend`.
Two generations of JAX are supported, up to 0.10 and from 0.11: `jaxprs` and `primitives` say how they differ.
"""

from lepton_jax.ir._jax.compiling import compile_lowered as compile_lowered
from lepton_jax.ir._jax.compiling import is_absent as is_absent
from lepton_jax.ir._jax.compiling import known_device as known_device
from lepton_jax.ir._jax.compiling import run_mlir_passes as run_mlir_passes
from lepton_jax.ir._jax.coordination import forget as forget
from lepton_jax.ir._jax.coordination import store as store
from lepton_jax.ir._jax.coordination import tell as tell
from lepton_jax.ir._jax.coordination import told as told
from lepton_jax.ir._jax.equations import Placement as Placement
from lepton_jax.ir._jax.equations import context_off_mesh as context_off_mesh
from lepton_jax.ir._jax.equations import hide_frames as hide_frames
from lepton_jax.ir._jax.equations import inlined_source as inlined_source
from lepton_jax.ir._jax.equations import summarize as summarize
from lepton_jax.ir._jax.equations import without_places as without_places
from lepton_jax.ir._jax.jaxprs import DropVar as DropVar
from lepton_jax.ir._jax.jaxprs import Literal as Literal
from lepton_jax.ir._jax.jaxprs import eval_jaxpr as eval_jaxpr
from lepton_jax.ir._jax.jaxprs import forget_tracers as forget_tracers
from lepton_jax.ir._jax.jaxprs import is_closed as is_closed
from lepton_jax.ir._jax.jaxprs import is_jaxpr as is_jaxpr
from lepton_jax.ir._jax.jaxprs import open_jaxpr as open_jaxpr
from lepton_jax.ir._jax.jaxprs import parts as parts
from lepton_jax.ir._jax.jaxprs import trace_flat as trace_flat
from lepton_jax.ir._jax.jaxprs import without_consts as without_consts
from lepton_jax.ir._jax.primitives import REGION_OPS as REGION_OPS
from lepton_jax.ir._jax.primitives import jit_is_plain as jit_is_plain
from lepton_jax.ir._jax.primitives import primitive as primitive
from lepton_jax.ir._jax.primitives import primitive_table as primitive_table
from lepton_jax.ir._jax.primitives import region_jaxprs as region_jaxprs
from lepton_jax.ir._jax.primitives import set_weak_type as set_weak_type
from lepton_jax.ir._jax.settings import backend_platform as backend_platform
from lepton_jax.ir._jax.settings import eager as eager
from lepton_jax.ir._jax.settings import matmul_precision as matmul_precision
from lepton_jax.ir._jax.settings import x64_enabled as x64_enabled
from lepton_jax.ir._jax.values import ShapedArray as ShapedArray
from lepton_jax.ir._jax.values import Tracer as Tracer
from lepton_jax.ir._jax.values import aval_off_mesh as aval_off_mesh
from lepton_jax.ir._jax.values import in_shard_map as in_shard_map
from lepton_jax.ir._jax.values import is_array_aval as is_array_aval
from lepton_jax.ir._jax.values import is_extended as is_extended
from lepton_jax.ir._jax.values import plain_constant as plain_constant
from lepton_jax.ir._jax.values import sharding_off_mesh as sharding_off_mesh
from lepton_jax.ir._jax.values import varying_axes as varying_axes
