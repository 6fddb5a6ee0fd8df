"""Convolutions of integers in the form that the target is fast at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from lepton_jax.ir.graph import Graph
from lepton_jax.passes.lower._integer_convolution import channels, codes, floats, layouts
from lepton_jax.rewrite import Pass, PassContext, Rule, run_rules
from lepton_jax.rewrite.context import Level
from lepton_jax.targets.convolution_forms import has_dot_products
from lepton_jax.targets.processor import multiplies_vectors

_ALWAYS: Final[tuple[Rule, ...]] = (*layouts.RULES, *floats.RULES, *codes.RULES)
_RULES: Final[dict[str, tuple[Rule, ...]]] = {
    "yes": (*_ALWAYS, *channels.WITH_DOT_PRODUCTS),
    "vnni": (*_ALWAYS, *channels.SMALL_IMAGES, *channels.WITH_DOT_PRODUCTS),
    "no": (*_ALWAYS, *channels.WITHOUT, *floats.WITHOUT_DOT_PRODUCTS),
}


@dataclass(frozen=True)
class IntegerConvolution(Pass):
    """Writes int8 convolutions that XLA's library for CPUs is slow at in another form.

    Before:
        %2: i32[1,64,56,56] = conv_general_dilated[... NCHW ...] %x %w
    After:
        %3 = transpose %x;  ...  %8: i32[1,56,56,64] = conv_general_dilated[... NHWC ...] %5 %7
        %9 = optimization_barrier %8;  %10 = transpose %9

    Channels last; images with few channels as blocks of pixels or as products of patches; depthwise
    ones as sums of shifted products; those of one tap as matrix products; few groups one by one; rows as
    images; volumes, images with holes, and many groups in float32, whose sums of so many codes are exact.
    Maxima over windows of integers are made of shifted parts, and codes that several operations read are made
    once. On CPU only, and exact: the sums are of integers. It runs once, late: simplifications would take the
    transposes back into the convolution.

    Attributes:
        level: a tighter limit than the run's on the rules' semantics level.
        dot_products: whether the processor has instructions for dot products of int8 (VNNI, AMX): `yes`,
            `vnni` for those of AVX-512 and no AMX, `no`, or `auto`: what this machine has. Without them few
            channels are convolved in float32, and many as products of patches; with `vnni`, many channels
            of small images too.
    """

    name: ClassVar[str] = "integer-convolution"

    level: Level | None = None
    dot_products: Literal["auto", "yes", "vnni", "no"] = "auto"

    @property
    def rules(self) -> Sequence[Rule]:
        """The rules for the processor."""
        return _RULES[_of_this_machine() if self.dot_products == "auto" else self.dot_products]

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Apply the rules; where they ran before, to what has changed since."""
        run_rules(graph, self.rules, ctx, level=self.level, since=ctx.settled.get(self, 0))


def _of_this_machine() -> str:
    if multiplies_vectors():
        return "vnni"
    return "yes" if has_dot_products() else "no"
