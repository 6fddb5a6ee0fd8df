"""What the names of inputs tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

PARAMS: Final = frozenset({"params", "param", "parameters", "weights", "variables", "model", "module"})
"""Names of trees of parameters, as Flax, Equinox, NNX and most examples have them."""

STATE: Final = frozenset(
    {
        *("opt_state", "opt", "optim", "optimizer_state", "optimiser_state", "mu", "nu", "momentum", "trace"),
        *(
            "v_row",
            "v_col",
            "ema",
            "ema_params",
            "target_params",
            "acc_grads",
            "inner_opt_state",
            "batch_stats",
        ),
        *("cache", "rngs", "grads"),
    }
)
"""Names of what stands beside parameters and has their names inside."""


def named_params(paths: Sequence[str]) -> frozenset[int]:
    """The inputs that stand in a tree called as parameters are, and in none of an optimiser's."""
    return frozenset(i for i, path in enumerate(paths) if _is_param(path.split("/")))


def _is_param(names: Sequence[str]) -> bool:
    above = names[:-1] or names
    where = next((k for k, name in enumerate(above) if name in PARAMS), None)
    return where is not None and not STATE.intersection(names[: where + 2])


def named_state(path: str) -> bool:
    """Whether an input stands in a tree called as those beside parameters are."""
    return bool(STATE.intersection(path.split("/")))


def relative(paths: Mapping[int, str]) -> dict[int, str]:
    """The paths without the names that all begin with; at least one name stays."""
    split = {i: path.split("/") for i, path in paths.items()}
    shortest = min(len(names) for names in split.values()) - 1
    first = next(iter(split.values()))
    common = 0
    while common < shortest and all(names[common] == first[common] for names in split.values()):
        common += 1
    return {i: "/".join(names[common:]) for i, names in split.items()}
