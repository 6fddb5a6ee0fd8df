"""Convolutions in the form that the target is fast at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.passes.lower._convolution import depthwise, products, separable, spectral
from lepton_jax.rewrite import Rule, RulePass

RULES: Final[tuple[Rule, ...]] = (
    *separable.RULES,
    *products.RULES,
    *depthwise.RULES,
    *spectral.RULES,
)


@dataclass(frozen=True)
class Convolution(RulePass):
    """Writes convolutions that XLA's library for CPUs is slow at in another form.

    Before:
        %2 = conv_general_dilated[feature_group_count=64 ...] %x %w
    After:
        %2 = pad %x 0.0;  %3 = slice %2;  %4 = slice %w;  %5 = mul %3 %4;  ...;  %6 = add %5 ...

    Depthwise ones as sums of shifted products, with the gradients of their kernels; those of one tap as
    matrix products; long kernels through Fourier space; constant kernels that are outer products as two
    convolutions. All at level `reassociate` and on CPU only: on GPU and TPU the libraries are good.
    Integer convolutions stay.
    """

    name: ClassVar[str] = "convolution"
    rules: ClassVar[Sequence[Rule]] = RULES
