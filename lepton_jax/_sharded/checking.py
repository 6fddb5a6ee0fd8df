"""`verify=True` and `measure=True` on a mesh: decisions taken on the arrays of a first call.

`verify` compares the program over the mesh with the plain one on one device; `measure` times it against the
plain one over the mesh, with inputs and results laid out alike. All processes decide alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import numpy as np

from lepton_jax._measure import Choice, judged, program_key, time_ratio
from lepton_jax._options import Options
from lepton_jax._sharded.calls import Call
from lepton_jax._sharded.meeting import of_first
from lepton_jax._sharded.program import Laid
from lepton_jax._sharded.running import is_explicit
from lepton_jax.numerics.compare import compare_trees
from lepton_jax.targets import records

_KIND: Final = "faster"
_WORTH: Final = 1.0


def choose_laid(call: Call, laid: Laid, options: Options) -> Choice:
    """Compare and time the programs on a call's arrays, and say which to keep.

    Args:
        call: arrays, none of them traced.
        laid: its program over the mesh.

    Returns:
        A function of the arrays of a call that gives the tree of results.

    Raises:
        ValueError: the mesh has no devices.
    """
    choice = Choice(laid)
    arrays = laid.on_mesh(call.leaves)
    plain = _Plain(call, laid)
    if options.verify:
        expected = jax.jit(call.run)(*gathered(arrays))
        note, ok = _judged(expected, laid(_copies(arrays)), laid, options)
        if not ok:
            if _judged(expected, plain(_copies(arrays)), laid, options)[1]:
                return Choice(plain, [f"verify: the plain program over the mesh is kept, for {note}"])
            return Choice(
                _on_one_device(call, laid), [f"verify: one device computes the results, for {note}"]
            )
        choice.notes.append(f"verify: against one device: {note}")
    if options.measure:
        key = "\n".join([program_key(plain.jitted, options, arrays, {}), str(laid.inputs), str(laid.outputs)])
        read = records.read(_KIND, key)
        known = _agreed(laid, read if isinstance(read, float) else np.nan)
        ratio = known
        if np.isnan(known):
            ratio = _agreed(laid, time_ratio(plain.jitted, _straight(laid), arrays, {}))
            records.write(_KIND, key, ratio)
        when = "" if np.isnan(known) else " (measured before on this machine)"
        if ratio < _WORTH:
            note = f"measure: the plain program over the mesh is kept, {1 / ratio:.2f}× as fast{when}"
            return Choice(plain, [*choice.notes, note])
        choice.notes.append(f"measure: {ratio:.2f}× as fast as the plain program over the mesh{when}")
    return choice


class _Plain:
    """The function as it was written under `jax.jit`, its inputs and results laid out as Lepton's are."""

    def __init__(self, call: Call, laid: Laid) -> None:
        self._laid = laid
        outputs = list(laid.outputs)

        def flat(*arrays: Any) -> list[Any]:
            return jax.tree.leaves(call.run(*arrays))

        run: Callable[..., Any] = flat
        if outputs and is_explicit(outputs[0].mesh):
            run = jax.sharding.auto_axes(flat, out_sharding=outputs)
        gone = tuple(i for i, each in enumerate(laid.donated) if each)
        self.jitted: Any = jax.jit(run, in_shardings=laid.inputs, out_shardings=outputs, donate_argnums=gone)

    def __call__(self, leaves: Sequence[Any]) -> Any:
        """The results as a tree."""
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self._laid(leaves)
        return self._laid.results(self.jitted(*self._laid.on_mesh(leaves)))


def _on_one_device(call: Call, laid: Laid) -> Callable[[Sequence[Any]], Any]:
    """The plain program on one device, its results brought to the mesh."""
    one = jax.jit(call.run)

    def run(leaves: Sequence[Any]) -> Any:
        results = jax.tree.leaves(one(*gathered(laid.on_mesh(leaves))))
        return laid.results(jax.device_put(results, list(laid.outputs)))

    return run


def _straight(laid: Laid) -> Callable[..., Any]:
    return lambda *arrays: laid.jitted(*laid.parted(arrays))


def _judged(expected: Any, result: Any, laid: Laid, options: Options) -> tuple[str, bool]:
    both = [[_data(each) for each in jax.tree.leaves(tree)] for tree in (expected, result)]
    note, ok = judged(compare_trees(both[0], gathered(both[1])), options)
    return note, bool(_agreed(laid, ok))


def _agreed(laid: Laid, value: float) -> float:
    """What the first process says."""
    return float(of_first(laid.decision.on, laid.program.name, float(value)))


def gathered(arrays: Sequence[Any]) -> list[Any]:
    """The arrays on this process's first device, whole; each process has them all."""
    return [_gathered(array) for array in arrays]


def _gathered(array: Any) -> Any:
    data = _data(array)
    if data.is_fully_addressable:
        whole = np.asarray(data)
    else:
        from jax.experimental import multihost_utils

        whole = multihost_utils.process_allgather(data, tiled=True)
    placed = jax.device_put(whole, jax.local_devices()[0])
    return placed if data is array else jax.random.wrap_key_data(placed, impl=jax.random.key_impl(array))


def _data(array: Any) -> Any:
    """The numbers of an array of keys."""
    is_key = isinstance(array, jax.Array) and jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(array) if is_key else array


def _copies(arrays: Sequence[Any]) -> list[Any]:
    """The arrays in fresh buffers, because a call may be given its arrays to destroy."""
    return [array.copy() for array in arrays]
