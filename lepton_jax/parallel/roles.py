"""What the inputs of a program are: parameters, the optimiser's state, a batch.

What the user names as parameters is believed. Otherwise their names tell (`state/params/…`), then what comes
back: of a training step, arrays that go in and come out are its state, and those among them that more depends
on than their own update are the parameters. A function that returns no state has its parameters in its first
argument.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel._roles.carried import Carried, carried, is_multiplied
from lepton_jax.parallel._roles.names import named_params, named_state, relative
from lepton_jax.parallel._roles.shapes import corresponding
from lepton_jax.parallel.layouts import Layout

Kind = Literal["param", "state", "batch", "other"]
Dims = tuple[int | None, ...]


@dataclass(frozen=True)
class Roles:
    """What each input of a program is.

    Attributes:
        paths: of each input, as `state/params/dense/kernel`.
        kinds: of each input. `param`; `state`: comes back changed and is no parameter; `batch`: what a call
            is given, its leading dimension is the batch; `other`: scalars, keys of random numbers.
        owners: of state that belongs to a parameter, by position, the position of that parameter and of each
            dimension of the state the parameter's dimension, or None.
        returned: by the position of parameters and state, the position of the output that is its next value
            or its gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> from lepton_jax.ir import trace
        >>> graph = trace(lambda params, x: x @ params["w"], {"w": jnp.ones((4, 8))}, jnp.ones((2, 4)))
        >>> roles_of(graph, ["params/w", "x"]).kinds
        ('param', 'batch')
    """

    paths: tuple[str, ...]
    kinds: tuple[Kind, ...]
    owners: Mapping[int, tuple[int, Dims]] = field(default_factory=dict)
    returned: Mapping[int, int] = field(default_factory=dict)

    @property
    def params(self) -> tuple[int, ...]:
        """The positions of the parameters."""
        return self._of("param")

    @property
    def state(self) -> tuple[int, ...]:
        """The positions of state that is no parameter: the optimiser's, running statistics."""
        return self._of("state")

    @property
    def batch(self) -> tuple[int, ...]:
        """The positions of what a call is given."""
        return self._of("batch")

    def _of(self, kind: Kind) -> tuple[int, ...]:
        return tuple(i for i, each in enumerate(self.kinds) if each == kind)

    def follow(self, layouts: Mapping[int, Layout]) -> dict[int, Layout]:
        """The layouts of the optimiser's state, which lies as its parameters do.

        Args:
            layouts: of parameters, by position.

        Returns:
            By position: of the state that belongs to these parameters. Dimensions that the parameter does not
            have are whole.
        """
        found: dict[int, Layout] = {}
        for position, (owner, dims) in self.owners.items():
            if owner in layouts:
                split = layouts[owner].dims
                found[position] = Layout(tuple(() if dim is None else split[dim] for dim in dims))
        return found


def roles_of(graph: Graph, paths: Sequence[str] = (), params: Collection[int] = ()) -> Roles:
    """What each input of a program is.

    Args:
        graph: a forward function, a loss, its gradient or a training step. It is not changed.
        paths: of each input, argument and way through its tree; `input0`, … where none are given.
        params: the positions of inputs that the user calls parameters; found if there are none.

    Raises:
        ValueError: the number of paths is not that of the inputs.
    """
    names = tuple(paths) or tuple(f"input{i}" for i in range(len(graph.inputs)))
    if len(names) != len(graph.inputs):
        raise ValueError(f"{graph.name} has {len(graph.inputs)} inputs, and {len(names)} paths were given")
    flow = carried(graph, [name.partition("/")[0] for name in names])
    chosen = frozenset(params) or _find(graph, names, flow)
    owners = _owners(graph, names, chosen, flow)
    company = {names[i].partition("/")[0] for i in (*chosen, *owners) if i in flow.returned}
    kinds: list[Kind] = []
    for i, value in enumerate(graph.inputs):
        if i in chosen:
            kinds.append("param")
        elif i in owners or _is_state(i, names, flow, company):
            kinds.append("state" if value.ndim else "other")
        else:
            kinds.append("other" if _is_single(value) else "batch")
    held = {i: o for i, o in flow.returned.items() if kinds[i] != "batch"}
    return Roles(names, tuple(kinds), owners, held)


def _find(graph: Graph, names: Sequence[str], flow: Carried) -> frozenset[int]:
    """The parameters, where the user has not named them."""
    arrays = {i for i, value in enumerate(graph.inputs) if not _is_single(value)}
    named = named_params(names) & arrays
    if named:
        return named
    if flow.is_step:
        # A step that gives back nothing but its one array of parameters looks like a running mean.
        lone = {i for i in flow.returned if not named_state(names[i]) and is_multiplied(graph.inputs[i])}
        params = frozenset((flow.params() or lone) & arrays)
        if params or 0 in flow.returned:
            return params  # else all inputs come out again, and what changes are the metrics of an evaluation
    arguments = list(dict.fromkeys(name.partition("/")[0] for name in names))
    if len(arguments) < 2:
        return frozenset()
    return frozenset(i for i in arrays if names[i].partition("/")[0] == arguments[0])


def _is_single(value: Value) -> bool:
    """Whether it is no array to be split: a scalar, or a key of random numbers."""
    dtype = value.dtype
    if dtype is None or not value.ndim or jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return True
    return str(dtype) == "uint32" and value.shape in ((2,), (4,))


def _is_state(position: int, names: Sequence[str], flow: Carried, company: Collection[str]) -> bool:
    """Whether an input is state though it belongs to no parameter: running statistics, a cache.

    Args:
        company: the arguments in which parameters or their state come back.
    """
    if position not in flow.returned:
        return False
    return named_state(names[position]) or names[position].partition("/")[0] in company


def _owners(
    graph: Graph, names: Sequence[str], params: Collection[int], flow: Carried
) -> dict[int, tuple[int, Dims]]:
    """Of each input that is state of a parameter, this parameter and which dimensions are the same."""
    if not params:
        return {}
    ends = relative({i: names[i] for i in params})
    by_last: dict[str, list[int]] = {}
    for i, end in ends.items():
        by_last.setdefault(end.rpartition("/")[2], []).append(i)
    found: dict[int, tuple[int, Dims]] = {}
    for i, value in enumerate(graph.inputs):
        if i in params or not value.ndim:
            continue
        same = [
            p for p in by_last.get(names[i].rpartition("/")[2], ()) if f"/{names[i]}".endswith(f"/{ends[p]}")
        ]
        owner = max(same, key=lambda p: (len(ends[p]), -p), default=None)
        if owner is None:
            owner = flow.owner_of(i, params)
        if owner is None:
            continue
        dims = corresponding(names[i], value.shape, graph.inputs[owner].shape)
        if dims is not None:
            found[i] = (owner, dims)
    return found
