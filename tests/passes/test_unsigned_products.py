"""int8 weights kept as uint8, for processors that multiply unsigned numbers with signed ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from lepton_jax.ir import _primitives
from lepton_jax.passes.lower._products.unsigned import as_signed, as_unsigned, product_with_codes
from lepton_jax.targets import forms, processor
from lepton_jax.targets.forms import Form, form_by_columns, product_form
from tests.passes._lowering import int8
from tests.passes.test_lower_products import CASES

W = int8(128, 256)
ALL = jnp.arange(-128, 128, dtype=jnp.int8)


def plain(w: Any, x: Any) -> Any:
    return lax.dot(x, w, preferred_element_type=jnp.int32)


def machine(monkeypatch: pytest.MonkeyPatch, *instructions: str) -> None:
    """A processor that has these instructions; if products gain by unsigned weights, all do."""
    monkeypatch.setattr(processor, "has", lambda *names: set(names) <= set(instructions))
    monkeypatch.setattr(forms, "_UNSIGNED", ((0, 256),))


def lowered(fun: Callable[..., Any], params: Any, *passes: str) -> Any:
    return lepton.optimize(fun, ",".join(("none", *passes)), params=params)


def chosen(rows: int, size: int, *, shifts: bool = True) -> str:
    form = product_form("cpu", "int8", rows, size, size, by_rows=True, shifts=shifts)
    return "" if form is None else form.weight_at


def test_which_processors_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for instructions in (("avx512_vnni", "amx_int8"), ("avx2",)):
        machine(monkeypatch, *instructions)
        assert chosen(1, 4096) == "turned"
    machine(monkeypatch, "avx512_vnni")
    monkeypatch.setattr(forms, "_UNSIGNED", ((2**22, 128), (2**18, 16)))
    assert [chosen(rows, 4096) for rows in (1, 16, 128, 129)] == ["unsigned"] * 3 + ["rows"]
    assert [chosen(rows, 512) for rows in (1, 16, 17)] == ["unsigned", "unsigned", "turned"]
    assert chosen(1, 256) == chosen(1, 4096, shifts=False) == "turned"
    assert product_form("cpu", "float32", 1, 4096, 4096, by_rows=True, shifts=True) == Form("turned", 1)
    assert form_by_columns("cpu", "int8", 9, 512, 512, shifts=True) == Form("unsigned", 9)
    assert form_by_columns("cpu", "int8", 9, 512, 512) == Form("turned", 9)


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_the_product(by_rows: bool, batch: tuple[int, ...]) -> None:
    def signed(w: Any, x: Any) -> Any:
        return jnp.matmul(w, jnp.swapaxes(x, -1, -2) if by_rows else x, preferred_element_type=jnp.int32)

    def unsigned(w: Any, x: Any) -> Any:
        return product_with_codes(as_unsigned(w), x, by_rows=by_rows)

    w, x = int8(*batch, 8, 64), int8(*batch, *((5, 64) if by_rows else (64, 5)))
    np.testing.assert_array_equal(as_signed(as_unsigned(ALL)), ALL)
    np.testing.assert_array_equal(unsigned(w, x), signed(w, x))
    for axes in ((0, None), (None, 1), (1, 0), (-1, -1)):
        pair = [
            each if a is None else jnp.stack([each, ~each], a) for each, a in zip((w, x), axes, strict=True)
        ]
        found, expected = (jax.jit(jax.vmap(f, axes))(*pair) for f in (unsigned, signed))
        np.testing.assert_array_equal(found, expected, err_msg=str(axes))


def shifted(w: Any, x: Any) -> Any:
    return product_with_codes(as_unsigned(w), x, by_rows=True)


def signed(w: Any, x: Any) -> Any:
    return lax.dot_general(w, x, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)


@pytest.mark.parametrize(("w", "x"), [((64, 32), None), (None, (4, 32)), ((64, 32), (4, 32))])
def test_a_batch_of_none(w: Any, x: Any) -> None:
    pair = [
        int8(*shape) if rows is None else jnp.zeros((0, *rows), jnp.int8)
        for shape, rows in (((64, 32), w), ((4, 32), x))
    ]
    axes = None if w is None else 0, None if x is None else 0
    assert jax.vmap(shifted, axes)(*pair).shape == (0, 64, 4)


@pytest.mark.parametrize(("w_at", "x_at", "out"), [(P(), P("d"), P(None, "d")), (P("d"), P(), P("d"))])
def test_it_stays_where_it_lies_on_a_mesh(w_at: Any, x_at: Any, out: Any) -> None:
    w, x = int8(64, 32), int8(16, 32)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(shifted, mesh=mesh, in_specs=(w_at, x_at), out_specs=out)
    np.testing.assert_array_equal(mapped(w, x), signed(w, x))
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        w, x = jax.device_put(w, NamedSharding(mesh, w_at)), jax.device_put(x, NamedSharding(mesh, x_at))
        for f, g, *args in (
            (shifted, signed, w, x),
            (jax.vmap(shifted, (0, None)), jax.vmap(signed, (0, None)), jnp.stack([w, ~w]), x),
            (jax.vmap(shifted, (None, 0)), jax.vmap(signed, (None, 0)), w, jnp.stack([x, ~x])),
        ):
            found, expected = jax.jit(f)(*args), jax.jit(g)(*args)
            np.testing.assert_array_equal(found, expected)
            assert jax.typeof(found) == jax.typeof(expected)


def test_sums_that_int32_does_not_hold() -> None:
    w, x = jnp.full((8, 2**17 + 1), -128, jnp.int8), jnp.full((1, 2**17 + 1), -128, jnp.int8)
    expected = np.int32(np.uint32(2**31) + np.uint32(2**14))
    assert (product_with_codes(as_unsigned(w), x, by_rows=True) == expected).all()


def test_other_platforms_multiply_signed_numbers() -> None:
    f = jax.jit(lambda w, x: _primitives.unsigned_product(w, x, (((1,), (1,)), ((), ()))))
    args = jax.ShapeDtypeStruct((256, 128), "uint8"), jax.ShapeDtypeStruct((4, 128), "int8")
    texts = {p: str(jax.export.export(f, platforms=[p])(*args).mlir_module()) for p in ("cpu", "cuda", "tpu")}
    assert "(tensor<256x128xui8>, tensor<4x128xi8>) -> tensor<256x4xi32>" in texts["cpu"]
    for platform in ("cuda", "tpu"):
        assert "(tensor<256x128xi8>, tensor<4x128xi8>) -> tensor<256x4xi32>" in texts[platform]


def test_it_runs_as_one_operation() -> None:
    shapes = jax.ShapeDtypeStruct((256, 128), "uint8"), jax.ShapeDtypeStruct((4, 128), "int8")
    lowered = jax.jit(lambda w, x: product_with_codes(w, x, by_rows=True)).lower(*shapes)
    assert "s32[256,128]" not in str(lowered.compile().as_text())  # the weight widened


UNBOUND = {"by rows already, of unknown binding time", "read as it is too", "small", "no rows"}


def test_every_program(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "avx512_vnni")
    for name, case in CASES.items():
        if any(a.dtype != jnp.int8 for a in case.args) or not case.params or name == "both of parameters":
            continue
        f: Any = lowered(case.fun, case.params)
        prepared = f.prepare(*case.args)
        late = [a for i, a in enumerate(case.args) if i not in case.params]
        for found, expected in zip(
            *map(jax.tree.leaves, (f.apply(prepared, *late), case.fun(*case.args))), strict=True
        ):
            np.testing.assert_array_equal(found, expected, err_msg=name)
        kept = {leaf.dtype == jnp.uint8 for leaf in jax.tree.leaves(prepared)}
        assert kept == {name not in UNBOUND}, name
        assert ("unsigned-product" in f.report.rules) == (name not in UNBOUND), name


@pytest.mark.parametrize("rows", [33, 60, 65])
def test_rows_that_are_filled_up_give_the_same(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    machine(monkeypatch, "avx512_vnni")
    w, x = int8(128, 256), int8(rows, 128)
    f = lowered(plain, 0)
    found = f.apply(f.prepare(w, x), x)
    np.testing.assert_array_equal(found, plain(w, x))
    assert "unsigned-product" in f.report.rules


def test_constants_are_kept_so(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "avx512_vnni")
    f: Any = lepton.optimize(lambda x: plain(W, x), "products")
    x = int8(3, 128)
    np.testing.assert_array_equal(f(x), plain(W, x))
    assert dict(f.report.rules) == {"unsigned-product": 1}


def test_weights_that_a_call_would_have_to_shift_stay_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "avx512_vnni")
    f: Any = lepton.optimize(plain, "products", params=0)
    f(W, int8(3, 128))
    assert "unsigned-product" not in f.report.rules


def test_prepared_weights_serve_any_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "avx512_vnni")
    for first, dtype in ((16, "uint8"), (300, "int8")):
        f: Any = lowered(plain, 0)
        prepared = f.prepare(W, int8(first, 128))
        assert [str(leaf.dtype) for leaf in jax.tree.leaves(prepared)] == [dtype]
        for rows in (1, 4, 100, 300):
            x = int8(rows, 128)
            np.testing.assert_array_equal(f.apply(prepared, x), plain(W, x), err_msg=f"{first}, {rows}")
        any_rows = jax.export.symbolic_shape("rows, 128")
        exported = jax.export.export(f.jit_of(prepared))(prepared, jax.ShapeDtypeStruct(any_rows, "int8"))
        read = jax.export.deserialize(exported.serialize())
        for count in (1, 7):
            x = int8(count, 128)
            np.testing.assert_array_equal(read.call(prepared, x), plain(W, x), err_msg=f"{first}, {count}")


def test_they_move_to_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    x = int8(2, 128)
    for here, there in ((("avx512_vnni",), ()), ((), ("avx512_vnni",))):
        machine(monkeypatch, *here)
        prepared = lowered(plain, 0).prepare(W, x)
        machine(monkeypatch, *there)
        f: Any = lowered(plain, 0)
        np.testing.assert_array_equal(f.apply(prepared, x), plain(W, x))


def test_tables_that_are_looked_up_too_are_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "avx512_vnni")

    def tied(table: Any, tokens: Any) -> Any:
        return plain(table.T, table[tokens])

    table, tokens = int8(256, 128), jnp.array([3, 1])
    f: Any = lowered(tied, 0)
    prepared = f.prepare(table, tokens)
    np.testing.assert_array_equal(f.apply(prepared, tokens), tied(table, tokens))
    assert [str(leaf.dtype) for leaf in jax.tree.leaves(prepared)] == ["int8"]


@pytest.mark.parametrize("one", [False, True])
def test_tables_whose_rows_are_taken_are_unsigned_too(monkeypatch: pytest.MonkeyPatch, one: bool) -> None:
    machine(monkeypatch, "avx512_vnni")

    def tied(table: Any, token: Any) -> Any:
        first = lax.dynamic_slice(table, (token[0], 0), (1, 128))
        x = first if one else table.at[token].get(mode="clip")
        return lax.dot_general(x, table, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)

    table, token = int8(256, 128), jnp.array([300, -300])
    f: Any = lowered(tied, 0)
    prepared = f.prepare(table, token)
    assert [str(leaf.dtype) for leaf in jax.tree.leaves(prepared)] == ["uint8"]
    text = str(jax.make_jaxpr(f.apply)(prepared, token))
    assert f"u8[{1 if one else 2},128] = {'dynamic_slice' if one else 'gather'}" in text
    for tokens in (token, jnp.arange(300)):
        np.testing.assert_array_equal(f.apply(prepared, tokens), tied(table, tokens))
    if not one:
        exported = jax.export.export(f.jit_of(prepared))(
            prepared, jax.ShapeDtypeStruct(jax.export.symbolic_shape("tokens"), token.dtype)
        )
        np.testing.assert_array_equal(exported.call(prepared, token), tied(table, token))


def test_products_by_rows_read_what_turned_ones_make_in_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA took the transpose of the first result into the second product, which left the fast path."""
    machine(monkeypatch, "avx512_vnni")
    monkeypatch.setattr(forms, "_UNSIGNED", ((2**16, 256),))

    def two(params: Any, x: Any) -> Any:
        w, table = params
        h = jnp.tanh(plain(w, x).astype(jnp.float32) * 1e-5)
        codes = jnp.round(h * (127 / jnp.abs(h).max(1, keepdims=True))).clip(-127, 127).astype(jnp.int8)
        return lax.dot_general(codes, table, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)

    params, x = (int8(256, 256), int8(64, 256)), int8(80, 256)
    f: Any = lowered(two, 0)
    prepared = f.prepare(params, x)
    np.testing.assert_allclose(f.apply(prepared, x), two(params, x), rtol=0, atol=512)  # tanh may round up
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(prepared)} == {"uint8", "int8"}
    pinned = str(jax.make_jaxpr(f.apply)(prepared, x)).partition("tanh")[2]
    assert pinned.index("name=in_rows") < pinned.index("dot_general")
    text = f.jit_of(prepared).lower(prepared, x).compile().as_text()
    assert "lhs_contracting_dims={1}" in text and "lhs_contracting_dims={0}" not in text


def test_a_pipeline_may_name_the_pass_too(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "avx512_vnni")
    f: Any = lepton.optimize(plain, "products", params=0)
    prepared = f.prepare(W, int8(16, 128))
    assert [str(leaf.dtype) for leaf in jax.tree.leaves(prepared)] == ["int8"]  # what it turns stays as it is
    for rows in (1, 300):
        x = int8(rows, 128)
        np.testing.assert_array_equal(f.apply(prepared, x), plain(W, x))
    any_rows = jax.export.symbolic_shape("rows, 128")
    exported = jax.export.export(f.jit_of(prepared))(prepared, jax.ShapeDtypeStruct(any_rows, "int8"))
    np.testing.assert_array_equal(exported.call(prepared, x), plain(W, x))
