"""Which operations may have operands and results of few bits, which only read them, and which do neither.

The split into operations that gain from low precision, operations that follow their neighbours, and
operations that stay in float32 is that of TensorFlow's grappler pass
(`tensorflow/core/grappler/optimizers/auto_mixed_precision_lists.h`: allow, infer and clear, deny), of
NVIDIA's apex (`apex/amp/lists`) and of torch.amp's op lists; DeepMind's JMP draws the same line by hand,
per module. The method is that of Micikevicius et al., "Mixed Precision Training" (ICLR 2018,
arXiv:1710.03740): products in half precision, accumulated in float32; reductions, norms, losses and the
weights' masters in float32. In two places these lists are stricter. What divides, takes powers, roots,
exponentials or logarithms never follows, and an operation that stays in float32 is given float32 numbers,
not rounded ones, unless it is in `READERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

PRODUCTS: Final = frozenset({"dot_general", "conv_general_dilated"})
"""What low precision makes faster."""

VIEWS: Final = frozenset(
    {"transpose", "reshape", "squeeze", "expand_dims", "rev", "broadcast_in_dim", "copy", "pvary"}
)
"""What moves numbers and makes no array smaller: converting before or after gives the same."""

EXACT: Final = VIEWS | {
    *("slice", "dynamic_slice", "dynamic_update_slice", "concatenate", "pad", "gather", "split", "select_n"),
    *("max", "min", "neg", "abs", "clamp", "reduce_max", "reduce_min", "reduce_window_max", "name"),
    *("sharding_constraint", "reduce_window_min"),
}
"""What gives the same numbers whether its operands are rounded before it or its result after it."""

ARITHMETIC: Final = frozenset(
    {"add", "sub", "mul", "add_any", "square", "tanh", "logistic", "erf", "one_minus_square"}
)
"""What rounds once more, by no more than a product's operands are rounded."""

SUMS: Final = frozenset({"add", "sub", "add_any"})
"""What may cancel, so that it follows only where nothing of its size would have to be rounded for it.

A bias may be; a residual stream that float32 operations have made, or the target of a loss, may not.
"""

READERS: Final = frozenset({"gt", "ge", "lt", "le", "sign", "reduce_sum"})
"""What may be given rounded numbers but computes as before: a sum adds in float32."""


def follows(op: str, params: Mapping[str, Any], arithmetic: bool, wide_range: bool) -> bool:
    """Whether an operation may run in low precision between two products that do.

    Args:
        op: its name.
        params: its parameters.
        arithmetic: whether additions and multiplications may, or only what is exact.
        wide_range: whether the format has float32's range, so that a cube does not overflow.
    """
    if op in EXACT:
        return True
    if not arithmetic:
        return False
    if op == "integer_pow":
        return bool(wide_range and 1 <= params["y"] <= 3)
    return op in ARITHMETIC
