"""Small programs, written by hand."""

from __future__ import annotations

from typing import Any

from lepton_jax import fuzz
from lepton_jax.fuzz.program import Block, Statement

F32 = fuzz.Type((3, 3), "float32")


def statement(text: str, *operands: str, name: str = "v", regions: tuple[Block, ...] = ()) -> Statement:
    return Statement((name,), (F32,), text, operands, regions)


def program(
    *statements: Statement, outputs: tuple[str, ...] = ("v",), types: Any = (F32, F32)
) -> fuzz.Program:
    inputs = tuple((f"a{i}", kind) for i, kind in enumerate(types))
    return fuzz.Program(Block("program", inputs, statements, outputs), seed=5)


SIN = statement("jnp.sin({0})", "a0")
EFFECT = Statement((), (), "io_callback(record, None, 7, {0}, ordered=True)", ("a0",))
