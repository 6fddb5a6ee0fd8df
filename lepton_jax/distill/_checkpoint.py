"""Checkpoints of a run, by orbax: arrays by their paths, and a little JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.ir.paths import leaf_paths
from lepton_jax.rewrite import UsageError


class Checkpoints:
    """A folder of checkpoints.

    Args:
        folder: where they are; it is made.
        keep: how many of the latest stay.
    """

    def __init__(self, folder: Any, keep: int) -> None:
        import orbax.checkpoint as ocp  # type: ignore[import-untyped]

        self._ocp: Any = ocp
        self._folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    @property
    def latest(self) -> int | None:
        """The step of the latest one; None if there is none."""
        step = self._manager.latest_step()
        return None if step is None else int(step)

    def save(self, step: int, tree: Any, facts: dict[str, Any]) -> None:
        """Write a checkpoint; returns when it is whole. One of the same step stays as it is.

        Args:
            step: its number.
            tree: of arrays.
            facts: what JSON can say.
        """
        if self.latest == step:
            return
        arrays = {name: array for name, array in _named(tree).items() if array.size}
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(
                arrays=args.StandardSave(arrays),
                facts=args.JsonSave({**facts, "shapes": _shapes(tree)}),
            ),
        )

    def facts(self) -> dict[str, Any] | None:
        """What the latest one noted; None if there is none."""
        if self.latest is None:
            return None
        args = self._ocp.args.Composite(facts=self._ocp.args.JsonRestore())
        found: dict[str, Any] = self._manager.restore(self.latest, args=args).facts
        return found

    def restore(self, like: Any) -> Any:
        """The arrays of the latest checkpoint, placed as those of a tree.

        Args:
            like: a tree with arrays of the same shapes and dtypes.

        Raises:
            UsageError: it holds other arrays.
        """
        facts = self.facts()
        assert facts is not None
        wanted = _shapes(like)
        if facts["shapes"] != wanted:
            pairs = {**facts["shapes"], **wanted}
            names = [n for n in pairs if facts["shapes"].get(n) != wanted.get(n)]
            raise UsageError(
                f"the checkpoint in {self._folder} is of another run, with other {', '.join(names[:4])}: "
                "give another folder"
            )
        shaped = {name: _like(array) for name, array in _named(like).items() if array.size}
        args = self._ocp.args.Composite(arrays=self._ocp.args.StandardRestore(shaped))
        found = self._manager.restore(self.latest, args=args).arrays
        leaves, tree = jax.tree.flatten(like)
        names = leaf_paths("run", like)
        filled = [
            _unwrapped(found[name], leaf) if leaf.size else leaf
            for name, leaf in zip(names, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, filled)

    def close(self) -> None:
        """Let the folder go."""
        self._manager.close()


def _named(tree: Any) -> dict[str, jax.Array]:
    """The arrays by their paths; keys of random numbers as their data."""
    leaves = zip(leaf_paths("run", tree), jax.tree.leaves(tree), strict=True)
    return {name: jax.random.key_data(leaf) if _is_key(leaf) else leaf for name, leaf in leaves}


def _shapes(tree: Any) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in _named(tree).items()}


def _like(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _unwrapped(found: jax.Array, like: Any) -> jax.Array:
    return jax.random.wrap_key_data(found, impl=jax.random.key_impl(like)) if _is_key(like) else found


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
