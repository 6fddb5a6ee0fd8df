"""How an array is quantised: which format, and which elements share a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from lepton_jax.numerics.formats import Format, get_format

Search = Literal["absmax", "mse"]

SEARCHES: Final = ("absmax", "mse")
SCALE_DTYPES: Final = ("float32", "bfloat16")
_NARROW_FROM: Final = 6


@dataclass(frozen=True)
class Scheme:
    """How an array is quantised; hashable, so that it can be static under jit.

    Attributes:
        format: a `Format` or its name; kept as a `Format`.
        symmetric: no zero point. Otherwise (affine, integers only) the range need not be centred at zero.
        shared: axes along which everything shares one scale. For a weight that is contracted over axis 0,
            `(0,)` is one scale per output channel. None: all axes (per tensor); with groups: none but the
            groups'.
        group: elements along `group_axis` that share a scale; any size. A tuple, with as many axes, makes
            blocks of more dimensions. A size that does not divide the axis leaves a smaller last group
            (`padding`). Microscaling formats have their own, 32.
        group_axis: the axis, or axes, of the groups; may be left out if `shared` names just one axis.
        narrow: integers leave out the least code (±127, not −128 … 127): the scale is `max / 127`, and the
            extreme of either sign has a code. Otherwise the scale is `2·max / 255`, which is finer by a
            little, at few bits by much. None: narrow from 6 bits up. Affine schemes have all codes unless
            this is True.
        search: `absmax`: the scale covers the extremes. `mse`: of ranges from 100 % of it down to 20 %, the
            one with the least squared error, for each scale on its own.
        percentile: covers this percentage of the values that share a scale rather than all, e.g. 99.9; what
            is beyond saturates. For affine schemes at both ends.
        scale_dtype: `float32` or `bfloat16`; microscaling formats have their own.
        keep_nan: NaN makes the scale NaN, and so everything that shares it. False saves a comparison for each
            element, for activations; what NaN becomes then depends on the backend (on a CPU, code 0).

    Raises:
        ValueError: a setting that makes no sense, at construction; an axis that an array does not have, when
            used.

    Example:
        >>> Scheme("int4", shared=(0,), group=64).block_sizes((256, 8))  # 64 rows of a column share a scale
        (64, 1)
    """

    format: Format | str = "int8"
    symmetric: bool = True
    shared: tuple[int, ...] | None = None
    group: int | tuple[int, ...] | None = None
    group_axis: int | tuple[int, ...] | None = None
    narrow: bool | None = None
    search: Search = "absmax"
    percentile: float | None = None
    scale_dtype: str = "float32"
    keep_nan: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", get_format(self.format))
        form = self.fmt
        if self.shared is not None:
            object.__setattr__(self, "shared", tuple(self.shared))
        if self.search not in SEARCHES:
            raise ValueError(f"search is one of {', '.join(SEARCHES)}, not {self.search!r}")
        if self.scale_dtype not in SCALE_DTYPES:
            raise ValueError(f"scale_dtype is one of {', '.join(SCALE_DTYPES)}, not {self.scale_dtype!r}")
        if self.percentile is not None and not 0 < self.percentile <= 100:
            raise ValueError(f"percentile must be above 0 and at most 100, not {self.percentile}")
        if not self.symmetric and (form.kind != "integer" or form.block):
            raise ValueError(f"{form} has no affine form; use symmetric=True, or a plain integer format")
        self._check_groups(form)

    def _check_groups(self, form: Format) -> None:
        if form.block and self.group is not None:
            raise ValueError(f"{form} has blocks of {form.block} by definition: leave out group")
        sizes, axes = self.group_sizes, self.group_axes
        if min(sizes, default=1) < 1:
            raise ValueError(f"a group has at least one element, not {min(sizes)}")
        if len(sizes) != len(axes):
            raise ValueError(f"{len(sizes)} group sizes for {len(axes)} group axes: say group_axis for each")

    @property
    def fmt(self) -> Format:
        """The format itself, whether it was given by name or not."""
        return get_format(self.format)

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the greatest value that codes may have: without the least integer if narrow."""
        form = self.fmt
        narrow = self.symmetric and form.bits >= _NARROW_FROM if self.narrow is None else self.narrow
        if form.kind == "integer" and narrow:
            return -form.high, form.high
        return form.low, form.high

    @property
    def span(self) -> float:
        """What the largest magnitude is divided by for a symmetric scale (not for microscaling formats)."""
        low, high = self.limits
        return (high - low) / 2

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Elements to a group, for each group axis."""
        group = self.fmt.block or self.group
        if group is None:
            return ()
        return (group,) if isinstance(group, int) else tuple(group)

    @property
    def group_axes(self) -> tuple[int, ...]:
        """The axes of the groups, as given."""
        if not self.group_sizes:
            return ()
        if isinstance(self.group_axis, int):
            return (self.group_axis,)
        if self.group_axis is not None:
            return tuple(self.group_axis)
        if self.shared is None or len(self.shared) != 1:
            raise ValueError(f"groups of {self.group_sizes[0]} along which axis? Say group_axis")
        return self.shared

    def blocks(self, rank: int) -> tuple[int | None, ...]:
        """Per axis of an array of this rank, how many elements share a scale; None for all.

        Raises:
            ValueError: an axis that such an array does not have.
        """
        groups = dict(zip(self.group_axes, self.group_sizes, strict=True))
        shared = self.shared
        if shared is None:
            shared = () if groups else tuple(range(rank))
        for axis in (*shared, *groups):
            if not -rank <= axis < rank:
                raise ValueError(f"an array of rank {rank} has no axis {axis}; the scheme is {self}")
        found: list[int | None] = [1] * rank
        for axis in shared:
            found[axis] = None
        for axis, size in groups.items():
            found[axis] = size
        return tuple(found)

    def block_sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Per axis of an array, how many elements share a scale: all (at least 1), a group, or 1."""
        blocks = self.blocks(len(shape))
        return tuple(max(n, 1) if block is None else block for n, block in zip(shape, blocks, strict=True))
