"""What became of a model: `model.report()`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lepton_jax._prepared import Prepared
from lepton_jax.rewrite import Report


@dataclass(frozen=True)
class ModelReport:
    """What became of a model; print it.

    Attributes:
        passes: what the passes did to the program.
        params: the prepared parameters.
    """

    passes: Report
    params: Prepared

    @property
    def bytes_before(self) -> int:
        """The bytes of the parameters as they were given."""
        leaves = jax.tree.leaves(self.params.form.arguments_given())
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    @property
    def bytes_after(self) -> int:
        """The bytes of the arrays that are kept."""
        return self.params.nbytes

    @property
    def zeros(self) -> dict[str, float]:
        """The share of zeros in each array of floats with two dimensions or more, by its name: 0 to 1."""
        weights = {name: array for name, array in self.params.items() if array.ndim > 1 and array.size}
        return {
            name: float(jnp.mean(array == 0))
            for name, array in weights.items()
            if jnp.issubdtype(array.dtype, jnp.floating) and not isinstance(array, jax.core.Tracer)
        }

    def __str__(self) -> str:
        share = self.bytes_after / max(self.bytes_before, 1)
        pruned = {name: f", {zero:.1%} zero" for name, zero in self.zeros.items() if zero >= 0.01}
        lines = [
            f"parameters: {self.bytes_before:,} bytes became {self.bytes_after:,} ({share:.3f}×)",
            *(
                f"  {name:<40} {array.dtype}{list(array.shape)}{pruned.get(name, '')}"
                for name, array in self.params.items()
            ),
            str(self.passes),
        ]
        return "\n".join(lines)
