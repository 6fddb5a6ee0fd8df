"""Which dimensions of which values must be cut together.

Interface for who cuts (`lepton_jax/ir/cutting`):

    found = analyse(graph, params={0: "params/a", 1: "params/b"}, protect={(0, 1): "you protect it"})
    found.groups: tuple[Group, ...]       Group(name, units, params: tuple[Slice, ...], pinned, kind)
    found.select({group name: kept units}) -> {(input position, dim): kept indices}
    found.kept({(input position, dim): kept indices}) -> {Value: per dimension kept indices or None}
    found.counts: tuple[Count, ...]       count.new(kept) replaces count.node.operands[count.operand]

`analyse` wants calls inlined and constants folded, as `lepton_jax/structured/dependencies.py`
leaves them, and does not change the graph. A region that several calls share is met by all of them: its
dimensions are united.

What a cut leaves to the one who rebuilds the nodes; `kept` says it of every operand and result:
  - `iota` along a cut dimension: a constant of the kept indices (index i keeps its number i).
  - constants: cut as parameters are.
  - slice, split: a window of what is kept. Where the kept of the window
    is not evenly spaced among the kept of the operand (strides), a gather of the positions.
  - pad: entries that are added have indices of their own and may go one by one.
  - rev: the kept of the operand reversed. concatenate, stack, tile, reshape, broadcast_in_dim: new sizes.
  - conv_general_dilated with groups: `feature_group_count` = kept input features / size of the kernel's
    input dimension. (Whole groups go, or the same share of each.)
  - scan of which layers go: `length`.
  - random_bits: its shape.
"""

from lepton_jax.ir.dimensions.analysis import analyse as analyse
from lepton_jax.ir.dimensions.result import Count as Count
from lepton_jax.ir.dimensions.result import Dependencies as Dependencies
from lepton_jax.ir.dimensions.result import DimensionError as DimensionError
from lepton_jax.ir.dimensions.result import Group as Group
from lepton_jax.ir.dimensions.result import Kept as Kept
from lepton_jax.ir.dimensions.result import Kind as Kind
from lepton_jax.ir.dimensions.result import Slice as Slice
