"""What `palettize` writes in place of weights, and what it finds of them beforehand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.numerics.hessian import MatrixLayout
from lepton_jax.numerics.palettes import PaletteScheme, decode, palettize
from lepton_jax.passes.compress._palettize.looking_up import GATHER, Look, Take, rounded, rows_of, weight_of
from lepton_jax.passes.compress._palettize.seeing import CENTROIDS, CODES, ERROR, PALETTE, UNIT, PaletteSeen
from tests.passes._quantize import floats

WEIGHT = floats(12, 8)
SCHEMES = (PaletteScheme(3), PaletteScheme(2, axis=0, group=5), PaletteScheme(3, axis=1, group=3))
VECTORS = PaletteScheme(2, vector=2, vector_axis=1)


def look(scheme: PaletteScheme, call: bool, turned: Any = None, train: Any = "none") -> Look:
    return Look(scheme, WEIGHT.shape, jnp.float32, turned, call, train, 1e-3)


def test_weights_are_what_their_codes_stand_for() -> None:
    for scheme in (*SCHEMES, VECTORS):
        codes, palette = palettize(WEIGHT, scheme)
        wanted = decode(np.asarray(codes), np.asarray(palette), scheme)
        for call in (True, False):
            found = weight_of(WEIGHT, palette, how=look(scheme, call))
            np.testing.assert_array_equal(found, wanted, err_msg=f"{scheme} {call}")
            turned = weight_of(WEIGHT, palette, how=look(scheme, call, (1, 0)))
            np.testing.assert_array_equal(turned, wanted.T)
            kept = weight_of(codes, palette, how=look(scheme, call, train="centroids"))
            np.testing.assert_array_equal(kept, decode(np.asarray(codes), held_at_zero(palette), scheme))


def held_at_zero(palette: Any) -> Any:
    """The first entry stands for zeros."""
    return np.asarray(palette).copy() * (np.arange(palette.shape[1]) > 0)[:, None]


@pytest.mark.parametrize("mode", ["fill", "clip"])
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_are_those_of_the_weight(axis: int, mode: str) -> None:
    """Along both axes; out of bounds they are what JAX makes of them."""
    indices = jnp.array([[3, 0], [7, 60]])

    def take(w: Any) -> Any:
        return jnp.take(w, indices, axis, mode=mode)

    (gather,) = (e for e in jaxpr_of(take) if e.primitive.name == "gather")
    params = tuple((name, gather.params[name]) for name in GATHER)
    rows = lax.expand_dims(indices, (2,))
    for scheme in (*SCHEMES, *((VECTORS,) if axis == 0 else ())):
        _, palette = palettize(WEIGHT, scheme)
        whole = weight_of(WEIGHT, palette, how=look(scheme, True))
        found = rows_of(WEIGHT, palette, rows, how=look(scheme, True), take=Take(axis, params))
        np.testing.assert_array_equal(found, take(whole), err_msg=str(scheme))


def jaxpr_of(fun: Any) -> list[Any]:
    """The equations of a function of the weight, those of its calls too."""
    work, found = list(jax.make_jaxpr(fun)(WEIGHT).jaxpr.eqns), []
    while work:
        each = work.pop()
        found.append(each)
        inner = each.params.get("jaxpr")
        work += [] if inner is None else list(inner.eqns)
    return found


def test_in_training_palettes_or_weights_have_gradients() -> None:
    scheme = SCHEMES[0]
    codes, palette = palettize(WEIGHT, scheme)
    slope = jax.grad(lambda p: rounded(codes, p, how=look(scheme, True, train="centroids")).sum())(palette)
    members = np.bincount(np.asarray(codes).ravel(), minlength=8)
    np.testing.assert_allclose(np.asarray(slope)[0, 1:, 0], members[1:], rtol=1e-6)
    slope = jax.grad(lambda w: (rounded(w, palette, how=look(scheme, True, train="dkm")) ** 2).sum())(WEIGHT)
    assert slope.shape == WEIGHT.shape and (np.abs(slope) > 0).mean() > 0.9


def test_palettes_of_stacked_layers_by_the_squares_of_their_inputs() -> None:
    layers, scheme = floats(2, 12, 8), PaletteScheme(2)
    matrix = np.stack([np.diag(np.linspace(1, 9, 12) ** power) for power in (0, 2)])[:, None]
    state = {"weight": layers, "matrix": jnp.asarray(matrix), "rows": jnp.ones(2), "nonfinite": jnp.zeros(2)}
    seen = PaletteSeen("w", scheme, 1, MatrixLayout((0,)), learns=True)
    seen.check(state, "w")
    found = seen.result(state)
    assert found.keys() == {("w", ERROR), ("w", PALETTE), ("w", CODES)}
    made = []
    for i, layer in enumerate(layers):
        weights = np.broadcast_to(np.diagonal(matrix[i, 0])[:, None], layer.shape)
        codes, palette = palettize(layer, scheme, weights)
        np.testing.assert_array_equal(found["w", CODES][0][i], codes)
        np.testing.assert_allclose(found["w", PALETTE][0][i], palette)
        made.append(decode(np.asarray(codes), np.asarray(palette), scheme))
    error = np.linalg.norm(np.stack(made) - layers) / np.linalg.norm(layers)
    assert abs(found["w", ERROR][0].shape[0] * UNIT - error) <= UNIT
    both = seen.merge(state, state)
    np.testing.assert_allclose(both["matrix"], 2 * matrix, rtol=1e-6)
    np.testing.assert_array_equal(both["weight"], layers)
    alone = PaletteSeen("w", scheme, 1, None, learns=False).result({"weight": layers})
    assert alone.keys() == {("w", ERROR), ("w", CENTROIDS)}
    for change, message in (
        ({"weight": layers.at[1, 2, 3].set(jnp.nan)}, "w has NaN"),
        ({"nonfinite": jnp.ones(2)}, "saw 2 inputs with NaN"),
        ({"rows": jnp.zeros(2)}, "saw no input"),
    ):
        with pytest.raises(ValueError, match=message):
            seen.check({**state, **change}, "w")
