"""Masks: weights without what matters least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.numerics.hessian import MatrixLayout
from lepton_jax.numerics.masks import Block, NofM, Unstructured, erdos_renyi
from lepton_jax.passes._weights.on_shards import why_not_on_shards
from lepton_jax.passes._weights.selecting import WeightPass
from lepton_jax.passes._weights.uses import WeightUse
from lepton_jax.passes._weights.watching import Known, Watcher, observe, seen
from lepton_jax.passes.prune._prune.choosing import Chosen, choose, part_of, pattern_of, weights_of
from lepton_jax.passes.prune._prune.masking import How, given, masked
from lepton_jax.passes.prune._prune.matrices import Matrices
from lepton_jax.passes.prune._prune.together import first_of, masks_of, shares_of
from lepton_jax.rewrite import PassContext, UsageError, rewrite
from lepton_jax.rewrite.replacement import write_before

_RULE: Final = "masked-weight"

_TRAINED: Final = ("saliency", "movement", "fisher")
"""Importances that go by gradients."""


@dataclass(frozen=True)
class Prune(WeightPass):
    """Weights with zeros in place of what matters least.

    Before:
        %2: f32 = dot_general %x %w
    After:
        %m: bool = rank |%w| ≥ half of %w's size;  %p = where(%m, %w, 0)    (of parameters alone: `prepare`)
        %2: f32 = dot_general %x %p

    Zeros take next to no bytes in a file (`model.save`); they take as many as before in memory, and no less
    time. Other passes that are named after it, such as `quantize`, go on from the pruned weights. In
    functions that are called in line, masks are found at each call, and gradients reach what stays. Tables
    of rows are left alone unless `ops` names `gather`. In a `shard_map` each device prunes its own part of a
    weight. Approximate; it runs when it is named.

    Attributes:
        sparsity: the share of weights that goes, 0 to 1.
        importance: what decides. `magnitude`: |w|. `wanda`: |w| · ‖x‖₂, among the weights of an output (Sun
            et al., arXiv:2306.11695). `sparsegpt`: what the output loses once the weights that stay have made
            up for it, as they then do (Frantar & Alistarh, arXiv:2301.00774). The last two need calibration.
            `saliency`, `movement` and `fisher` need gradients of a loss: see `lepton.sparsify`.
        pattern: what comes and goes together: `unstructured`, each weight on its own; "2:4", of each four
            inputs in a row two stay (whatever `sparsity` says, unless it is 0); "4x4", blocks of inputs and
            outputs; `channel`, all weights of an output. Inputs of a convolution are its channels.
        among: `layer`: weights are ranked within each array; `global`: over all of them, by |w| or, with
            importance=wanda, by their parts of the squares of their results.
        distribution: how the share is spread where weights are ranked within arrays. `uniform`; `erk`: small
            arrays keep more, after Erdős and Rényi (Evci et al., arXiv:1911.11134); `sensitivity`: such that
            least of the squares of all results is lost, as calibration sees it.
        sweeps: of sparsegpt: so many times each weight is found anew given all others, which brings those
            that stay close to the least squares.

    Raises:
        UsageError: no parameters are named, a selector chooses nothing, or calibration or gradients are
            needed.
        ValueError: a value out of range, or two settings that do not go together.

    Example:
        >>> import jax.numpy as jnp
        >>> import lepton_jax as lepton
        >>> w, x = jnp.linspace(1.0, 2.0, 64 * 64).reshape(64, 64), jnp.eye(64)
        >>> passes = 'deploy,prune{importance=sparsegpt,pattern="2:4"}'
        >>> model = lepton.compile(lambda w, x: x @ w, w, x, passes=passes, calibration=[x])
        >>> float((model(x) != 0).mean())  # of each four weights, two stay
        0.5
    """

    name: ClassVar[str] = "prune"
    approximates: ClassVar[bool] = True
    on_shards: ClassVar[bool] = True

    sparsity: float = 0.5
    importance: Literal["magnitude", "wanda", "sparsegpt", "saliency", "movement", "fisher"] = "magnitude"
    pattern: str = "unstructured"
    among: Literal["layer", "global"] = "layer"
    distribution: Literal["uniform", "erk", "sensitivity"] = "uniform"
    sweeps: int = 5
    ops: str = "dot_general conv_general_dilated"

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        pattern = pattern_of(self.pattern)
        if not 0 <= self.sparsity <= 1 or self.sweeps < 0:
            raise ValueError(
                f"sparsity is 0 to 1 and sweeps not negative, not {self.sparsity} and {self.sweeps}"
            )
        if self.distribution == "erk" and self.sparsity == 1:
            raise ValueError("distribution=erk keeps something: sparsity is less than 1")
        if isinstance(pattern, NofM) and (self.among, self.distribution) != ("layer", "uniform"):
            raise ValueError(f"pattern={self.pattern} has its own share: leave among and distribution out")
        if self.among == "global":
            if self.distribution != "uniform":
                raise ValueError("among=global has no distribution: the ranking makes one")
            if not isinstance(pattern, Unstructured | Block):
                raise ValueError(f"pattern={self.pattern} is ranked within a layer: leave among=global out")
            if self.importance == "sparsegpt":
                raise ValueError(
                    "sparsegpt ranks within layers: distribution=sensitivity gives them their shares"
                )

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Prune what is selected, in program order."""
        if self.importance in _TRAINED:
            raise UsageError(
                f"{self.importance} goes by gradients of a loss, which a program does not have: prune the "
                f"parameters by lepton.sparsify(optimizer, {self.sparsity:g}, importance={self.importance!r})"
            )
        found = self.select(graph, ctx)
        chosen = []
        for uses, reason in weights_of(found):
            each = reason or self._choose(uses, graph)
            if isinstance(each, str):
                for use in uses:
                    self.leave(use, each, _RULE, ctx)
            else:
                chosen.append(each)
        if any(each.watchers or each.sizes for each in chosen) and ctx.watches is not None:
            self._watch(chosen, ctx)
        else:
            self._prune(chosen, graph, ctx)
        self.report_rest(found, _RULE, ctx)

    @property
    def _is_joint(self) -> bool:
        return self.among == "global" or self.distribution == "sensitivity"

    def _choose(self, uses: Sequence[WeightUse], graph: Graph) -> Chosen | str:
        if self._is_joint and any(use.node.graph is not graph for use in uses):
            return "it is in a loop, branch or shard_map: there weights are ranked each on their own"
        by_inputs = self.distribution == "sensitivity" or (self.among, self.importance) == ("global", "wanda")
        none = Matrices((), MatrixLayout(), 0)
        share = self.sparsity if self.distribution == "uniform" else None
        how = How(none, pattern_of(self.pattern), self.importance, share, self.sweeps)
        return choose(uses, how, by_inputs)

    def _watch(self, chosen: Sequence[Chosen], ctx: PassContext) -> None:
        """Let calibration see what there is."""
        known: Known = {}
        for each in chosen:
            wanted: dict[str, tuple[WeightUse, list[Watcher]]] = {use.name: (use, []) for use in each.uses}
            for use, watcher in dict.fromkeys((*each.watchers, *each.sizes)):
                wanted[use.name][1].append(watcher)
            for use, watchers in wanted.values():
                reason = observe(use, watchers, known, ctx)
                if reason is None:
                    self.note(use, "seen by calibration", "", ctx)
                else:
                    self.leave(use, reason, _RULE, ctx)

    def _prune(self, chosen: Sequence[Chosen], graph: Graph, ctx: PassContext) -> None:
        """Put zeros in place of what matters least."""
        known: Known = {}
        ready: list[tuple[Chosen, list[Value], list[Value]]] = []
        for each in chosen:
            values, sizes = self._seen(each.watchers, known, ctx), self._seen(each.sizes, known, ctx)
            reason = next((found for found in (values, sizes) if isinstance(found, str)), None)
            if reason is not None or not ctx.fire(_RULE, each.uses[0].node):
                for use in each.uses if reason is not None else ():
                    self.leave(use, reason or "", _RULE, ctx)
                continue
            assert not isinstance(values, str) and not isinstance(sizes, str)
            ready.append((each, values, sizes))
        if not ready:
            return
        for (each, values, _), (how, first) in zip(ready, self._shared(ready, graph), strict=True):
            fun, read = (given, ()) if self.among == "global" else (masked, values)
            static = {} if self.among == "global" else {"how": how}
            made = rewrite(fun, each.weight, *first, *read, **static)
            if reason := why_not_on_shards(made, each.uses[0].node):
                for use in each.uses:
                    self.leave(use, reason, _RULE, ctx)
                continue
            (pruned,) = write_before(made, each.uses[0].node, _RULE)
            for use in each.uses:
                use.node.set_operand(use.side, pruned)
                self.note(use, self._words(how), _BYTES, ctx)

    def _seen(
        self, watchers: Sequence[tuple[WeightUse, Watcher]], known: Known, ctx: PassContext
    ) -> list[Value] | str:
        """What calibration saw at the uses of a weight; or why there is nothing."""
        if watchers and not ctx.calibration:
            raise UsageError(
                f"{self} needs calibration: lepton.compile(..., calibration=batches), each batch a tuple of "
                "the inputs after the parameters"
            )
        found: list[Value] = []
        for use, watcher in watchers:
            values = seen(use, [watcher], known, ctx)
            if isinstance(values, str):
                return values
            found += values
        return found

    def _shared(
        self, ready: Sequence[tuple[Chosen, list[Value], list[Value]]], graph: Graph
    ) -> Iterator[tuple[How, list[Value]]]:
        """How each weight is pruned, and its mask or share where weights are ranked together."""
        hows = [each.how for each, _, _ in ready]
        weights, sizes = [each.weight for each, _, _ in ready], [some for _, _, some in ready]
        if self._is_joint:
            at = first_of([each.uses[0].node for each, _, _ in ready], graph)
            find = masks_of if self.among == "global" else shares_of
            values = find(weights, sizes, hows, self.sparsity, at)
            yield from ((how, [value]) for how, value in zip(hows, values, strict=True))
        elif self.distribution == "erk":
            shares = erdos_renyi([weight.shape for weight in weights], self.sparsity)
            yield from ((replace(how, sparsity=share), []) for how, share in zip(hows, shares, strict=True))
        else:
            yield from ((how, []) for how in hows)

    def _words(self, how: How) -> str:
        """What was done to a weight."""
        by = f"by {self.importance}, {self.pattern}"
        found = part_of(how)
        if found is None or self.among == "global":
            return f"a part of {self.sparsity:.1%} of all weights zero, {by}"
        return f"{found[0]:.1%} of {found[1]} zero, {by}"


_BYTES: Final = "zeros save bytes in a file, not time"
