"""The losses: against their definitions in numpy, finite differences, padding, and low precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.distill import losses, relations

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 6)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape)


def probabilities(*shape: int) -> Any:
    x = np.exp(normal(*shape)) * np.tril(np.ones(shape[-2:]))
    return x / x.sum(-1, keepdims=True)


FORMS: dict[str, tuple[Callable[..., Any], Any, Any]] = {
    "cross_entropy": (lambda s, t, **k: losses.cross_entropy(s, LABELS, **k), normal(6, 5), normal(6, 5)),
    "kl": (partial(losses.kl, temperature=3.0), normal(6, 5), normal(6, 5)),
    "reverse": (partial(losses.kl, temperature=2.0, direction="reverse"), normal(6, 5), normal(6, 5)),
    "jensen": (partial(losses.kl, direction="jensen"), normal(6, 5), normal(6, 5)),
    "decoupled": (lambda s, t, **k: losses.decoupled(s, t, LABELS, **k), normal(6, 5), normal(6, 5)),
    "mse": (losses.mse, normal(6, 3, 5), normal(6, 3, 5)),
    "cosine": (losses.cosine, normal(6, 3, 5), normal(6, 3, 5)),
    "maps": (losses.attention_maps, normal(6, 2, 2, 3), normal(6, 2, 2, 4)),
    "probabilities": (losses.attention_probabilities, probabilities(6, 2, 3, 3), probabilities(6, 2, 3, 3)),
    "heads": (losses.attention_probabilities, probabilities(6, 2, 3, 3), probabilities(6, 4, 3, 3)),
    "contrastive": (partial(relations.contrastive, temperature=0.5), normal(6, 4), normal(6, 4)),
    "distances": (relations.distances, normal(6, 4), normal(6, 3)),
    "angles": (relations.angles, normal(6, 4), normal(6, 3)),
    "tokens": (partial(relations.token_relations, heads=2), normal(6, 3, 4), normal(6, 3, 6)),
}

VARIANTS = {"reverse", "jensen", "heads"}
"""Those that compute as others do: their values are tested, their derivatives are those of the others."""

UNKNOWN: Any = "up"

KEEP = np.array([2.0, 1.0, 0.0, 1.0, 0.0, 0.5])


def softmax(x: Any) -> Any:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def test_derivatives_padding_equal_arrays_and_no_weights_at_all() -> None:
    """Finite differences where examples of weight 0 hold NaN; nothing of equal arrays, or without weights."""
    with jax.enable_x64(True):

        @jax.jit
        def everything(cases: dict[str, Any]) -> dict[str, Any]:
            def of(name: str) -> Any:
                def loss(s: Any, t: Any, keep: Any) -> Any:
                    return FORMS[name][0](s, t, where=keep)

                return jax.vmap(jax.value_and_grad(loss))

            return {name: of(name)(*case) for name, case in cases.items()}

        steps = {name: 1e-5 * normal(*x.shape) * (x != 0) for name, (_, x, _) in FORMS.items()}
        found = everything({name: _cases(name, steps[name]) for name in FORMS if name not in VARIANTS})
        for name, (values, slopes) in found.items():
            assert np.all(np.isfinite(values)) and values[0] > 0, name
            assert np.all(np.isfinite(slopes)), name
            exact = 2 * np.vdot(slopes[0], steps[name])
            np.testing.assert_allclose(values[1] - values[2], exact, rtol=1e-5, atol=1e-13, err_msg=name)
            assert not np.any(slopes[0][KEEP == 0]), name
            assert values[3] == 0 and not np.any(slopes[3]), name
            if student_and_teacher_are_alike(name):
                assert np.abs(values[4:]).max() < 1e-14, name
                assert np.abs(slopes[4:]).max() < 1e-14, name


def student_and_teacher_are_alike(name: str) -> bool:
    """Whether equal arrays have no loss."""
    return name not in ("cross_entropy", "contrastive") and FORMS[name][1].shape == FORMS[name][2].shape


def _cases(name: str, step: Any) -> tuple[Any, Any, Any]:
    """At a point, on both sides of it, without weights; and if shapes are alike, equal arrays and zeros."""
    _, student, teacher = FORMS[name]
    there = [KEEP.reshape(-1, *[1] * (x.ndim - 1)) > 0 for x in (student, teacher)]
    points = [np.where(there[0], student + sign * step, np.nan) for sign in (0, 1, -1)]
    spoilt = np.where(there[1], teacher, np.nan)
    alike = [student, student * 0] if student.shape == teacher.shape else []
    weights = [KEEP, KEEP, KEEP, 0 * KEEP] + [np.ones(6)] * len(alike)
    return np.stack([*points, points[0], *alike]), np.stack([spoilt] * 4 + alike), np.stack(weights)


def test_low_precision_computes_in_float32() -> None:
    """Numbers far out, in 16 bits: what comes of them in 32, and finite derivatives."""
    names = ("kl", "cosine", "angles")

    @jax.jit
    def everything(forms: dict[str, Any]) -> dict[str, Any]:
        return {name: jax.value_and_grad(FORMS[name][0])(*pair) for name, pair in forms.items()}

    kinds = dict(zip(names, [jnp.bfloat16, jnp.float16, jnp.bfloat16], strict=True))
    forms = {n: [jnp.asarray(100 * x, kinds[n]) for x in FORMS[n][1:]] for n in names}
    found = everything(forms)
    for name, (value, slope) in found.items():
        assert value.dtype == jnp.float32 and np.isfinite(value) and value > 0, name
        assert slope.dtype == kinds[name] and np.all(np.isfinite(np.float32(slope))), name
    p, q = (softmax(np.float64(x) / 3) for x in (forms["kl"][1], forms["kl"][0]))
    wanted = 9 * np.mean(np.sum(p * (np.log(p + 1e-300) - np.log(q)), -1))
    np.testing.assert_allclose(found["kl"][0], wanted, rtol=1e-3)
    for name, form in FORMS.items():
        shapes = [jax.ShapeDtypeStruct(x.shape, jnp.float16) for x in form[1:]]
        assert jax.eval_shape(form[0], *shapes).dtype == jnp.float32, name


def test_values_are_those_of_the_papers() -> None:
    s, t = FORMS["kl"][1:]
    q, p = softmax(s / 3), softmax(t / 3)
    middle = (p + q) / 2
    forward, reverse = np.sum(p * np.log(p / q), -1), np.sum(q * np.log(q / p), -1)
    jensen = np.sum(p * np.log(p / middle) + q * np.log(q / middle), -1) / 2
    cos = np.sum(s * t, -1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)
    d_s, d_t = FORMS["distances"][1:]
    c_s, c_t = FORMS["contrastive"][1:]
    scores = (
        (c_s / np.linalg.norm(c_s, axis=1)[:, None]) @ (c_t / np.linalg.norm(c_t, axis=1)[:, None]).T / 0.1
    )
    k_s, k_t = FORMS["tokens"][1:]
    related = [softmax(np.einsum("bqc,bkc->bqk", x, x) / x.shape[-1] ** 0.5) for x in (k_t, k_s)]
    seen = np.array([[True, True, False]] * 6)
    few = KEEP > 0
    label = softmax(t / 4)[np.arange(6), LABELS]
    hidden = np.array([[0.0, 0.0, -np.inf]])

    def ours() -> dict[str, Any]:
        kl = partial(losses.kl, temperature=3.0)

        def parts(s: Any, t: Any, label: Any, chance: Any) -> Any:
            return losses.decoupled(s[None], t[None], label[None], beta=1 - chance)

        return {
            "forward": kl(s, t),
            "reverse": kl(s, t, direction="reverse"),
            "jensen": kl(s, t, direction="jensen"),
            "weighted": kl(s, t, where=KEEP),
            "cosine": losses.cosine(s, t),
            "mse": losses.mse(s, t),
            "decoupled": jnp.mean(jax.vmap(parts)(s, t, LABELS, label)),
            "whole": losses.kl(s, t, temperature=4.0),
            "distances": relations.distances(d_s, d_t),
            "ratios": relations.distances(3 * d_s, d_t),
            "angles": relations.angles(d_s, d_t),
            "few angles": relations.angles(d_s, d_t, where=few),
            "of few": relations.angles(d_s[few], d_t[few]),
            "maps": losses.attention_maps(*FORMS["maps"][1:]),
            "probabilities": losses.attention_probabilities(*FORMS["probabilities"][1:]),
            "heads": losses.attention_probabilities(*FORMS["heads"][1:]),
            "contrastive": relations.contrastive(c_s, c_t),
            "tokens": relations.token_relations(k_s, k_t),
            "seen tokens": relations.token_relations(k_s, k_t, where=seen),
            "of seen": relations.token_relations(k_s[:, :2], k_t[:, :2]),
            "left out": jax.value_and_grad(losses.kl)(s[:1, :3] + hidden, t[:1, :3] + hidden),
            "of the rest": jax.value_and_grad(losses.kl)(s[:1, :2], t[:1, :2]),
        }

    found = jax.jit(ours)()
    wanted = {
        "forward": 9 * forward.mean(),
        "reverse": 9 * reverse.mean(),
        "jensen": 9 * jensen.mean(),
        "weighted": 9 * np.average(forward, weights=KEEP),
        "cosine": np.mean(1 - cos),
        "mse": np.mean((s - t) ** 2),
        "decoupled": found["whole"],  # with each example's own β both parts are the whole (their equation 7)
        "distances": huber(spread(d_s) - spread(d_t))[~np.eye(6, dtype=bool)].mean(),
        "ratios": found["distances"],
        "angles": np.mean([huber(corner(d_s, *each) - corner(d_t, *each)) for each in TRIPLES]),
        "few angles": found["of few"],
        "maps": np.sum((active(FORMS["maps"][1]) - active(FORMS["maps"][2])) ** 2, -1).mean(),
        "probabilities": apart(*FORMS["probabilities"][1:]),
        "heads": apart(*(x.mean(1, keepdims=True) for x in FORMS["heads"][1:])),
        "contrastive": -np.log(np.diag(softmax(scores)) * np.diag(softmax(scores.T))).mean() / 2,
        "tokens": np.sum(related[0] * np.log(related[0] / related[1]), -1).mean(),
        "seen tokens": found["of seen"],
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    (value, slope), (alone, rest) = found["left out"], found["of the rest"]
    np.testing.assert_allclose(value, alone, rtol=1e-5)
    np.testing.assert_allclose(slope, [[*rest[0], 0]], rtol=1e-5)


TRIPLES = [(i, j, k) for i in range(6) for j in range(6) for k in range(6) if len({i, j, k}) == 3]


def huber(x: Any) -> Any:
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def active(x: Any) -> Any:
    """Where images are active, as directions."""
    found = (x**2).mean(-1).reshape(len(x), -1)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def apart(student: Any, teacher: Any) -> Any:
    """The mean divergence of rows of probabilities."""
    ratio = np.log(np.where(teacher > 0, teacher, 1)) - np.log(np.where(teacher > 0, student, 1))
    return np.sum(teacher * ratio, -1).mean()


def spread(x: Any) -> Any:
    """Distances over their mean."""
    found = np.linalg.norm(x[:, None] - x[None], axis=-1)
    return found / found[~np.eye(6, dtype=bool)].mean()


def corner(x: Any, i: int, j: int, k: int) -> Any:
    """The cosine of the angle at j."""
    left, right = x[i] - x[j], x[k] - x[j]
    return left @ right / np.linalg.norm(left) / np.linalg.norm(right)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.kl(np.ones((2, 3)), np.ones((2, 4))), r"one shape, not the student's \(2, 3\)"),
        (lambda: losses.kl(np.ones((2, 3)), np.ones((2, 3)), temperature=0.0), "temperature is positive"),
        (lambda: losses.kl(np.ones(3), np.ones(3), direction=UNKNOWN), "forward, reverse, jensen"),
        (
            lambda: losses.mse(np.ones((2, 3)), np.ones((2, 3)), where=np.ones(3)),
            r"where has the shape \(3,\)",
        ),
        (lambda: losses.decoupled(np.ones((2, 1)), np.ones((2, 1)), np.zeros(2, int)), "two classes"),
        (lambda: losses.attention_maps(np.ones((2, 3, 1)), np.ones((2, 4, 1))), "same positions"),
        (lambda: losses.attention_probabilities(np.ones((2, 1, 3, 3)), np.ones((2, 1, 3, 4))), "queries"),
        (lambda: relations.distances(np.ones((2, 3)), np.ones((3, 3))), r"\[batch, width\]"),
        (
            lambda: relations.token_relations(np.ones((2, 3, 4)), np.ones((2, 3, 6)), heads=4),
            "do not divide",
        ),
        (
            lambda: relations.token_relations(np.ones((2, 3, 4)), np.ones((2, 2, 4))),
            r"\[batch, length, width\]",
        ),
    ],
)
def test_what_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
