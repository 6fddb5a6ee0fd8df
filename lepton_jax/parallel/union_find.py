"""Sets that grow together."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class UnionFind(Generic[T]):
    """Sets of items; an item that was joined with no other is a set by itself.

    Example:
        >>> sets = UnionFind()
        >>> sets.join("a", "b"), sets.join("b", "c")
        (None, None)
        >>> sets.find("c"), sets.find("d")
        ('a', 'd')
    """

    def __init__(self) -> None:
        self._up: dict[T, T] = {}

    def find(self, item: T) -> T:
        """The item that stands for the set of this one."""
        path = []
        while (up := self._up.get(item, item)) != item:
            path.append(item)
            item = up
        for each in path:
            self._up[each] = item
        return item

    def join(self, a: T, b: T) -> None:
        """Make one set of the sets of two items; the first one's item stands for it."""
        a, b = self.find(a), self.find(b)
        if a != b:
            self._up[b] = a
