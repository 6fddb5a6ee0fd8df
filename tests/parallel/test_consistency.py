"""Copies that should be equal are compared bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lepton_jax as lepton

P = PartitionSpec


def placed(value: Any, mesh: Any, spec: Any, spoil: Callable[[int, Any], Any] | None = None) -> jax.Array:
    """An array of which device `i` of the mesh holds `spoil(i, its part)`."""
    value, sharding = np.asarray(value), NamedSharding(mesh, spec)
    parts = []
    for i, device in enumerate(mesh.devices.flat):
        part = np.array(value[sharding.addressable_devices_indices_map(value.shape)[device]])
        parts.append(jax.device_put(part if spoil is None else spoil(i, part), device))
    return jax.make_array_from_single_device_arrays(value.shape, sharding, parts)


def test_copies_that_differ_are_named_with_their_devices() -> None:
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    random = np.random.default_rng(0)
    kernel = random.standard_normal((6, 8)).astype(np.float32)

    def flip(i: int, part: Any) -> Any:
        """The last bit of one element on the fifth device, which holds the second half."""
        if i == 5:
            part.view(np.int32)[2, 1] ^= 1
        return part

    good: dict[str, Any] = {
        "a": placed(kernel, mesh, P()),
        "b": placed(kernel.astype(jnp.bfloat16), mesh, P(None, "model")),
        "c": placed(kernel > 0, mesh, P("data") if False else P()),
        "d": placed(kernel + 1j * kernel, mesh, P()),
        "e": placed(np.full((4, 4), np.nan, np.float32), mesh, P()),
        "own": placed(np.arange(8.0), mesh, P(("data", "model")), lambda i, part: part + i),
        "here": jnp.ones(3),
        "key": jax.device_put(jax.random.key(0), NamedSharding(mesh, P())),
        "number": 3,
    }
    lepton.check_replicas(good)
    bad = {
        **good,
        "kernel": placed(kernel, mesh, P(None, "model"), flip),
        "zero": placed(np.zeros(3, np.float32), mesh, P(), lambda i, part: -part if i in (2, 3) else part),
    }
    lepton.check_replicas(bad, step=150, every=100)
    with pytest.raises(lepton.ReplicaError) as caught:
        lepton.check_replicas(bad, step=200, every=100)
    ids = [device.id for device in mesh.devices.flat]
    lines = str(caught.value).splitlines()
    assert lines[0] == "copies of params/kernel (float32[6, 8]) differ at step 200:"
    assert lines[1].startswith(
        f"  device {ids[5]} (process 0) differs from device {ids[1]} (process 0) in 1 of 24 elements, "
        "the first at [2, 1] of its part, by at most "
    )
    assert 0 < float(lines[1].rpartition(" ")[2]) < 1e-6
    assert lines[2] == "so do copies of params/zero"
    with pytest.raises(lepton.ReplicaError, match=r"state/zero .*\n  device 2 .* in 3 of 3 .*\n  device 3 "):
        lepton.check_replicas({"zero": bad["zero"]}, name="state")
    with pytest.raises(ValueError, match="at least 1"):
        lepton.check_replicas(good, step=1, every=0)
