"""Which devices exchange with one another: the replica groups of HLO's text, and their mesh axes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence

import numpy as np

Groups = tuple[tuple[int, ...], ...]

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTS = re.compile(r"\{([\d,\s]*)\}")
_MESH = re.compile(r"mesh\[(.*?)\]")
_MESH_AXIS = re.compile(r"'?([\w.\-]+)'?=(\d+)")
_MESH_REFERENCE = re.compile(r"'?([\w.\-]+)'?(?::\((\d+)\)(\d+))?")


def replica_groups(attributes: str, devices: int) -> Groups:
    """The groups in the attributes of a collective; pairs of source and target for a permutation.

    Three forms are read: lists `{{0,1},{2,3}}`, iota `[2,4]<=[4,2]T(1,0)`, and mesh `mesh['a'=2,'b'=4]
    {'b'}`.

    Args:
        attributes: an instruction's text after its operands.
        devices: how many the program is for, where no group is named; all are in one group then.

    Raises:
        ValueError: the groups are written in a form that is not known.

    Example:
        >>> replica_groups("channel_id=1, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", 4)
        ((0, 2), (1, 3))
    """
    found = re.search(r"(?:replica_groups|source_target_pairs)=\"?(?=([\[{m]))", attributes)
    if found is None:
        return (tuple(range(devices)),)
    text = attributes[found.end() :]
    if found[1] == "[":
        return _iota(text)
    if found[1] == "m":
        return _mesh(text)
    return _lists(text) or (tuple(range(devices)),)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(",") if each.strip())


def _iota(text: str) -> Groups:
    form = _IOTA.match(text)
    if form is None:
        raise ValueError(f"unknown form of replica groups: {text[:80]}")
    return _in_order(form[1], form[2], form[3])


@functools.lru_cache(maxsize=256)
def _in_order(shape: str, dims: str, order: str | None) -> Groups:
    ids = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    ids = ids.transpose(_numbers(order)) if order else ids
    return _rows(ids.reshape(_numbers(shape)))


def _rows(ids: np.ndarray) -> Groups:
    return tuple(tuple(int(each) for each in row) for row in ids.reshape(-1, ids.shape[-1]))


def _lists(text: str) -> Groups:
    """`{{0,1},{2,3}}`, from its opening brace to the one that closes it."""
    end = text.find("}}")
    return tuple(_numbers(each) for each in _LISTS.findall(text[1 : end + 1])) if end >= 0 else ()


def _mesh(text: str) -> Groups:
    """`mesh['a'=2,'b'=4] {'b'}`; an axis may be a part of one, `'b':(2)2`, after a factor of two."""
    form = _MESH.match(text)
    if form is None:
        raise ValueError(f"unknown form of replica groups: {text[:80]}")
    sizes = {name: int(size) for name, size in _MESH_AXIS.findall(form[1])}
    rest = text[form.end() :]
    chosen = rest[rest.find("{") + 1 : rest.find("}")]
    shape: list[int] = []
    within: list[int] = []  # dims of the reshaped mesh that a group runs over
    parts = {name: (int(before or 1), int(size or sizes[name])) for name, before, size in _references(chosen)}
    for name, size in sizes.items():
        if name not in parts:
            shape.append(size)
            continue
        before, part = parts[name]
        shape += [before, part, size // before // part]
        within.append(len(shape) - 2)
    ids = _device_ids(rest[: rest.find("{")], math.prod(sizes.values())).reshape(shape)
    others = [d for d in range(ids.ndim) if d not in within]
    return _rows(ids.transpose([*others, *within]).reshape(-1, math.prod(shape[d] for d in within)))


def _references(text: str) -> list[tuple[str, str, str]]:
    return [(m[1], m[2] or "", m[3] or "") for m in _MESH_REFERENCE.finditer(text) if m[1]]


def _device_ids(text: str, count: int) -> np.ndarray:
    """The devices of a mesh in its order, where it is not that of their numbers."""
    if form := _IOTA.search(text):
        return np.array(_in_order(form[1], form[2], form[3])).reshape(-1)
    if form := re.search(r"device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\)", text):
        return np.array(_in_order(str(count), form[1], form[2])).reshape(-1)
    if form := re.search(r"device_ids=\(?[\[(]?([\d,]+)", text):
        return np.array(_numbers(form[1]))
    return np.arange(count)


def axes_of(groups: Groups, shape: Sequence[int], names: Sequence[str]) -> tuple[str, ...] | None:
    """The mesh axes along which the members of groups differ; devices are numbered in the mesh's order.

    None where a device is not in the mesh, or where the groups take a part of an axis only.

    Example:
        >>> axes_of(((0, 2), (1, 3)), (2, 2), ("data", "model"))
        ('data',)
    """
    if max(map(max, groups), default=0) >= math.prod(shape):
        return None
    varied = np.zeros(len(shape), bool)
    for size in {len(group) for group in groups}:
        ids = np.array([group for group in groups if len(group) == size])
        at = np.stack(np.unravel_index(ids, tuple(shape)))  # [axes, groups, members]
        varied |= (at != at[:, :, :1]).any(axis=(1, 2))
    return tuple(name for name, differs in zip(names, varied, strict=True) if differs)


def chain(pairs: Groups) -> int:
    """How many devices a permutation passes through from its first source on, until it closes or ends.

    1 where every device sends to itself.
    """
    following = {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[0] != pair[1]}
    if not following:
        return 1
    at = next(iter(following))
    seen = {at}
    while at in following and following[at] not in seen:
        at = following[at]
        seen.add(at)
    return len(seen)
