"""An array in memory."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Span:
    """An array, and when it is there.

    Attributes:
        bytes: on one device.
        born: the step that makes it; 0 for what is there from the start.
        reads: the steps that read it.
        argument: whether it is an input.
        given: whether it has memory all the time, as inputs and outputs have.
        main: whether it is only ever in the main memory.
        outside: whether it is made in the main memory, from which it may be fetched.
        shares: whether it may take the place of what it is made of, as what is made by elements does.
        over: arrays whose place in the main memory it takes if nobody reads them later.
    """

    bytes: int
    born: int
    reads: list[int] = field(default_factory=list)
    argument: bool = False
    given: bool = False
    main: bool = False
    outside: bool = False
    shares: bool = False
    over: tuple[Span, ...] = ()

    @property
    def last(self) -> int:
        """The step after which nobody reads it."""
        return max((self.born, *self.reads))
