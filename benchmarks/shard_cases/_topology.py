"""Pods to compile for."""

from __future__ import annotations

from lepton_jax.parallel.aot.topologies import Topology, TopologyError, get_topology


def reached(pod: str) -> Topology | None:
    """A pod to compile for; None, and a line that says why, where it cannot be had here."""
    try:
        return get_topology(pod)
    except TopologyError as error:
        print(f"not measured: {error}")
        return None
