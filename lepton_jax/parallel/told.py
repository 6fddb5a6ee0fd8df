"""What XLA must be told of products, look-ups and joins, so that it computes them as Lepton means.

XLA's partitioner compares how often the dimensions of a product's operands and result are split. It looks at
the result first; where the counts of dimensions that go together differ, it gathers whole arrays. Devices
along an axis that splits nothing of a product take a part each of what is gathered or scattered for it, and
then send one another these parts: two to three times the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

from lepton_jax.ir import _primitives
from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.factors.elementwise import ELEMENTWISE
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.resharding import reshard, stops
from lepton_jax.parallel.strategies import Strategy, cheapest

PRODUCTS: Final = frozenset({"dot_general", "conv_general_dilated"})
_MADE_ANEW: Final = PRODUCTS | {"gather"}
"""What may come out in a layout that neither its operands have nor its readers want."""

_SLICES: Final = frozenset({"slice", "split", "dynamic_slice"})

HINTS: Final = frozenset({_primitives.SHARD_HINT, "sharding_constraint"})
"""Operations that say how their operand shall lie: `lepton.shard_hint` and JAX's own."""


def way(value: Value, assignment: Mapping[Value, Layout], mesh: MeshSpec) -> tuple[Layout, ...]:
    """The layouts through which what a product or a look-up makes comes to its own.

    Where a product is gathered or exchanged, the first is that in which it is made: else XLA would gather an
    operand instead, however large. So it is where a sum is scattered along a dimension that is split already,
    or while an axis of the mesh splits nothing.
    What is padded between its elements is made whole there: where XLA makes parts of it from an operand of
    uneven parts, it fails, or computes something else.

    Args:
        value: what is made.
        assignment: how values shall lie.
        mesh: the mesh.
    """
    node = value.node
    if node is not None and node.op == "pad":
        return _spread_out(node, assignment.get(value, Layout.whole(value.ndim)))
    if node is None or node.op not in _MADE_ANEW or not node.results[0].is_static:
        return ()
    before, after = _around(node, assignment)
    if any(layout.partial for layout in (*before, *after)):
        return ()
    strategy, _ = cheapest(node, before, after, mesh)
    place = node.results.index(value)
    made, want = strategy.results[place], after[place]
    steps = stops(value.aval, made.complete(), want, mesh)
    if node.op == "gather":
        told = False
    elif made.partial:
        told = any(map(_is_cut_otherwise, made.dims, want.dims)) or (
            _has_idle_axis(strategy, mesh) and bool(set(made.partial) & {*chain.from_iterable(want.dims)})
        )
    else:
        told = bool(reshard(value.aval, made, want, mesh))
    return (made.complete(), *steps) if told else steps


def _spread_out(node: Node, want: Layout) -> tuple[Layout, ...]:
    """The layout that is whole where padding stands between elements, if the one that is wanted is not."""
    inner = [padding[2] for padding in node.params["padding_config"]]
    whole = tuple(() if between else names for between, names in zip(inner, want.dims, strict=True))
    return () if whole == want.dims else (Layout(whole),)


def is_kept_apart(value: Value, assignment: Mapping[Value, Layout], mesh: MeshSpec) -> bool:
    """Whether a barrier must stand between a sum that is scattered and slices that read it.

    XLA for TPUs joins such slices with that of the scattered sum before it looks for one, and then sums all
    of the array on every device; where one slice is all that reads it, compiling fails.

    Args:
        value: what a product makes.
        assignment: how values shall lie.
        mesh: the mesh.
    """
    node = value.node
    if node is None or node.op not in PRODUCTS or mesh.chip.rates.platform != "tpu" or not value.is_static:
        return False
    if not any(user.op in _SLICES for user, _ in value.readers(_is_hint)):
        return False
    before, want = _lie(node.operands, assignment), assignment.get(value, Layout.whole(value.ndim))
    if any(layout.partial for layout in (*before, want)):
        return False
    made = cheapest(node, before, [want], mesh)[0].results[0]
    moves = reshard(value.aval, made, want, mesh, even=True) if made.partial else ()
    return any(each.kind == "reduce-scatter" for each in moves)


def is_in_place(node: Node, assignment: Mapping[Value, Layout], mesh: MeshSpec) -> bool:
    """Whether XLA lays what a product or a broadcast makes as it shall lie, whatever else there is.

    So it is where all that is split are dimensions that go through it; of broadcasts where operations on
    elements read it. Constraints would do harm there: where scores of attention have one, and what their
    gradient is made of another, XLA keeps the scores widened. So what is widened has none either where its
    operands lie as it needs them, as queries split along the sequence and whole keys do.

    Args:
        node: any operation.
        assignment: how values shall lie.
        mesh: the mesh.
    """
    if node.op not in ("dot_general", "broadcast_in_dim"):
        return False
    if is_widened(node, assignment):
        strategy, _ = cheapest(node, *_around(node, assignment), mesh)
        if (list(strategy.operands), list(strategy.results)) == _around(node, assignment):
            return True
    if any(_says_otherwise(user, assignment) for user, _ in node.results[0].uses):
        return False
    result, kept = node.results[0], list[tuple[Value, Sequence[int]]]()
    if node.op == "dot_general":
        batch = node.params["dimension_numbers"][1]
        kept += [*zip(node.operands, batch, strict=True), (result, range(len(batch[0])))]
    else:
        (value, *_), places = node.operands, node.params["broadcast_dimensions"]
        if value.shape != tuple(result.shape[place] for place in places):
            return False
        if any(user.op not in ELEMENTWISE for user, _ in result.uses):
            return False
        kept += [(value, range(value.ndim)), (result, places)]
    found = set()
    for each, dims in kept:
        layout = assignment.get(each)
        if each.is_const or layout is None or layout.partial:
            return False
        if any(names for dim, names in enumerate(layout.dims) if dim not in dims):
            return False
        found.add(tuple(layout.dims[dim] for dim in dims))
    return len(found) == 1 and any(found.pop())


def is_widened(node: Node, assignment: Mapping[Value, Layout]) -> bool:
    """Whether a product in batches whose rows or columns are split is read in a wider type alone.

    So are scores of attention, and what their gradient is made of, where the sequence is split.

    Args:
        node: any operation.
        assignment: how values shall lie.
    """
    if node.op != "dot_general" or not node.params["dimension_numbers"][1][0] or not node.result.is_static:
        return False
    known = [assignment.get(value) for value in (*node.operands, node.result)]
    if any(layout is None or layout.partial for layout in known):
        return False
    batches = len(node.params["dimension_numbers"][1][0])
    if not any(assignment[node.result].dims[batches:]):
        return False
    if any(_says_otherwise(user, assignment) for user, _ in node.result.uses):
        return False
    readers = [user for user, _ in node.result.readers(lambda user: user.op == "transpose")]
    return bool(readers) and all(
        user.op == "convert_element_type" and user.result.dtype.itemsize > node.result.dtype.itemsize
        for user in readers
    )


def told_behind(value: Value, assignment: Mapping[Value, Layout]) -> Value:
    """The value behind which the constraint on a product stands: it, or its transpose, its only reader.

    XLA multiplies the other way round and writes the transposed result at once, where nothing stands between.
    Else gradients of weights lie otherwise than the weights, and these are copied for the update.

    Args:
        value: what shall have a constraint.
        assignment: how values shall lie.
    """
    if value.node is None or value.node.op != "dot_general":
        return value
    while len(value.uses) == 1:
        ((user, _),) = value.uses
        if user.op != "transpose" or value not in assignment or user.result not in assignment:
            break
        turned = tuple(assignment[value].dims[dim] for dim in user.params["permutation"])
        if assignment[user.result].dims != turned:
            break
        value = user.result
    return value


def _says_otherwise(user: Node, assignment: Mapping[Value, Layout]) -> bool:
    """Whether a reader is a constraint, or a transpose with another layout: XLA may prefer what that says."""
    if user.op != "transpose" or user.result not in assignment:
        return _is_hint(user)
    have = assignment.get(user.operands[0])
    turned = None if have is None else tuple(have.dims[dim] for dim in user.params["permutation"])
    return turned is not None and turned != assignment[user.result].dims


def _is_hint(node: Node) -> bool:
    """Whether a node only says how an array lies."""
    return node.op in HINTS


def needs(node: Node, assignment: Mapping[Value, Layout], mesh: MeshSpec) -> Iterator[tuple[int, Layout]]:
    """The operands that XLA would not lay as they are needed, and how they are.

    What is joined end to end lies alike before: XLA would lay all of it as some one part. Of a product, what
    both operands have is split alike in both. What stays split, but otherwise, is laid so before: XLA's
    partitioner may end the process there (jaxlib 0.12, `ReplicateOnLastTileDim`). So is what is gathered
    while an axis of the mesh splits nothing, and for scores of attention, which have no constraint of their
    own (`is_in_place`).

    Args:
        node: any operation.
        assignment: how values shall lie.
        mesh: the mesh.
    """
    if not (node.op == "concatenate" or node.op in PRODUCTS) or node.results[0] not in assignment:
        return
    before, after = _around(node, assignment)
    if not node.result.is_static or any(layout.partial for layout in (*before, *after)):
        return
    strategy, _ = cheapest(node, before, after, mesh)
    is_idle = node.op in PRODUCTS and _has_idle_axis(strategy, mesh)
    widened = is_widened(node, assignment) and list(strategy.results) == after
    for place, want in enumerate(strategy.operands):
        if want == before[place]:
            continue
        pairs = list(zip(before[place].dims, want.dims, strict=True))
        gathered = is_idle and any(set(have) - set(need) for have, need in pairs)
        cut = node.op == "dot_general" and any(_is_cut_otherwise(*pair) for pair in pairs)
        if node.op == "concatenate" or gathered or cut or widened:
            yield place, want


def _has_idle_axis(strategy: Strategy, mesh: MeshSpec) -> bool:
    """Whether an axis of the mesh splits neither operands nor results, and completes no sum."""
    layouts = (*strategy.operands, *strategy.results)
    used = {name for each in layouts for name in (*chain.from_iterable(each.dims), *each.partial)}
    return any(axis.size > 1 and axis.name not in used for axis in mesh.axes)


def _is_cut_otherwise(have: tuple[str, ...], want: tuple[str, ...]) -> bool:
    return bool(have) and bool(want) and have != want


def _around(node: Node, assignment: Mapping[Value, Layout]) -> tuple[list[Layout], list[Layout]]:
    """How the operands and the results of a node lie."""
    return _lie(node.operands, assignment), _lie(node.results, assignment)


def _lie(values: list[Value] | tuple[Value, ...], assignment: Mapping[Value, Layout]) -> list[Layout]:
    return [assignment.get(value, Layout.whole(value.ndim)) for value in values]
