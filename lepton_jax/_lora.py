"""`lepton.lora`: a function with adapters of low rank beside its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lepton_jax._modules import as_function
from lepton_jax.rewrite import get_pass

if TYPE_CHECKING:
    from lepton_jax._lora_function import Lora


def lora(
    fun: Callable[..., Any] | Any,
    *args: Any,
    rank: int = 8,
    alpha: float | None = None,
    only: str | None = None,
    skip: str | None = None,
    scope: str | None = None,
    ops: str = "dot_general conv_general_dilated",
    least: int = 0,
    seed: int = 0,
) -> Lora:
    """A function with adapters of low rank beside its weights: `lora(fun, params, *sample)`.

    What reads a weight W gives `x W + alpha / rank · (x down) up` (Hu et al., arXiv:2106.09685). Weights are
    found by where they come from, as by the pass `quantize`: in any function, in loops over layers too.

    Args:
        fun: as in `compile`: a function of parameters and inputs; a Linen module, whose variables follow; or
            an NNX or Equinox module or a method of one.
        args: the parameters (unless `fun` holds them), and a sample of each input.
        rank: of the adapters, or what a weight has at most.
        alpha: what adapters add is multiplied by `alpha / rank`; `rank` if None.
        only: as in `WeightPass`: patterns of paths; only weights made of parameters there.
        skip: likewise: none of these.
        scope: a regular expression on scopes.
        ops: operations; `gather` for tables of embeddings.
        least: only weights with so many elements at least.
        seed: of where adapters start.

    Returns:
        The function, with what training starts from in its `adapters`.

    Raises:
        UsageError: a selector chooses nothing, or nothing that is chosen takes an adapter.
        ValueError: the rank is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> f = lora(lambda w, x: x @ w, jnp.ones((6, 4)), jnp.ones((2, 6)), rank=2)
        >>> jax.tree.map(jnp.shape, f.adapters)
        {'w': {'down': (6, 2), 'up': (2, 4)}}
        >>> slopes = jax.grad(lambda a: f(a, f.params, jnp.ones((2, 6))).sum())(f.adapters)
    """
    if rank < 1:
        raise ValueError(f"rank={rank} is not positive")
    from lepton_jax._lora_function import Lora  # passes are loaded when they are wanted

    function, params, sample = as_function(fun, args)
    scale = 1.0 if alpha is None else alpha / rank
    options: dict[str, Any] = {"only": only, "skip": skip, "scope": scope, "ops": ops, "least": least}
    beside: Any = get_pass("lora")
    return Lora(function, params, sample, beside(**options, rank=rank, scale=scale), seed)
