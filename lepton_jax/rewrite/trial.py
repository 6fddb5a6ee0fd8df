"""What passes say of the sites that `lepton.sensitivity` tries one by one."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tried:
    """A site that is tried.

    Attributes:
        name: of the site.
        op: the operation.
        paths: of the parameters that the weight is made of.
        done: what is done to it, in words.
        before: bytes of the weight in floats.
        after: bytes in codes, with scales.
        is_estimated: whether the graph has an output with the estimate.
        size: elements of the weight.
    """

    name: str
    op: str
    paths: tuple[str, ...]
    done: str
    before: int
    after: int
    is_estimated: bool
    size: int


@dataclass
class Trials:
    """What a pass on trial leaves behind.

    Attributes:
        flags: the position of the flags among the inputs; None while calibration runs.
        sites: in the order of the flags.
    """

    flags: int | None = None
    sites: list[Tried] = field(default_factory=list)
