"""A step in parts of its batch, so that activations of one part only are in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.ir.paths import choose
from lepton_jax.parallel.microbatches import MicrobatchError, batch_of, in_parts, loop_of, parts_of
from lepton_jax.parallel.roles import Roles, roles_of
from lepton_jax.rewrite import Pass, PassContext, UsageError

_RULE: Final = "loop-over-batch"


@dataclass(frozen=True)
class Microbatch(Pass):
    """The batch in parts, one after the other: gradient accumulation of a step written for the whole batch.

    Before:
        %h: f32[64,512] = dot %x %w;  …;  %g = dot %h %d (over the 64);  %p = %w - 0.1 * %g
    After:
        %g = scan 4 times over %x[16 of 64]: %h: f32[16,512] = dot …;  carry + dot %h %d (over the 16)
        %p = %w - 0.1 * %g

    What has the examples of the batch is computed in the loop, sums over them are added up in it, outputs
    that have them are put together again; all else is computed once, outside. Random bits are those of the
    whole batch. Sums of floats narrower than 32 bits are kept in float32. Reassociate: only the order of
    these sums changes. It runs when it is named, and stands last: passes for loops would undo it.

    A program that has this loop is left as it is; to ask for another count then is an error.

    Attributes:
        count: how many parts.
        batch: which inputs are the batch, separated by blanks: patterns of paths where `params=` is said,
            or positions among all arrays of the call; default: found, as presets find it.
        interleaved: round i takes the examples i, i + count, … rather than neighbours: no example
            moves where devices hold neighbouring ones.

    Raises:
        UsageError: an operation needs all examples at once, or their number does not divide.
    """

    name: ClassVar[str] = "microbatch"

    count: int = 2
    batch: str = ""
    interleaved: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.count < 1:
            raise ValueError(f"count is at least 1, not {self.count}")

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Rewrite the program as a loop."""
        if self.count == 1:
            return
        if not ctx.allows("reassociate"):
            ctx.note("the order of sums over the batch changes, which level='exact' does not allow")
            return
        if not graph.is_static:
            raise UsageError("microbatch: the shapes of the program are symbolic: give them sizes")
        known = loop_of(graph)
        if known is not None:
            if known.params["length"] == self.count:
                return
            raise UsageError(
                f"microbatch: the program is a loop over {known.params['length']} parts of its batch already"
            )
        first = next(iter(graph), None)
        if first is None or not ctx.fire(_RULE, first):
            return
        roles = roles_of(inline_calls(graph), ctx.paths, ctx.params)
        try:
            batch = self._batch(graph, roles)
            in_parts(graph, parts_of(batch, roles, self.count, interleaved=self.interleaved), self.count)
        except MicrobatchError as error:
            raise UsageError(f"microbatch: {error}") from error

    def _batch(self, graph: Graph, roles: Roles) -> dict[Value, int]:
        if not self.batch:
            return batch_of(graph, roles)
        words = self.batch.split()
        if all(word.isdecimal() for word in words):
            places = [int(word) for word in words]
            if max(places) >= len(graph.inputs):
                raise UsageError(f"microbatch: the call has {len(graph.inputs)} arrays, batch={self.batch!r}")
        else:
            try:
                places = sorted(choose(words, roles.paths, "batch"))
            except ValueError as error:
                raise UsageError(f"microbatch: {error}") from error
        found = {graph.inputs[place]: 0 for place in places}
        if len({value.shape[:1] for value in found}) > 1 or not all(value.ndim for value in found):
            raise UsageError(f"microbatch: the inputs of batch={self.batch!r} have not the same leading size")
        return found
