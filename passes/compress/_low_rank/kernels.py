"""Convolutions as chains of smaller ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics.low_rank_kernels import (
    channel_factors,
    kernel_spectra,
    spatial_factors,
    tucker_factors,
)
from lepton_jax.passes.compress._low_rank.form import Factors, Form

Geometry = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Kernel(Form):
    """A convolution without groups.

    Attributes:
        params: the convolution's, as items.
        positions: of the input and of the result, along each axis of space.
        precision: as it was.
        wide: what is summed up in.
    """

    params: Geometry
    positions: tuple[tuple[int, ...], tuple[int, ...]]
    precision: Any
    wide: Any

    @property
    def spec(self) -> tuple[int, ...]:
        """The kernel's axes of outputs, inputs, and space."""
        return tuple(dict(self.params)["dimension_numbers"].rhs_spec)

    @property
    def sizes(self) -> tuple[int, tuple[int, ...], int]:
        """Inputs, space and outputs."""
        outputs, inputs, *space = (self.shape[i] for i in self.spec)
        return inputs, tuple(space), outputs

    @property
    def dense(self) -> float:
        """For each sample."""
        return float(math.prod(self.shape) * math.prod(self.positions[1]))

    def spectra(self, weight: jax.Array, hessian: jax.Array | None) -> Factors:
        """See `kernel_spectra`."""
        return kernel_spectra(self.canonical(weight), hessian, self.name)

    def canonical(self, kernel: jax.Array) -> jax.Array:
        """The kernel as [inputs, space..., outputs]."""
        outputs, inputs, *space = self.spec
        return lax.transpose(kernel, (inputs, *space, outputs))

    def convolve(self, x: jax.Array, kernel: jax.Array, which: range | None, out: Any = None) -> jax.Array:
        """A convolution along some axes of space alone; the kernel as [inputs, space of them..., outputs].

        Args:
            which: of the axes of space; None: all.
            out: where the axes of the result stand; as those of the input if it is None.
        """
        count = len(self.spec) - 2
        chosen = range(count) if which is None else which
        full = [kernel.shape[1 + chosen.index(i)] if i in chosen else 1 for i in range(count)]
        kernel = kernel.reshape(kernel.shape[0], *full, kernel.shape[-1])
        known = dict(self.params)
        numbers = known["dimension_numbers"]
        place = numbers.lhs_spec if out is None else out

        def along(name: str, otherwise: Any) -> tuple[Any, ...]:
            return tuple(each if i in chosen else otherwise for i, each in enumerate(known[name]))

        made = lax.conv_general_dilated(
            x,
            self.laid(kernel),
            window_strides=along("window_strides", 1),
            padding=along("padding", (0, 0)),
            lhs_dilation=along("lhs_dilation", 1),
            rhs_dilation=along("rhs_dilation", 1),
            dimension_numbers=lax.ConvDimensionNumbers(numbers.lhs_spec, numbers.rhs_spec, place),
            precision=self.precision,
            preferred_element_type=self.wide,
        )
        return made if out is not None else made.astype(kernel.dtype)

    def laid(self, kernel: jax.Array) -> jax.Array:
        """A kernel [inputs, space..., outputs] as this convolution takes it."""
        order = [self.spec.index(axis) for axis in range(len(self.spec))]  # 0 outputs, 1 inputs, then space
        return lax.transpose(kernel, [{0: kernel.ndim - 1, 1: 0}.get(j, j - 1) for j in order])

    @property
    def out(self) -> Any:
        """Where the axes of the result stand."""
        return dict(self.params)["dimension_numbers"].out_spec


@dataclass(frozen=True)
class Channel(Kernel):
    """A kernel with fewer outputs, then a 1×1 kernel."""

    @property
    def name(self) -> str:
        """In the report."""
        return "channel"

    @property
    def most(self) -> int:
        """The smaller side of the kernel as a matrix."""
        inputs, space, outputs = self.sizes
        return min(inputs * math.prod(space), outputs)

    def parameters(self, rank: int) -> int:
        """Of both kernels."""
        inputs, space, outputs = self.sizes
        return rank * (inputs * math.prod(space) + outputs)

    def operations(self, rank: int) -> float:
        """For each sample."""
        return float(self.parameters(rank) * math.prod(self.positions[1]))

    def factors(self, weight: jax.Array, hessian: jax.Array | None, rank: int) -> Factors:
        """[inputs, space..., rank] and [rank, outputs]."""
        return channel_factors(self.canonical(weight), rank, hessian)

    def apply(self, x: jax.Array, *factors: jax.Array) -> jax.Array:
        """The kernel, then the channels."""
        return self.convolve(self.convolve(x, factors[0], None), factors[1], range(0), self.out)

    def weight(self, *factors: jax.Array) -> jax.Array:
        """The kernel, as it lies."""
        first, second = factors
        made = jnp.tensordot(first, second, 1)
        return self.laid(made)

    def joined(self, left: Factors, right: Factors) -> Factors:
        """Side by side."""
        return jnp.concatenate([left[0], right[0]], -1), jnp.concatenate([left[1], right[1]], 0)

    def parted(self, factors: Factors, rank: int) -> tuple[Factors, Factors]:
        """The first vectors, and the others."""
        first, others = factors
        return (first[..., :rank], others[:rank]), (first[..., rank:], others[rank:])


@dataclass(frozen=True)
class Spatial(Channel):
    """A kernel along the first axis of space, then one along the others."""

    @property
    def name(self) -> str:
        """In the report."""
        return "spatial"

    @property
    def most(self) -> int:
        """The smaller side of the kernel as a matrix."""
        inputs, space, outputs = self.sizes
        return min(inputs * space[0], math.prod(space[1:]) * outputs)

    def parameters(self, rank: int) -> int:
        """Of both kernels."""
        inputs, space, outputs = self.sizes
        return rank * (inputs * space[0] + math.prod(space[1:]) * outputs)

    def operations(self, rank: int) -> float:
        """For each sample; the first kernel leaves the other axes of space as they are."""
        inputs, space, outputs = self.sizes
        before, after = self.positions
        first = inputs * space[0] * after[0] * math.prod(before[1:])
        return float(rank * (first + math.prod(space[1:]) * outputs * math.prod(after)))

    def factors(self, weight: jax.Array, hessian: jax.Array | None, rank: int) -> Factors:
        """[inputs, height, rank] and [rank, others..., outputs]."""
        return spatial_factors(self.canonical(weight), rank, hessian)

    def apply(self, x: jax.Array, *factors: jax.Array) -> jax.Array:
        """Along the first axis, then along the others."""
        small = self.convolve(x, factors[0], range(1))
        return self.convolve(small, factors[1], range(1, len(self.spec) - 2), self.out)


@dataclass(frozen=True)
class Tucker(Kernel):
    """Fewer inputs, a kernel on them with fewer outputs, and all outputs."""

    @property
    def name(self) -> str:
        """In the report."""
        return "tucker"

    @property
    def most(self) -> int:
        """Of the outputs within."""
        inputs, space, outputs = self.sizes
        return min(inputs * math.prod(space), outputs)

    def ranks(self, rank: int) -> tuple[int, ...]:
        """Of the inputs within, which are to all inputs as the outputs within are to all outputs."""
        inputs, space, outputs = self.sizes
        taps = math.prod(space)
        alike = max(round(rank * inputs / outputs), -(-rank // taps), 1)
        return min(alike, inputs, rank * taps), rank

    def parameters(self, rank: int) -> int:
        """Of the three kernels."""
        inputs, space, outputs = self.sizes
        first, second = self.ranks(rank)
        return inputs * first + first * math.prod(space) * second + second * outputs

    def operations(self, rank: int) -> float:
        """For each sample."""
        inputs, space, outputs = self.sizes
        first, second = self.ranks(rank)
        before, after = (math.prod(each) for each in self.positions)
        core = first * math.prod(space) * second
        return float(inputs * first * before + (core + second * outputs) * after)

    def factors(self, weight: jax.Array, hessian: jax.Array | None, rank: int) -> Factors:
        """See `tucker_factors`."""
        first, second = self.ranks(rank)
        return tucker_factors(self.canonical(weight), (first, second), hessian)

    def apply(self, x: jax.Array, *factors: jax.Array) -> jax.Array:
        """Channels, the kernel, channels."""
        before, core, after = factors
        small = self.convolve(self.convolve(x, before, range(0)), core, None)
        return self.convolve(small, after, range(0), self.out)

    def words(self, rank: int) -> str:
        """What was done, for the report."""
        first, second = self.ranks(rank)
        inputs, _, outputs = self.sizes
        return f"tucker, ranks {first} of {inputs} and {second} of {outputs}"

    def weight(self, *factors: jax.Array) -> jax.Array:
        """The kernel, as it lies."""
        before, core, after = factors
        return self.laid(jnp.tensordot(jnp.tensordot(before, core, 1), after, 1))

    def joined(self, left: Factors, right: Factors) -> Factors:
        """Never: a sum of two has no such form of the ranks' sum."""
        raise NotImplementedError

    def parted(self, factors: Factors, rank: int) -> tuple[Factors, Factors]:
        """Never, likewise."""
        raise NotImplementedError
