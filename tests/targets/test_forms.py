"""Forms of products: what is chosen where, and the benchmark that they are read off."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from lepton_jax.targets import processor
from lepton_jax.targets.forms import (
    LEAST_WEIGHT,
    Form,
    WeightAt,
    form_by_columns,
    product_form,
    unsigned_form,
)

ROOT = Path(__file__).resolve().parents[2]
LIBRARY_IS_NEW = jax.__version_info__ >= (0, 11)


@pytest.mark.parametrize(
    ("case", "by_rows", "form"),
    [
        (("cpu", "int8", 1), True, Form("turned", 4)),
        (("cpu", "int8", 32), True, Form("turned", 32)),
        (("cpu", "int8", 65), True, Form("rows", 65)),
        (("cpu", "int8", 1), False, Form("plain", 4)),
        (("cpu", "int8", 2), False, None),
        (("cpu", "float32", 1), True, Form("turned", 1)),
        (("cpu", "float32", 33), True, None),
        (("cpu", "float32", 1), False, None),
        (("cpu", "float8_e4m3fn", 1), True, None),
        (("gpu", "int8", 1), True, Form("rows", 1)),
        (("gpu", "float8_e4m3fn", 4096), True, Form("rows", 4096)),
        (("gpu", "float8_e4m3fn", 4096), False, None),
        (("gpu", "bfloat16", 16), True, None),
        (("tpu", "int8", 16), True, None),
    ],
)
def test_forms(case: tuple[str, str, int], by_rows: bool, form: Form | None) -> None:
    assert product_form(*case, 4096, 4096, by_rows=by_rows) == form


@pytest.mark.parametrize(
    ("instructions", "forms_of_rows"),
    [
        ({"avx2"}, ["turned", "turned", "rows"]),
        ({"avx512_vnni", "amx_int8"}, ["turned", "turned", "rows"]),
        ({"avx512_vnni"}, ["turned", "rows" if LIBRARY_IS_NEW else "turned", "rows"]),
    ],
)
def test_a_few_more_rows_want_the_weight_on_the_right_with_vnni(
    monkeypatch: pytest.MonkeyPatch, instructions: set[str], forms_of_rows: list[WeightAt]
) -> None:
    monkeypatch.setattr(processor, "has", lambda *names: set(names) <= instructions)
    found = [product_form("cpu", "int8", rows, 512, 512, by_rows=True) for rows in (32, 49, 65)]
    assert found == [Form(form, rows) for form, rows in zip(forms_of_rows, (32, 49, 65), strict=True)]


def test_rows_of_unsigned_weights_are_filled_up_to_what_the_library_takes_at_once() -> None:
    filled = 64 if LIBRARY_IS_NEW else 33
    assert [unsigned_form(rows).rows for rows in (1, 5, 9, 25, 32)] == [4, 8, 9, 32, 32]
    assert [unsigned_form(rows).rows for rows in (33, 63, 64, 65)] == [filled, 64, 64, 65]


@pytest.mark.parametrize(
    ("dtype", "inner", "rows", "forms"),
    [
        ("float32", 4096, (1, 6, 12, 24), [Form("turned", n) for n in (1, 8, 16, 32)]),
        ("float32", 4096, (33, 49, 64, 65), [None, Form("turned", 64), Form("turned", 64), None]),
        ("bfloat16", 4096, (6, 17, 40, 65), [*(Form("turned", n) for n in (16, 32, 64)), None]),
        ("bfloat16", 1024, (1, 40, 65), [Form("rows", 4), Form("rows", 40), None]),
    ],
)
def test_rows_of_floats_are_filled_up_with_avx512_and_no_amx(
    monkeypatch: pytest.MonkeyPatch, dtype: str, inner: int, rows: tuple[int, ...], forms: list[Form | None]
) -> None:
    has = {"avx512_vnni", "avx512_bf16"}
    monkeypatch.setattr(processor, "has", lambda *names: set(names) <= has)
    assert [product_form("cpu", dtype, n, inner, 4096, by_rows=True) for n in rows] == forms


def test_what_is_small_or_empty_is_left_alone() -> None:
    side = int(LEAST_WEIGHT**0.5)
    assert product_form("cpu", "int8", 1, side, side, by_rows=True) is not None
    assert product_form("cpu", "int8", 1, side, side - 1, by_rows=True) is None
    assert product_form("cpu", "int8", 0, side, side, by_rows=True) is None
    assert product_form("cpu", "int8", 64, 4096, 10, by_rows=True) == Form("rows", 64)
    assert form_by_columns("cpu", "int8", 2, side, side) == Form("turned", 4)
    assert form_by_columns("cpu", "float32", 2, side, side) is None
    assert form_by_columns("gpu", "int8", 2, side, side) is None


def test_the_benchmark_prints_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("forms_benchmark", ROOT / "benchmarks" / "forms.py")
    assert spec is not None and spec.loader is not None
    benchmark: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    benchmark.main(["--quick", "--only", "layers", "--json", str(tmp_path / "forms.json")])
    kept = json.loads((tmp_path / "forms.json").read_text(encoding="utf-8"))["layers"]
    assert kept.keys() == {"1 rows", "16 rows"}
    for row in kept.values():
        assert row.keys() >= {"float32", "static", "dynamic", "products alone"} and min(row.values()) > 0
    assert "| 16 rows |" in capsys.readouterr().out
