"""What collectives send and how long they take, by closed formulas."""

from __future__ import annotations

import pytest

from lepton_jax.parallel.collectives import Collective, Kind
from lepton_jax.parallel.meshes import MeshSpec

V5E = MeshSpec.of("data=16,model=4", chip="v5e")  # an axis of 16 wraps on v5e, one of 4 does not
H100 = MeshSpec.of("data=2,model=8", chip="h100", outer=("data",))


@pytest.mark.parametrize(
    ("kind", "factor"),
    [("all-reduce", 2 * 3 / 4), ("reduce-scatter", 3.0), ("all-gather", 3 / 4), ("all-to-all", 3 / 4)],
)
def test_bytes_sent(kind: Kind, factor: float) -> None:
    assert Collective(kind, ("model",), 4096).sent(V5E) == 4096 * factor


def test_a_permutation_sends_all_that_a_device_has() -> None:
    assert Collective("collective-permute", ("model",), 4096).sent(V5E) == 4096


def test_rings_that_wrap_go_both_ways() -> None:
    bandwidth, hop = 5e10, 1e-6
    line = Collective("all-gather", ("model",), 1 << 20).seconds(V5E)
    assert line == pytest.approx((1 << 20) * 3 / 4 / bandwidth + 3 * hop)
    ring = Collective("all-gather", ("data",), 1 << 20).seconds(V5E)
    assert ring == pytest.approx((1 << 20) * 15 / 16 / (2 * bandwidth) + 15 * hop)


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather() -> None:
    whole = 1 << 20
    scattered = Collective("reduce-scatter", ("model",), whole // 4).seconds(V5E)
    gathered = Collective("all-gather", ("model",), whole).seconds(V5E)
    assert scattered == pytest.approx(gathered)
    assert Collective("all-reduce", ("model",), whole).seconds(V5E) == pytest.approx(scattered + gathered)


def test_several_axes_are_gone_through_one_after_the_other() -> None:
    """The faster axis carries the whole array, the slower what is left of it."""
    both = Collective("all-gather", ("data", "model"), 1 << 20).seconds(H100)
    inner = (1 << 20) * 7 / 8 / 4.5e11 + 2e-6
    outer = (1 << 17) * 1 / 2 / 5e10 + 5e-6
    assert both == pytest.approx(inner + outer)


def test_all_to_all_on_a_ring_and_through_a_switch() -> None:
    assert Collective("all-to-all", ("data",), 1 << 20).seconds(V5E) == pytest.approx(
        (1 << 20) * 16 / 8 / 5e10 + 8e-6
    )
    assert Collective("all-to-all", ("model",), 1 << 20).seconds(H100) == pytest.approx(
        (1 << 20) * 7 / 8 / 4.5e11 + 2e-6
    )


def test_nothing_to_do_takes_no_time_and_repetition_counts() -> None:
    alone = MeshSpec.of("data=1", chip="v5e")
    assert Collective("all-reduce", ("data",), 100).seconds(alone) == 0
    assert Collective("all-reduce", ("data",), 100, times=2).repeated(3).times == 6
