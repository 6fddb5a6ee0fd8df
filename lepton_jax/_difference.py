"""What changed between two graphs, as text: a diff in which untouched values keep their names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Final

_NAME: Final = re.compile(r"%\d+")


def difference(before: str, after: str, context: int = 3) -> str:
    """A unified diff of two graphs' texts.

    A graph numbers its values in order, so one value less renames all that follow. Here the values of
    `after` have the names that they had in `before`; new ones are called %new1, %new2, ...

    Args:
        before: text of `Graph.to_text`.
        after: the same of the changed graph.
        context: how many unchanged lines to show around a change.
    """
    old, new = before.splitlines(), after.splitlines()
    renamed = _renamed(old, new)
    return "\n".join(difflib.unified_diff(old, renamed, "before", "after", "", "", context, ""))


def _renamed(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """The lines of `new` with the names of `old` where lines correspond."""
    partners = dict(_partners([_skeleton(line) for line in old], [_skeleton(line) for line in new]))
    scopes = _scopes(new)
    names: dict[tuple[int, str], str] = {}
    count = 0
    lines = []
    for i, line in enumerate(new):
        partner = partners.get(i)
        scope = scopes[i]
        fresh = _defined(line)
        known = _defined(old[partner]) if partner is not None else []
        for j, name in enumerate(fresh):
            if j < len(known):
                names[scope, name] = known[j]
            else:
                count += 1
                names[scope, name] = f"%new{count}"
        lines.append(_NAME.sub(lambda m, s=scope: names.get((s, m[0]), m[0]), line))  # type: ignore[misc]
    return lines


def _skeleton(line: str) -> str:
    """A line without the names of values."""
    return _NAME.sub("%", line)


def _defined(line: str) -> list[str]:
    """The names that a line defines: those followed by a type."""
    return re.findall(r"%\d+(?=:)", line)


def _scopes(lines: Sequence[str]) -> list[int]:
    """Which graph each line belongs to; every region numbers its own values."""
    found = []
    stack: list[int] = []
    count = 0
    for line in lines:
        text = line.strip()
        if text == "}":
            found.append(stack.pop() if stack else 0)
            continue
        if text.startswith(("graph ", "region ")) and text.endswith("{"):
            count += 1
            stack.append(count)
        elif text.endswith("{"):
            stack.append(stack[-1] if stack else 0)
        found.append(stack[-1] if stack else 0)
    return found


def _partners(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs of lines (in `new`, in `old`) that are the same; the common start and end are found fast."""
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        yield start, start
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        yield len(new) - 1 - end, len(old) - 1 - end
        end += 1
    matcher = difflib.SequenceMatcher(
        None, old[start : len(old) - end], new[start : len(new) - end], autojunk=False
    )
    for block in matcher.get_matching_blocks():
        for i in range(block.size):
            yield start + block.b + i, start + block.a + i
