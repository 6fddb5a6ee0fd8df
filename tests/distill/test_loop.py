"""The loop: what it trains, when it stops, what it refuses, and that a checkpoint goes on exactly."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lepton_jax as lepton
from lepton_jax.distill import Features, Labels, Logits, Record, loss

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 8, 6)).astype(np.float32)
Y = RNG.integers(0, 3, (4, 8))
BATCHES = list(zip(X, Y, strict=True))


def network(params: Any, x: Any) -> Any:
    with jax.named_scope("hidden"):
        x = jnp.tanh(x @ params["up"])
    return x @ params["down"]


def weights(width: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return {
        "up": jnp.asarray(rng.standard_normal((6, width)), jnp.float32),
        "down": jnp.asarray(rng.standard_normal((width, 3)), jnp.float32),
    }


TEACHER = network, weights(16)


def same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_run_with_all_it_can_do_goes_on_from_a_checkpoint_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pruned student with a state, a schedule, projections, validation; batches in the epoch's order."""
    start, before = weights(4, 1), jnp.zeros(())

    def student(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        return network(params, x), state + jnp.mean(x)

    def data(epoch: int) -> Iterator[Any]:
        return iter([BATCHES[i] for i in np.random.default_rng(epoch).permutation(4)])

    told: list[Record] = []
    run = functools.partial(
        lepton.distill,
        TEACHER,
        (student, start, before),
        lepton.sparsify(optax.adam(1e-2), 0.5, method="static"),
        data,
        terms=[
            Logits(temperature=2.0, weight=optax.linear_schedule(1.0, 0.5, 10)),
            Labels(weight=0.1),
            Features("hidden", weight=0.5, name="hint"),
        ],
        validate=lambda params, state: abs(float(state)),
        report_every=3,
    )
    whole = run(epochs=3, progress=told.append)
    assert whole.steps == 12 and not whole.stopped
    assert [record.step for record in whole.history] == [3, 4, 7, 8, 11, 12]
    assert list(whole.history) == told
    assert list(told[0].terms) == ["hint", "labels", "logits"]
    assert told[-1].loss < told[0].loss
    total = sum(w * told[0].terms[n] for n, w in {"hint": 0.5, "labels": 0.1, "logits": 0.95}.items())
    assert abs(told[0].loss - total) < 0.05 * total
    assert whole.best is not None and whole.best.step in (4, 8, 12)
    assert whole.best.value == min(r.validation for r in told if r.validation is not None)
    assert float(jnp.mean(whole.params["up"] == 0)) == 0.5
    assert whole.projections["hint"]["kernel"].shape == (4, 16)
    np.testing.assert_allclose(whole.state, 3 * sum(x.mean() for x in X), rtol=1e-4, atol=1e-5)
    same(start, weights(4, 1))  # what was given is as it was
    folder = tmp_path / "run"
    with pytest.raises(_HaltedError):
        run(epochs=3, checkpoint=folder, checkpoint_every=3, progress=_halt)
    with pytest.raises(lepton.UsageError, match=r"is of another run, with other .*hint"):
        run(epochs=3, checkpoint=folder, terms=[Logits()])
    resumed = run(epochs=3, checkpoint=folder, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("  distill: step 7, epoch 1: loss ") and "validation" in lines[1]
    same(whole.params, resumed.params)
    same(*(jax.tree.map(_data, each.opt_state) for each in (whole, resumed)))
    same(whole.projections, resumed.projections)
    assert resumed.best is not None
    same((whole.best.params, whole.best.value), (resumed.best.params, resumed.best.value))
    assert resumed.history[-1].validation == whole.history[-1].validation
    again = run(epochs=3, checkpoint=folder)  # it is over
    same(whole.params, again.params)
    assert again.steps == 12 and again.history == resumed.history
    text = str(whole)
    assert "distilled in 12 steps" in text and "best validation" in text and "hint" in text


class _HaltedError(Exception):
    pass


def _halt(record: Record) -> None:
    """After the checkpoint of step 6."""
    if record.step > 6:
        raise _HaltedError


def _data(leaf: Any) -> Any:
    """The numbers of a key of random numbers."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_it_stops_when_validation_gets_no_better_and_keeps_the_best() -> None:
    """Of numbers that are given: the second is the best, NaN counts as worse."""
    numbers = iter([3.0, 5.0, 5.0, float("nan"), 9.0])
    seen: list[Any] = []

    def validate(params: Any) -> float:
        seen.append(np.asarray(params["up"]))
        return next(numbers)

    found = lepton.distill(
        TEACHER,
        (network, weights(16)),
        optax.sgd(0.1),
        BATCHES,
        steps=50,
        terms=[Labels(fun=lambda out, labels: jnp.mean(jnp.square(out[:, 0] - labels)))],
        validate=validate,
        validate_every=2,
        better="higher",
        patience=2,
    )
    assert found.steps == 8 and found.stopped == "no better in 2 validations than after 4 steps"
    assert found.best is not None and found.best.value == 5 and found.best.step == 4
    same(found.best.params["up"], seen[1])
    assert found.stopped in str(found) and repr(found) == "<Distilled after 8 steps>"


def test_a_loop_of_ones_own() -> None:
    """The teacher's weights given or held, padding, other inputs for the teacher, several results."""

    def pair(params: Any, x: Any) -> Any:
        return network(params, x), x

    batch = {"x": jnp.asarray(X[0]), "keep": jnp.array([1.0] * 4 + [0.0] * 4), "y": jnp.asarray(Y[0])}
    f = loss(
        (pair, weights(16)),
        (pair, weights(4, 1)),
        [Logits(temperature=1.0), Features("hidden", kind="cosine"), Labels(weight=2.0), Labels(weight=0.0)],
        batch,
        inputs=lambda b: b["x"],
        teacher_inputs=lambda b: b["x"] + 1,
        labels=lambda b: b["y"],
        where=lambda b: b["keep"],
        logits=lambda result: result[0],
    )
    spoilt = {**batch, "x": batch["x"].at[4:].set(jnp.nan)}
    run = jax.jit(jax.value_and_grad(f, has_aux=True))
    (value, aux), slopes = run(f.params, batch, teacher=weights(16))
    (again, _), others = run(f.params, spoilt, teacher=f.teacher)
    np.testing.assert_allclose(value, again, rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(others["projections"]))
    assert float(jnp.abs(slopes["projections"]["features hidden"]["kernel"]).max()) > 0
    assert set(aux.terms) == {"logits", "features hidden", "labels", "labels #2"}
    wanted = aux.terms["logits"] + aux.terms["features hidden"] + 2 * aux.terms["labels"]
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    (other, _), _ = run(f.params, batch, teacher=jax.tree.map(jnp.zeros_like, weights(16)))
    assert abs(float(other - value)) > 1e-3


def once() -> Iterator[Any]:
    yield from BATCHES


SMALL = network, weights(4)

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "how long": ({}, "epochs=... or steps=..."),
    "both": ({"epochs": 1, "steps": 1}, "epochs=... or steps=..."),
    "never": ({"steps": 0}, "steps is 1 or more, not 0"),
    "empty": ({"data": [], "steps": 1}, "no batches in epoch 0"),
    "read twice": ({"data": once(), "epochs": 2}, "an iterator, which can be read once, and 2 epochs"),
    "too short": ({"data": once(), "steps": 5}, "data ended after 4 batches, of 5 steps"),
    "patience": ({"steps": 1, "patience": 1}, "patience wants a validation"),
    "better": ({"steps": 1, "better": "up"}, "better is lower or higher"),
    "no terms": ({"steps": 1, "terms": []}, "there are no terms"),
    "no labels": ({"steps": 1, "data": [X[0]], "terms": [Labels()]}, "wants labels"),
    "no scope": (
        {"steps": 1, "terms": [Features("hiden")]},
        "the student: there is no scope 'hiden'; near it are hidden",
    ),
    "its scope": ({"steps": 1, "terms": [Features("hidden", "up")]}, "the teacher: there is no scope 'up'"),
    "widths": ({"steps": 1, "terms": [Features("hidden", project=False)]}, "widths 4 and 16 differ"),
    "kind": ({"steps": 1, "terms": [Logits("kld")]}, "kind is kl, reverse, jensen, cosine or mse"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    options, message = REFUSED[case]
    given = {"data": BATCHES, "terms": [Logits()], **options}
    with pytest.raises(lepton.UsageError, match=message):
        lepton.distill(TEACHER, SMALL, optax.sgd(0.1), **given)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    with pytest.raises(FloatingPointError, match="the loss is nan by step 4: logits nan"):
        lepton.distill(TEACHER, SMALL, optax.sgd(0.1), [x * np.nan for x in X], epochs=1)
