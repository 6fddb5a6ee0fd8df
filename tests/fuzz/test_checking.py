"""What is wrong is found, and rounding is not taken for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import fuzz
from lepton_jax.fuzz.check import Subject, check
from lepton_jax.fuzz.noise import differs, samples
from lepton_jax.fuzz.program import Block, make_args, recorded, thrice_the_cotangent
from tests.fuzz._programs import EFFECT, F32, SIN, program, statement

ADD = statement("{0} + {1}", "a0", "a1")
CUSTOM = Block("f", (("x", F32),), (statement("jnp.sin({0})", "x", name="y"),), ("y",))
FORGOTTEN = statement("twice_the_tangent({f0})({0})", "a0", regions=(CUSTOM,))


@pytest.mark.parametrize(
    ("made", "passes", "kind"),
    [
        (program(ADD), "subtracts", "value"),
        (program(FORGOTTEN), "forgets-rules", "gradient"),
        (program(EFFECT, SIN), "forgets-effects", "effects"),
        (program(SIN), "never-done", "value"),
        (program(statement("jnp.sin({0}) ** 2", "a0")), "never-done", "twice"),
        (program(SIN), "raises-on-sin", "error ArithmeticError"),
        (program(statement("jnp.sin(jnp.exp({0}))", "a0")), "leaves-it-broken", "error GraphError"),
    ],
)
def test_wrong_passes_are_found(made: fuzz.Program, passes: str, kind: str) -> None:
    failure = fuzz.check(made, passes)
    assert failure is not None
    assert failure.kind == kind
    assert fuzz.check(made, passes, only=kind) is not None
    assert fuzz.check(made, "none") is None


def test_vmap_alone_may_be_wrong() -> None:
    def fun(x: Any) -> Any:
        return (jnp.sin(x),)

    subject = Subject(fun, (F32,), seed=0)
    assert fuzz.check(subject, "none", only="vmap") is None
    assert fuzz.check(subject, "raises-on-sin", only="vmap") is not None


def test_rounding_is_no_failure_but_a_little_more_is() -> None:
    cancels = statement(
        "jnp.sum({0}.reshape(-1) * 1e6) + jnp.sum({0}) - jnp.sum({0}.reshape(-1)) * 1e6", "a0"
    )
    assert (
        fuzz.check(program(replace(cancels, types=(fuzz.Type((), "float32"),))), "reorders", only="value")
        is None
    )
    want = np.array([1.0, 2.0], np.float32)
    spread = [want * np.float32(1 + 1e-6), want * np.float32(1 - 1e-6)]
    assert not differs(want, want * np.float32(1 + 4e-6), spread, False)
    assert "2 of 2 elements differ; at [0] 1.0 became" in differs(
        want, want * np.float32(1.001), spread, False
    )


def test_differences() -> None:
    nan, inf = np.float32(np.nan), np.float32(np.inf)
    odd = np.array([nan, inf, -inf, 1, 0], np.float32)
    assert not differs(odd, odd, None, True)
    assert not differs(odd, np.array([0, 0, 0, 1, -0.0], np.float32), None, False)
    assert "3 of 5" in differs(odd, np.array([0, 0, 0, 1, 0], np.float32), None, True)
    assert "at [3] 1.0 became nan" in differs(
        odd, np.array([nan, inf, -inf, nan, 0], np.float32), None, False
    )
    assert differs(np.array([1, 2]), np.array([1, 3]), None, False)
    assert not differs(np.array([1, 2]), np.array([1, 3]), [np.array([1, 3])], False)
    assert not differs(np.ones(2, np.float32), odd[:2], [odd[:2]], False)
    assert "became float16[2]" in differs(odd[:2], odd[:2].astype(np.float16), None, False)
    assert differs(np.array([1j]), np.array([1 + 1j]), None, False)


def test_noise_shows_what_is_ill_conditioned() -> None:
    def fun(x: Any, n: Any, k: Any) -> Any:
        def step(c: Any, r: Any) -> Any:
            return jnp.sin(c) + r, c

        run = jax.lax.scan(step, x[0], x)[0]
        loop = jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 1.5), (0, x[0]))[1]
        branch = jax.lax.cond(n > 0, jnp.cos, jnp.sin, x[1])
        return run, loop, branch, (x + 1e4) - 1e4, n * 2, jax.random.bits(k), jnp.floor(x * 0 + 1)

    args = [np.linspace(0.1, 1, 3, dtype=np.float32), np.int32(2), jax.random.key(0)]
    closed = jax.make_jaxpr(fun)(*args)
    runs = samples(closed, args)
    spread = [np.ptp(np.stack(column).astype(np.float64), axis=0).max() for column in zip(*runs, strict=True)]
    assert all(0 < s < 1e-5 for s in spread[:3])
    assert 1e-3 < spread[3] < 1e-1
    assert spread[4:6] == [0, 0]
    assert spread[6] == 1


def test_constants_that_jax_drops_in_tracing_are_dropped_around_it_too() -> None:
    def fun(x: Any) -> tuple[Any, ...]:
        def inner(x: Any) -> Any:
            def g(v: Any) -> Any:
                jnp.sort(v[np.array([0])])  # nobody reads it, and only JAX can drop its indices from g
                return (jnp.sin(v),)

            return thrice_the_cotangent(g)(x)

        return tuple(jax.checkpoint(inner)(x))

    assert check(Subject(fun, (fuzz.Type((3,), "float32"),), 0), only="twice") is None


def test_what_plain_jax_cannot_run_is_invalid() -> None:
    with pytest.raises(fuzz.Invalid, match="ncompatible"):
        fuzz.check(program(statement("{0} + jnp.ones(7)", "a0")), "none")


def test_effects_are_recorded_in_order() -> None:
    made = program(EFFECT, replace(EFFECT, template=EFFECT.template.replace("7", "8")), SIN)
    _, effects = recorded(lambda: jax.jit(made.function())(*make_args(made.types, 0)))
    assert [tag for tag, _ in effects] == [7, 8]
    assert made.has_effects


def test_rewrites_that_do_not_pay_here_are_checked_too() -> None:
    made = program(statement("{0} @ {0}", "a0"))
    assert fuzz.check(made, "never-pays", only="value") is None
    failure = fuzz.check(made, "never-pays", only="value", regardless=True)
    assert failure is not None and failure.kind == "value"
    result = fuzz.run(1, 0, passes="never-pays", regardless=True, target="gpu", size=4)
    assert result.programs + result.invalid == 1
