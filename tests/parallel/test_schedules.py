"""Schedules: what stands in the tables, against the papers' formulas."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lepton_jax.parallel.pipeline import Schedule, ScheduleError, bubble, live, schedule, schedules, slots


def test_bubble_and_live_microbatches_equal_the_formulas() -> None:
    for name in schedules.NAMES:
        for stages in (1, 2, 3, 4, 8):
            for microbatches in (1, 2, 3, 4, 8, 24):
                for virtual in (1, 2, 3) if name == "interleaved" else (1,):
                    if name == "interleaved" and microbatches % stages:
                        continue
                    case = (name, stages, microbatches, virtual)
                    found = schedule(*case)
                    assert found.bubble == pytest.approx(bubble(*case), abs=1e-12), case
                    assert found.live == live(*case), case


def test_the_formulas_are_those_of_the_papers() -> None:
    assert bubble("gpipe", 4, 8) == bubble("1f1b", 4, 8) == 3 / 11
    assert bubble("interleaved", 4, 8, 3) == 3 / 27
    assert bubble("zb-h1", 4, 8) == pytest.approx(3 / 27)
    assert live("gpipe", 4, 8) == (8, 8, 8, 8)
    assert live("1f1b", 4, 8) == (4, 3, 2, 1)
    assert live("eager-1f1b", 4, 8) == (7, 5, 3, 1)
    assert live("zb-h1", 4, 8) == (4, 4, 4, 4)


def test_a_schedule_draws_itself() -> None:
    assert str(schedule("1f1b", 2, 3)) == (
        "1f1b: 2 stages, 3 microbatches, bubble 25.0 %, live 2 1\n"
        "0 | F0 F1 .  B0 F2 B1 .  B2\n"
        "1 | .  F0 B0 F1 B1 F2 B2 ."
    )
    assert "F0b" in str(schedule("interleaved", 2, 2, 2))


def test_seconds_in_step_and_by_dependencies() -> None:
    plain, eager = schedule("1f1b", 4, 8), schedule("eager-1f1b", 4, 8)
    assert plain.seconds(1, 2, together=False) == eager.seconds(1, 2, together=False) == 11 * 3
    assert eager.seconds(1, 2) == schedule("gpipe", 4, 8).seconds(1, 2) == 11 * 3
    assert plain.seconds(1, 2) > 11 * 3  # some go forward while others go backward


def changed(table: Schedule, first: tuple[int, int], second: tuple[int, int]) -> Schedule:
    """The schedule with two cells changed for one another."""
    rows = [list(row) for row in table.table]
    (a, b), (c, d) = first, second
    rows[a][b], rows[c][d] = rows[c][d], rows[a][b]
    return dataclasses.replace(table, table=tuple(map(tuple, rows)))


def test_a_wrong_table_is_found() -> None:
    good = schedule("1f1b", 2, 3)
    with pytest.raises(ScheduleError, match="F0 of chunk 0 stands on device 1"):
        changed(good, (0, 0), (0, 1)).check()
    with pytest.raises(ScheduleError, match="F0 of chunk 1 comes before F0 of 0"):
        changed(good, (0, 0), (2, 0)).check()
    with pytest.raises(ScheduleError, match="missing are B2 of chunk 0"):
        dataclasses.replace(good, table=(*good.table[:-1], (None, None))).check()


def test_what_arrives_has_a_place_until_it_was_read() -> None:
    for case in (("gpipe", 4, 6, 1), ("1f1b", 4, 9, 1), ("interleaved", 2, 4, 2), ("zb-h1", 3, 5, 1)):
        table = schedule(*case)
        places = slots.activations(table)
        held: dict[tuple[int, int], tuple[int, int]] = {}
        for tick, row in enumerate(table.table):
            for device, task in enumerate(row):
                sender = table.table[tick - 1][(device - 1) % table.stages] if tick else None
                if sender is not None and sender.work == "F" and sender.chunk < table.chunks - 1:
                    held[device, int(places.store[tick, device])] = (sender.chunk + 1, sender.microbatch)
                else:
                    assert places.store[tick, device] == places.count
                if task is not None and task.chunk and task.work != "W":
                    place = int(places.use[tick, device])
                    assert held[device, place] == (task.chunk, task.microbatch)
        assert places.count <= max(table.live)
    halves = schedule("zb-h1", 4, 8)
    kept = slots.kept(halves)
    assert kept.count == 4 and slots.kept(schedule("1f1b", 4, 8)).count == 0
    for task, tick in halves.when.items():
        if task.work == "W":
            made = halves.when[schedules.Task("B", task.microbatch, task.chunk)]
            place = kept.use[tick, task.chunk]
            assert kept.store[made, task.chunk] == place < kept.count
            assert place not in kept.store[made + 1 : tick, task.chunk]
    assert slots.activations(schedule("1f1b", 4, 32)).count == 4
    assert slots.activations(schedule("gpipe", 4, 32)).count == 32
    assert np.all(slots.cotangents(schedule("1f1b", 1, 4)).store == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("2f2b", 2, 2), "no schedule is called '2f2b'; there are gpipe, 1f1b"),
        (("gpipe", 0, 2), "at least 1 stage"),
        (("gpipe", 2, 2, 2), "gpipe has one chunk on each device; schedule='interleaved' takes virtual=2"),
        (("interleaved", 4, 6, 2), "multiples of the 4 stages, not 6; 8 would do"),
    ],
)
def test_numbers_that_do_not_go_together(arguments: tuple[str, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(*arguments)
