"""`Sharding`: how arguments shall lie on a mesh, or who finds out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

PRESETS: Final = ("dp", "fsdp", "tp", "fsdp+tp", "sp", "ep")
SOLVE: Final = "auto"
JUDGES: Final = ("predict", "shardy", "compile")
OBJECTIVES: Final = ("time", "bytes")


@dataclass(frozen=True, init=False)
class Sharding:
    """How arguments shall lie on a mesh, where a dictionary of specs does not say enough.

    Rules and the other options stand beside the specs, not among them: a pattern may be any text.

    Attributes:
        specs: by patterns of paths as `params/.../kernel`, each with a `PartitionSpec`, a tuple of axes or
            logical names, a single name, or None for "every device holds all of it". Where several patterns
            choose an array, the last one holds.
        preset: what decides where no pattern does: `dp`, `fsdp`, `tp`, `fsdp+tp`, `sp`, `ep`, `auto`, or a
            saved plan.
        rules: what logical names stand for: `{"embed": None, "mlp": "model"}`, or pairs as Flax has them.
        local: patterns of arguments of which each process gives its own part of dimension 0.
        judge: what chooses among the best few that `auto` found, presets among them: `predict`, Lepton's
            model; `shardy`, that model with the collectives that XLA's sharding passes find, about half a
            second each; `compile`, with those of the compiled program, its memory and, for TPUs, its cycles.
        objective: what `auto` looks for: the least `time`, or the fewest `bytes` that a device sends in a
            step, with the arithmetic shared as well as in the fastest layouts. Of another preset it chooses
            the mesh where that is open, and how a batch is computed in parts.

    Raises:
        TypeError: something in it is none of these.
        ValueError: there is no preset of this name, no judge or objective, or nothing to choose.

    Example:
        >>> Sharding({"params/.../kernel": (None, "mlp")}, preset="dp", rules={"mlp": "model"}).preset
        'dp'
    """

    specs: tuple[tuple[str, Any], ...]
    preset: Any
    rules: tuple[tuple[str, tuple[str, ...]], ...]
    local: tuple[str, ...]
    judge: str
    objective: str
    _key: Any = field(repr=False, compare=True)

    def __init__(
        self,
        specs: Mapping[str, Any] | None = None,
        *,
        preset: Any = None,
        rules: Mapping[str, Any] | Sequence[tuple[str, Any]] | None = None,
        local: str | Sequence[str] = (),
        judge: str = "predict",
        objective: str = "time",
    ) -> None:
        from lepton_jax.parallel.annotations import rules_of, spec_of
        from lepton_jax.parallel.plan import Plan

        if specs is not None and not isinstance(specs, Mapping):
            raise TypeError(f"shard: specs are a dictionary of patterns and specs, not {specs!r}")
        if isinstance(preset, str) and preset not in (*PRESETS, SOLVE):
            saved = "; a saved plan is read by Plan.load" if preset.endswith(".json") else ""
            raise ValueError(
                f"shard: there is no preset {preset!r}{saved}; there are {', '.join((*PRESETS, SOLVE))}, or "
                "give a dictionary of patterns and specs"
            )
        if preset is not None and not isinstance(preset, (str, Plan)):
            raise TypeError(
                f"shard: {preset!r} is neither a preset nor a saved plan; specs stand in a dictionary, as "
                "{'batch': P('data')}"
            )
        for name, value, known in (("judge", judge, JUDGES), ("objective", objective, OBJECTIVES)):
            if value not in known:
                shown = f"{', '.join(known[:-1])} or {known[-1]}"
                raise ValueError(f"shard: {name} is {shown}, not {value!r}")
        if judge != JUDGES[0] and preset != SOLVE:
            raise ValueError(
                f"shard: judge={judge!r} chooses among what preset='auto' finds; preset={preset!r} leaves "
                "nothing to choose"
            )
        if objective != OBJECTIVES[0] and not isinstance(preset, str):
            raise ValueError(
                f"shard: objective={objective!r} is what preset='auto' looks for, or mesh='auto' and "
                f"microbatches= of a preset; preset={preset!r} leaves nothing to choose"
            )
        written = {} if specs is None else specs
        set_ = object.__setattr__
        set_(self, "specs", tuple((str(key), spec_of(value, repr(key))) for key, value in written.items()))
        set_(self, "preset", preset)
        set_(self, "rules", rules_of(rules))
        set_(self, "local", (local,) if isinstance(local, str) else tuple(local))
        set_(self, "judge", judge)
        set_(self, "objective", objective)
        set_(self, "_key", preset if isinstance(preset, str) else id(preset))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sharding) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self._parts())

    def _parts(self) -> tuple[Any, ...]:
        return self.specs, self._key, self.rules, self.local, self.judge, self.objective

    def solved_by(self, judge: str | None = None, objective: str | None = None) -> Sharding:
        """The same with another judge or objective; None leaves it.

        Raises:
            ValueError: as the class.
        """
        return Sharding(
            dict(self.specs),
            preset=self.preset,
            rules=self.rules,
            local=self.local,
            judge=self.judge if judge is None else judge,
            objective=self.objective if objective is None else objective,
        )

    @classmethod
    def of(cls, shard: Any) -> Sharding:
        """What `shard=` says: patterns, a preset, a plan, a preset with patterns beside it, or a `Sharding`.

        Raises: as the class.
        """
        if isinstance(shard, Sharding):
            return shard
        if shard is None or isinstance(shard, Mapping):
            return cls(shard)
        if isinstance(shard, tuple):
            if len(shard) != 2 or not isinstance(shard[1], Mapping):
                raise TypeError(
                    "shard: a preset with patterns beside it is a pair, as ('fsdp', {'params/head': None}), "
                    f"not {shard!r}"
                )
            return cls(shard[1], preset=shard[0])
        return cls(preset=shard)
