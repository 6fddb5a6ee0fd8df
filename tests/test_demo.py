from __future__ import annotations

import dataclasses
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.demo import CompressedRow, DemoResult, Row, run
from lepton_jax.demo.data import digit_batches, load_digits, load_text, text_batches
from lepton_jax.demo.measure import Timing, largest_difference, measure
from lepton_jax.demo.page import render_page
from lepton_jax.demo.plots import log_ticks, short, ticks
from lepton_jax.demo.programs import Outcome
from lepton_jax.demo.table import COMPRESSED_HEADERS, HEADERS, render, render_compressed
from lepton_jax.demo.train import TrainState, digits_task, score, text_task, text_windows, train

PROGRAMS = ("LeptonNet inference", "LeptonNet train step", "Decoder inference", "Decoder train step")
COMPRESSED = (
    "LeptonNet half the channels, taught",
    "LeptonNet W8A8",
    "LeptonNet half pruned",
    "LeptonNet palettes of 16",
    "Decoder W2, trained",
    "Decoder W2",
)


def example_row(program: str = "Net <inference> & more") -> Row:
    return Row(
        program=program,
        equations_before=120,
        equations_after=100,
        rules=(("cse", 12), ("algebra<exact>", 3), ("dce", 1)),
        skipped=("fold & go",),
        trace_seconds=0.5,
        pass_seconds=0.25,
        compile_seconds=2.0,
        plain_trace_seconds=0.5,
        plain_compile_seconds=2.5,
        timing=Timing(0.01, 0.009, (0.8, 0.9, 1.0, 0.85, 0.95)),
        largest_difference=1e-6,
        metric="accuracy after 10 steps",
        before=Outcome(97.5, (2.3, 0.5, 0.01)),
        after=Outcome(97.25, (2.3, 0.5, 0.02)),
    )


def compressed_row() -> CompressedRow:
    return CompressedRow(
        program="Net W4 <&>",
        metric="perplexity",
        value_before=8.5,
        value_after=8.625,
        bytes_before=400_000,
        bytes_after=52_400,
        file_bytes=31_000,
        seconds=1.25,
        timing=Timing(0.01, 0.009, (0.8, 0.9, 1.0, 0.85, 0.95)),
    )


LOADING = ("src", "href", "xlink:href", "data", "onload")


class Page(HTMLParser):
    """Collects what a page loads and runs, its text, and whether its tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [str(value) for key, value in attrs if key in LOADING]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(page: str) -> Page:
    parsed = Page()
    parsed.feed(page)
    parsed.close()
    return parsed


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, str]:
    path = tmp_path_factory.mktemp("demo") / "report.html"
    return run(out=str(path), fast=True), path.read_text(encoding="utf-8")


def test_demo_measures_every_program(demo: tuple[DemoResult, str]) -> None:
    result, _ = demo
    assert tuple(row.program for row in result.rows) == PROGRAMS
    for row in result.rows:
        assert row.equations_before > 0 and row.equations_after > 0
        assert not row.skipped
        assert min(row.trace_seconds, row.pass_seconds, row.compile_seconds) > 0.0
        assert len(row.timing.ratios) >= 5
        assert row.largest_difference < 1e-3
        assert row.after.value == pytest.approx(row.before.value, rel=0.02, abs=1.0)


def test_demo_compresses_both_models(demo: tuple[DemoResult, str]) -> None:
    rows = {row.program: row for row in demo[0].compressed}
    assert tuple(rows) == COMPRESSED
    most = dict(zip(COMPRESSED, (0.6, 0.3, 1.01, 0.2, 0.15, 0.15), strict=True))
    for name, row in rows.items():
        assert row.bytes_after < most[name] * row.bytes_before, name
        assert row.file_bytes > 0.4 * row.bytes_after, name
        assert len(row.timing.ratios) >= 5 and row.seconds > 0.0
    for name in ("LeptonNet W8A8", "LeptonNet palettes of 16"):
        assert rows[name].value_after == pytest.approx(rows[name].value_before, rel=0.05, abs=1.0)
    assert rows["Decoder W2, trained"].value_after < rows["Decoder W2"].value_after


def test_demo_trains_alike_before_and_after(demo: tuple[DemoResult, str]) -> None:
    steps = [row for row in demo[0].rows if row.program.endswith("train step")]
    for row in steps:
        assert len(row.before.losses) == len(row.after.losses) == 12
        np.testing.assert_allclose(row.before.losses, row.after.losses, rtol=0.02)
        assert np.mean(row.before.losses[-3:]) < 0.99 * row.before.losses[0]
        assert sum(count for _, count in row.rules) > 0


def test_demo_table_has_every_program_and_column(demo: tuple[DemoResult, str]) -> None:
    table = demo[0].table
    assert all(program in table for program in PROGRAMS)
    assert all(name in table for name in COMPRESSED)
    assert all(header in table for header in (*HEADERS, *COMPRESSED_HEADERS))
    assert table.count("rules: ") == len(PROGRAMS)


def test_demo_page_is_whole_and_loads_nothing(demo: tuple[DemoResult, str]) -> None:
    page = demo[1]
    parsed = parse(page)
    assert parsed.open == []
    assert parsed.loads == []
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(parsed.tags)
    assert not re.search(r"https?://|url\(|@import", page)
    assert all(parsed.text.count(program) >= 3 for program in PROGRAMS)
    assert parsed.tags.count("svg") == 5
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"[\"', ](nan|inf)\b", "".join(re.findall(r"<svg.*?</svg>", page)))


def test_demo_refuses_a_page_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder for the page"):
        run(out=str(tmp_path / "missing" / "report.html"), fast=True)


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'lepton-jax[demo]'")):
        load_digits()


def test_page_and_table_escape_and_show_a_row() -> None:
    row = example_row()
    page = render_page([row], [compressed_row()], "a <machine>", 3.0)
    assert "Net <inference>" not in page
    assert "algebra<exact>" not in page
    assert "a <machine>" not in page
    text = parse(page).text
    assert text.count("Net <inference> & more") >= 5
    assert "algebra<exact>: 3" in text
    assert "fold & go" in text
    assert "Net W4 <&>" not in page and "Net W4 <&>" in text
    small = render_compressed([compressed_row()])
    for shown in (
        "Net W4 <&>",
        "400 -> 52",
        "31",
        "perplexity 8.500 -> 8.625",
        "10 -> 9",
        "0.900 (0.850-0.950)",
        "1.2",
    ):
        assert shown in small
    table = render([row], most_rules=2)
    assert "120 -> 100" in table
    assert "0.50/0.25/2.00" in table
    assert "10 -> 9" in table
    assert "0.900 (0.850-0.950)" in table
    assert "quality: accuracy 97.50 -> 97.25 %" in table
    assert "rules: cse 12, algebra<exact> 3, and 1 more" in table
    assert "skipped: fold & go" in table


def test_digits_are_split_without_overlap() -> None:
    digits = load_digits()
    assert digits.train_images.shape == (1438, 8, 8, 1)
    assert digits.test_images.shape == (359, 8, 8, 1)
    assert digits.train_images.dtype == np.float32
    assert digits.train_labels.dtype == np.int32
    assert float(np.min(digits.train_images)) == 0.0
    assert float(np.max(digits.train_images)) == 1.0
    assert set(digits.test_labels.tolist()) == set(range(10))
    images, labels = next(digit_batches(digits, size=5))
    again, _ = next(digit_batches(digits, size=5))
    assert (images.shape, labels.shape) == ((5, 8, 8, 1), (5,))
    np.testing.assert_array_equal(images, again)


def test_text_is_tokens_and_their_followers() -> None:
    text = load_text()
    start = "".join(text.alphabet[token] for token in text.train[:14])
    assert start == "First Citizen:"
    assert 250_000 < len(text.train) + len(text.test) < 350_000
    inputs, targets = next(text_batches(text.train, size=3, context=8))
    assert (inputs.shape, targets.shape) == ((3, 8), (3, 8))
    assert inputs.dtype == np.int32
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    windows = text_windows(text, context=8, batch=4, most=3)
    assert len(windows) == 3
    np.testing.assert_array_equal(windows[0][0].ravel()[1:], windows[0][1].ravel()[:-1])
    np.testing.assert_array_equal(windows[2][0][-1], text.test[88:96])


def test_train_runs_every_step_and_says_so() -> None:
    task = text_task(load_text(), fast=True)
    lines: list[str] = []

    def step(state: TrainState, inputs: object, targets: object) -> tuple[TrainState, jax.Array]:
        return state._replace(statistics=state.statistics + 1), jnp.float32(state.statistics)

    counting = dataclasses.replace(task, start=task.start._replace(statistics=0), step=step)
    trained = train(counting, step, lines.append, "testing")
    assert trained.state.statistics == task.steps
    assert trained.losses == tuple(map(float, range(task.steps)))
    assert len(lines) == 4
    assert lines[-1] == "  Decoder, testing: step 12 of 12, loss 11.000"


def test_score_is_accuracy_or_perplexity() -> None:
    task = digits_task(load_digits(), fast=True)
    labels = np.asarray(task.tests[0][1])
    classes = np.eye(10, dtype=np.float32)
    right = score(task, lambda params, statistics, images: jnp.asarray(classes[labels]), task.start)
    zero = score(task, lambda params, statistics, images: jnp.asarray(classes[0 * labels]), task.start)
    assert right == 100.0
    assert zero == pytest.approx(100.0 * np.mean(labels == 0))
    unsure = dataclasses.replace(task, metric="perplexity")
    assert score(
        unsure, lambda params, statistics, images: jnp.zeros((359, 10)), task.start
    ) == pytest.approx(10.0)


def test_measure_times_in_turn() -> None:
    order: list[str] = []

    def slow(x: jax.Array) -> jax.Array:
        order.append("a")
        return x

    def quick(x: jax.Array) -> jax.Array:
        order.append("b")
        return x

    timing = measure(slow, quick, (jnp.ones(()),), seconds=0.0, pairs=4, sample_seconds=0.0)
    assert "".join(order) == "aabb" + "aaa" + "abbaabba"
    assert len(timing.ratios) == 4
    low, middle, high = timing.quartiles
    assert low <= middle <= high
    assert min(timing.plain_seconds, timing.optimised_seconds) > 0.0


def test_largest_difference_is_over_all_leaves() -> None:
    nan, inf = float("nan"), float("inf")
    one = {"a": jnp.asarray([1.0, nan, inf]), "b": jnp.asarray([1, 2]), "c": jnp.zeros((0, 3))}
    assert largest_difference(one, one) == 0.0
    assert largest_difference(one, {**one, "b": jnp.asarray([1, 5])}) == 3.0
    assert np.isnan(largest_difference(one, {**one, "a": jnp.asarray([1.0, 0.0, inf])}))
    assert largest_difference(one, {**one, "a": jnp.asarray([1.0, nan, 0.0])}) == inf
    with pytest.raises(ValueError, match="pytree structure"):
        largest_difference(one, [one])
    with pytest.raises(ValueError, match=r"int32\(2,\) became float32\(2,\)"):
        largest_difference(one, {**one, "b": jnp.asarray([1.0, 2.0])})


def test_ticks_are_round_and_cover_the_range() -> None:
    assert ticks(0.93, 1.12) == [0.9, 0.95, 1.0, 1.05, 1.1, 1.15]
    assert ticks(0.0, 4.2) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert len(ticks(1.0, 1.0)) >= 2
    assert log_ticks(0.003, 2.3) == pytest.approx([1e-3, 1e-2, 1e-1, 1.0, 10.0])
    assert log_ticks(1.0, 1.0) == [1.0, 10.0]
    assert [short(value) for value in (1234.4, 12.54, 0.0312, 0.0)] == ["1234", "12.5", "0.0312", "0"]
