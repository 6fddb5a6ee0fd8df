"""The weight-only kernel: its words, its conversions, its numbers, and that it lowers for a GPU."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from lepton_jax.ir import _primitives
from lepton_jax.targets.kernels import blocks as sizes
from lepton_jax.targets.kernels import weight_only
from lepton_jax.targets.kernels.blocks import Blocks, blocks_for
from lepton_jax.targets.kernels.conversion import instructions
from lepton_jax.targets.kernels.weight_only import Layout, call_kernel, decoded, relaid, weight_only_dot
from lepton_jax.targets.kernels.words import pack_words, take_plane, unpack_words, word_shape

RNG = np.random.default_rng(0)
BF16, F16 = jnp.bfloat16, jnp.float16


def codes_of(layout: Layout) -> jax.Array:
    most = 2 ** (layout.bits - 1)
    return jnp.asarray(RNG.integers(-most, most, (layout.columns, layout.inner)), jnp.int8)


def scales_of(layout: Layout) -> jax.Array:
    return jnp.asarray(RNG.uniform(0.5, 2, (layout.groups, layout.columns)), jnp.float32)


@pytest.mark.parametrize(("bits", "width"), [(4, 32), (8, 64)])
def test_words_hold_every_code(bits: int, width: int) -> None:
    codes = codes_of(Layout(70, 300, bits, 0))
    words = pack_words(codes, bits, width)
    assert words.shape == word_shape(70, 300, bits, width) and words.dtype == jnp.int16
    assert (unpack_words(words, 70, 300, bits, width) == codes).all()
    assert (unpack_words(words, words.shape[0], words.shape[1] * 16 // bits, bits, width)[70:] == 0).all()


def test_words_of_what_is_no_int8_matrix() -> None:
    for codes, bits in (
        (jnp.zeros((2, 2), jnp.uint8), 4),
        (jnp.zeros(2, jnp.int8), 4),
        (codes_of(Layout(2, 2, 4, 0)), 3),
    ):
        with pytest.raises(ValueError, match="words are made of int8 matrices"):
            pack_words(codes, bits, 64)


def run_ptx(text: str, register: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    """What a few instructions of PTX make of registers of 32 bits: uint32 → uint32."""
    known: dict[str, np.ndarray[Any, Any]] = {"$1": register}

    def value(name: str) -> np.ndarray[Any, Any]:
        return np.full_like(register, int(name, 16)) if name.startswith("0x") else known[name]

    def halves(name: str) -> Any:
        return value(name).view(np.uint16).view(dtype).astype(np.float32)

    for op, rest in re.findall(r"^([a-z][\w.]+) (.+);$", text, re.M):
        into, *args = rest.split(", ")
        if op == "shr.u32":
            known[into] = value(args[0]) >> np.uint32(int(args[1]))
        elif op == "mov.b32":
            known[into] = value(args[0])
        elif op == "lop3.b32":
            table, inputs = int(args[3], 16), [value(name) for name in args[:3]]
            known[into] = np.zeros_like(register)
            for row in range(8):
                if table >> row & 1:
                    wanted = [x if row >> (2 - i) & 1 else ~x for i, x in enumerate(inputs)]
                    known[into] |= wanted[0] & wanted[1] & wanted[2]
        else:
            a, b, *c = map(halves, args)
            found = a * b + c[0] if op.startswith("fma.rn") else a - b
            assert op in ("fma.rn.bf16x2", "sub.rn.f16x2")
            known[into] = found.astype(dtype).view(np.uint16).view(np.uint32)
    return known["$0"]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_instructions_make_the_numbers(bits: int, dtype: Any) -> None:
    words = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    words = np.stack([words, words[::-1] ^ 0x5A5A], 1).reshape(-1)
    for plane in range(16 // bits):
        found = run_ptx(
            instructions(plane, bits, jnp.dtype(dtype).name), words.view(np.uint32), jnp.dtype(dtype)
        )
        expected = take_plane(jnp.asarray(words.view(np.int16)), plane, bits)
        np.testing.assert_array_equal(found.view(np.uint16).view(jnp.dtype(dtype)).astype(np.int16), expected)


CASES = [
    (1, Layout(64, 512, 4, 128), BF16, Blocks(32, 2, 4, 2)),
    (3, Layout(36, 700, 4, 32), F16, Blocks(16, 3, 4, 2)),  # ragged; parts of unequal length
    (17, Layout(48, 300, 8, 0), BF16, None),  # one scale for a column; sizes by rule
]


@pytest.mark.parametrize(("rows", "layout", "dtype", "cut"), CASES)
def test_the_kernel_keeps_the_numbers(rows: int, layout: Layout, dtype: Any, cut: Blocks | None) -> None:
    codes, scale = codes_of(layout), scales_of(layout)
    x = jnp.asarray(RNG.normal(size=(rows, layout.inner)), dtype)
    words = relaid(codes, layout)
    factors = np.repeat(np.asarray(scale).T, layout.group or layout.inner, 1)[:, : layout.inner]
    weight = np.asarray(codes, np.float32) * factors
    np.testing.assert_array_equal(decoded(words, scale, layout, jnp.float32), weight)
    expected = np.asarray(x, np.float32) @ weight.T
    found = call_kernel(x, words, scale, layout, jnp.float32, cut, interpret=True)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max() * rows**0.5)
    y = weight_only_dot(x, words, scale, layout, jnp.float32)
    np.testing.assert_allclose(y, expected, atol=4e-3 * np.abs(expected).max())


def test_derivatives_and_batches() -> None:
    layout = Layout(64, 256, 4, 64)
    words, scale = relaid(codes_of(layout), layout), scales_of(layout)
    x, dx = (jnp.asarray(RNG.normal(size=(3, 2, 256)), BF16) for _ in range(2))
    weight = decoded(words, scale, layout, BF16)

    def ours(x: Any, scale: Any) -> Any:
        return weight_only_dot(x, words, scale, layout, jnp.float32)

    def plain(x: Any, scale: Any) -> Any:
        return jnp.dot(x, decoded(words, scale, layout, BF16).T, preferred_element_type=jnp.float32)

    @jax.jit
    def both(x: Any, dx: Any, scale: Any) -> list[tuple[Any, ...]]:
        found = []
        for fun in (ours, plain):
            loss = lambda x, s, fun=fun: (fun(x, s) ** 2).sum()  # noqa: E731
            batched = jax.vmap(fun, (0, None))(x, scale)
            scales = jax.vmap(fun, (None, 0))(x[0], jnp.stack([scale, 2 * scale]))
            gradients = jax.grad(loss, (0, 1))(x[0], scale)
            each = jax.vmap(jax.grad(loss), (0, None))(x, scale)
            tangent = jax.jvp(fun, (x[0], scale), (dx[0], scale))[1]
            found.append((batched, scales, *gradients, each, tangent))
        return found

    first, second = both(x, dx, scale)
    for a, b in zip(first, second, strict=True):
        wrong = np.asarray(a, np.float32) - np.asarray(b, np.float32)
        assert np.linalg.norm(wrong) < 0.01 * np.linalg.norm(np.asarray(b, np.float32))
    assert first[2].dtype == BF16 and (decoded(words, scale, layout, BF16) == weight).all()


def test_batches_become_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(64, 256, 4, 64)
    words, scale = relaid(codes_of(layout), layout), scales_of(layout)
    seen: list[Any] = []

    def kernel(platform: str, fun: Any, default: Any, x: Any, *rest: Any) -> Any:
        seen.append(x.shape)
        return default(x, *rest)

    monkeypatch.setattr("lepton_jax.ir._primitives.compiled_on", kernel)
    for rows in (64, 65, 0):
        weight_only_dot(jnp.ones((rows, 256), BF16), words, scale, layout, BF16)
    assert seen == [(64, 256)]
    seen.clear()
    y = jax.vmap(lambda x: weight_only_dot(x, words, scale, layout, BF16))(jnp.ones((3, 2, 256), BF16))
    assert (6, 256) in seen and y.shape == (3, 2, 64)


def test_wrong_use() -> None:
    layout = Layout(16, 64, 4, 32)
    words = relaid(jnp.ones((16, 64), jnp.int8), layout)
    for x, scale, message in (
        (jnp.ones((1, 64)), jnp.ones((2, 16)), "activations are bfloat16 or float16"),
        (jnp.ones((1, 32), BF16), jnp.ones((2, 16)), r"\[rows, 64\]"),
        (jnp.ones((1, 64), BF16), jnp.ones((1, 16)), r"scales are \[2, 16\]"),
    ):
        with pytest.raises(ValueError, match=message):
            weight_only_dot(x, words, scale, layout, BF16)


def test_what_fits() -> None:
    assert Layout(64, 64, 4, 32).fits and Layout(64, 64, 8, 0).fits and Layout(4096, 4096, 4, 96).fits
    assert not any(
        Layout(*x).fits for x in ((64, 64, 3, 32), (64, 64, 4, 16), (8, 64, 4, 32), (64, 16, 4, 0))
    )


def abstract_gpu() -> Any:
    """Stands in for a GPU where JAX wants to know which it lowers for."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("a",), abstract_device=device))


def test_it_lowers_for_a_gpu() -> None:
    def kernels(layout: Layout, rows: int, dtype: Any, platform: str) -> int:
        args = (
            jax.ShapeDtypeStruct((rows, layout.inner), dtype),
            jax.ShapeDtypeStruct(
                word_shape(layout.columns, layout.inner, layout.bits, layout.width), jnp.int16
            ),
            jax.ShapeDtypeStruct((layout.groups, layout.columns), jnp.float32),
        )
        jitted = jax.jit(lambda x, words, scale: weight_only_dot(x, words, scale, layout, dtype))
        lowered = jitted.trace(*args).lower(lowering_platforms=(platform,))
        return str(lowered.as_text()).count("__gpu$xla.gpu.triton")

    with abstract_gpu():
        assert kernels(Layout(4096, 4096, 4, 128), 1, BF16, "cuda") == 1
        assert kernels(Layout(50257, 4100, 4, 32), 17, F16, "cuda") == 1
        assert kernels(Layout(4096, 1000, 8, 0), 64, BF16, "cuda") == 1
        assert kernels(Layout(4096, 4096, 8, 0), 65, F16, "cuda") == 0
        assert kernels(Layout(4096, 4096, 8, 64), 1, F16, "tpu") == 0


def twofold(x: Any) -> Any:
    return x * 2


def threefold(x: Any) -> Any:
    return x * 3


def refused(x: Any) -> Any:
    return NotImplemented


def test_forms_for_one_device_of_one_platform() -> None:
    one = jnp.ones(4)
    assert _primitives.compiled_on("cpu", twofold, threefold, one)[0] == 2  # run as it stands
    f = jax.jit(lambda x: _primitives.compiled_on("cpu", twofold, threefold, x))
    assert f(one)[0] == 2
    assert jax.jit(lambda x: _primitives.compiled_on("cpu", refused, threefold, x))(one)[0] == 3
    assert jax.jit(lambda x: _primitives.compiled_on("cuda", refused, threefold, x))(one)[0] == 3
    assert jax.export.export(f, platforms=("cpu",))(one).call(one)[0] == 3
    mesh = AbstractMesh((2,), ("a",))
    cut = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("a")))
    for given, factor in ((one, "2.0"), (cut, "3.0")):
        text = f.trace(given).lower(lowering_platforms=("cpu",)).as_text()
        assert f"dense<{factor}" in text


def test_without_triton_codes_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        compute_capability = "7.5"

    monkeypatch.setattr(weight_only, "_device", Device)
    assert not weight_only.has_kernel()
    Device.compute_capability = "9.0"
    assert weight_only.has_kernel()


def test_block_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "table.json"
    monkeypatch.setattr(sizes, "TABLE", file)
    sizes.table.cache_clear()
    try:
        guessed = blocks_for(1, 4096, 4096, 4, 128, 64, "GPU")
        assert guessed == blocks_for(16, 4096, 4096, 4, 128, 64) and guessed.splits > 1
        assert (
            blocks_for(1, 4096, 256, 4, 128, 64).splits == 1 and blocks_for(1, 64, 64, 8, 0, 64).columns == 64
        )
        better = Blocks(64, 2, 8, 5)
        sizes.write_table({sizes.key_of(3, 4096, 4096, 4, 128, "GPU"): better}, file)
        assert blocks_for(1, 4096, 4096, 4, 128, 64, "GPU") == better
        assert blocks_for(1, 4096, 4096, 4, 128, 64, "another") == guessed
        assert blocks_for(17, 4096, 4096, 4, 128, 64, "GPU") != better
        sizes.write_table({"x": guessed}, file)
        assert len(sizes.table()) == 2
    finally:
        sizes.table.cache_clear()
