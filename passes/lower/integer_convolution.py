"""Convolutions of integers in the form that the target is fast at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lepton_jax.passes.lower._integer_convolution import channels, layouts
from lepton_jax.rewrite import Rule, RulePass


@dataclass(frozen=True)
class IntegerConvolution(RulePass):
    """Writes int8 convolutions that XLA's library for CPUs is slow at in another form.

    Before:
        %2: i32[1,64,56,56] = conv_general_dilated[... NCHW ...] %x %w
    After:
        %3 = transpose %x;  ...  %8: i32[1,56,56,64] = conv_general_dilated[... NHWC ...] %5 %7
        %9 = optimization_barrier %8;  %10 = transpose %9

    Channels last; images with few channels as blocks of pixels or as products of patches; depthwise
    ones as sums of shifted products; those of one tap as matrix products; few groups one by one. On CPU
    only, and exact: the sums are of integers. It runs once, late: simplifications would take the
    transposes back into the convolution.
    """

    name: ClassVar[str] = "integer-convolution"
    rules: ClassVar[Sequence[Rule]] = (*layouts.RULES, *channels.RULES)
