"""What people write that a specialist would write otherwise: food for the passes that change run time.

Each maker writes one statement over a value of the program, with matrices of its own where it needs them,
so that there is always something to match.
"""

from __future__ import annotations

from typing import Final

from lepton_jax.fuzz.generator import Generator, Maker


def _matrix(g: Generator, rows: int, columns: int) -> str:
    """A template for a matrix of numbers between -1 and 1."""
    turn = g.rng.choice(["", "[::-1]"])
    size = rows * columns
    return f"np.sin(np.arange({size}, dtype=np.float32)){turn}.reshape({rows}, {columns})"


def _pick(g: Generator, least: int, most: int = 3) -> tuple[str, tuple[int, ...]] | None:
    """A float32 value that is not empty."""
    found = g.pick(lambda kind: kind.dtype == "float32" and least <= kind.ndim <= most and kind.size > 0)
    return None if found is None else (found[0], found[1].shape)


def part_of_product(g: Generator) -> None:
    """A product of which a part is read: rows, one element, the diagonal, the sum."""
    found = _pick(g, 2)
    if found is None:
        return
    name, shape = found
    n = shape[-1]
    product = f"({{0}} @ {_matrix(g, n, g.rng.randint(1, 5))})"
    square = f"({{0}} @ {_matrix(g, n, shape[-2])})"
    at, operands = g.index(shape[0], 1)
    options = [
        f"{product}[:1]",
        f"{product}[..., -1]",
        f"{product}[..., -1, :]",
        f"jnp.sum({product}, -1)",
        f"jnp.sum({product})",
        f"jnp.mean({product} * 2.0, -2)",
        f"(jnp.tanh({product}) + 1.0)[..., :1]",
        f"jnp.diagonal({square}, axis1=-2, axis2=-1)",
        f"jnp.trace({square}, axis1=-2, axis2=-1)",
        f"{product}[{at}]",
    ]
    how = g.choice(options)
    g.emit(how, name, *(operands if "{1}" in how else []))


def chain_of_products(g: Generator) -> None:
    """Products of several matrices, with factors and sums between them."""
    found = _pick(g, 2, 2)
    if found is None:
        return
    name, (m, n) = found
    k = g.rng.randint(1, 5)
    a, b, c = _matrix(g, n, k), _matrix(g, n, k), _matrix(g, k, g.rng.randint(1, 4))
    options = [
        f"({{0}} @ {a}) @ {c}",
        f"{{0}} @ {a} + {{0}} @ {b}",
        f"{{0}} @ {a} - 2.0 * ({{0}} @ {b})",
        f"(({{0}} * 0.5) @ {a}) @ {c}",
        f"({{0}} * np.arange({n}, dtype=np.float32)) @ {a}",
        f"jnp.diag(np.arange({m}, dtype=np.float32)) @ {{0}}",
        f"{{0}} @ jnp.eye({n}, dtype='float32')",
        f"(jnp.eye({m}, dtype='float32') + {_matrix(g, m, 1)} @ {_matrix(g, 1, m)}) @ {{0}}",
        f"jnp.kron({_matrix(g, 2, m)}, {_matrix(g, 2, 2)}) @ jnp.concatenate([{{0}}, {{0}}])",
        f"({{0}}.T @ {{0}}) @ {a}",
    ]
    g.emit(g.choice(options), name)


def chosen_rows(g: Generator) -> None:
    """One-hot products, masks and sums over classes."""
    found = _pick(g, 1, 2)
    if found is None:
        return
    name, shape = found
    n = shape[0]
    classes = f"np.arange({n}) * 7 % 3"
    mask = f"({classes} == i).reshape({(n, *[1] * (len(shape) - 1))})"
    options = [
        f"jax.nn.one_hot({classes}, 3) @ {_matrix(g, 3, 4)} + jnp.sum({{0}})",
        f"jax.nn.one_hot(np.arange({n}) - 1, 3).T @ {{0}}",
        f"jnp.stack([jnp.sum(jnp.where({mask}, {{0}}, 0.0), 0) for i in range(3)])",
    ]
    if len(shape) == 2:
        label = f"np.arange({n}) % {shape[1]}"
        options += [
            f"-jnp.sum(jax.nn.one_hot({label}, {shape[1]}) * jax.nn.log_softmax({{0}}), -1)",
            f"jnp.take_along_axis(jax.nn.log_softmax({{0}}), ({label})[:, None], 1)",
            "jnp.log(jax.nn.softmax({0}))",
        ]
    g.emit(g.choice(options), name)


def order_statistics(g: Generator) -> None:
    """A few of many in order."""
    found = _pick(g, 1)
    if found is None:
        return
    name, shape = found
    few = g.rng.randint(1, shape[-1])
    options = [
        f"jnp.sort({{0}})[..., :{few}]",
        f"jnp.sort({{0}})[..., -{few}:]",
        "jnp.sort({0})[..., 0]",
        "jnp.sort({0})[..., -1]",
        f"-jnp.sort(-{{0}})[..., :{few}]",
        f"jnp.argsort({{0}})[..., :{few}]",
        "jnp.argsort({0})[..., 0]",
        "jnp.argsort({0})[..., -1]",
        "jnp.cumsum({0}, -1)[..., -1]",
        "jnp.cumprod({0}, -1)[..., -1]",
        "jnp.argmax(jax.nn.softmax({0}), -1)",
        "jnp.median({0}, -1)",
    ]
    g.emit(g.choice(options), name)


def recurrence(g: Generator) -> None:
    """A loop that a parallel form could replace: sums, maxima, linear recurrences, maps, projections."""
    found = _pick(g, 1)
    if found is None:
        return
    name, shape = found
    rest = shape[1:]
    zeros = f"jnp.zeros({rest}, 'float32')"
    reverse = g.rng.random() < 0.4
    steps = [
        "(c * 0.9 + x, c)",
        "(c + x, c + x)",
        "(jnp.maximum(c, x), 0)",
        "(c * x, c)",
        "(x * c + jnp.sin(x), c * 2.0)",
        "(0.5 * c + 0.5 * x, 0)",
        "(jnp.maximum(c + x, 0.0), c)",
        "(c, jnp.tanh(x) * 2.0)",
        "(c + jnp.sum(x), jnp.exp(-x * x))",
    ]
    if rest:
        n = rest[-1]
        steps += [
            f"(jnp.tanh(c + x @ {_matrix(g, n, n)}), c @ {_matrix(g, n, 2)})",
            f"(c @ {_matrix(g, n, n)} * 0.5 + x, c)",
        ]
    options = [f"lax.scan(lambda c, x: {step}, {zeros}, {{0}}, reverse={reverse})" for step in steps]
    options += [
        "lax.map(lambda x: jnp.sin(x) + 1.0, {0})",
        f"lax.fori_loop(0, {shape[0]}, lambda i, c: c + {{0}}[i] * 2.0, {zeros})",
        f"lax.fori_loop(0, {shape[0]}, lambda i, c: c.at[i].set({{0}}[i] * 0.5), {{0}})",
    ]
    g.emit(g.choice(options), name)


def attention(g: Generator) -> None:
    """Attention of a value [batch, tokens, features] to itself, written in one of many ways."""
    found = g.pick(lambda kind: kind.dtype == "float32" and kind.ndim == 3 and kind.size > 0)
    if found is None:
        return
    name, (_, t, d) = found[0], found[1].shape
    product = g.choice(["jnp.einsum('bqd,bkd->bqk', {0}, {0})", "{0} @ jnp.swapaxes({0}, 1, 2)"])
    scores = g.choice([f"{product} * 0.5", f"{product} / np.sqrt({d}).astype('float32')", product])
    mask = f"np.tril(np.ones(({t}, {t}), bool))"
    scores = g.choice(
        [
            scores,
            f"jnp.where({mask}, {scores}, -jnp.inf)",
            f"jnp.where({mask}, {scores}, -1e9)",
            f"{scores} - np.abs(np.arange({t})[:, None] - np.arange({t})).astype('float32')",
            f"jnp.tanh({scores}) * 3.0",
        ]
    )
    powers = f"jnp.exp({scores} - jnp.max({scores}, -1, keepdims=True))"
    by_hand = f"(lambda e: e / jnp.sum(e, -1, keepdims=True))({powers})"
    weights = g.choice([f"jax.nn.softmax({scores})", by_hand])
    g.emit(g.choice([f"jnp.einsum('bqk,bkd->bqd', {weights}, {{0}})", f"{weights} @ {{0}}"]), name)


def filters(g: Generator) -> None:
    """Convolutions and transforms with a better form."""
    found = g.pick(lambda kind: kind.dtype == "float32" and kind.ndim == 3 and kind.size > 0)
    if found is None:
        return
    name, (_, c, _) = found[0], found[1].shape
    width, padding = g.rng.randint(1, 3), g.rng.choice(["'SAME'", "'VALID'"])
    depthwise = f"np.linspace(-1, 1, {c * width}, dtype=np.float32).reshape({c}, 1, {width})"
    pointwise = f"np.linspace(-1, 1, {2 * c}, dtype=np.float32).reshape(2, {c}, 1)"
    options = [
        f"lax.conv_general_dilated({{0}}, {depthwise}, (1,), {padding}, feature_group_count={c})",
        f"lax.conv_general_dilated({{0}}, {pointwise}, (1,), {padding})",
        "jnp.fft.fft({0})",
        "jnp.real(jnp.fft.ifft(jnp.fft.fft({0})))",
    ]
    g.emit(g.choice(options), name)


def many_small(g: Generator) -> None:
    """The same small thing several times, in a list."""
    found = g.pick(lambda kind: kind.dtype == "float32" and kind.ndim == 3 and kind.size > 0)
    if found is None:
        return
    name, (b, _, d) = found[0], found[1].shape
    w = _matrix(g, d, 2)
    options = [
        f"jnp.stack([jnp.tanh({{0}}[i] @ {w}) for i in range({b})])",
        f"jnp.concatenate([{{0}}[i] @ ({w} * i) for i in range({b})], -1)",
        f"{{0}} @ jnp.broadcast_to({w}, ({b}, {d}, 2))",
        "jnp.einsum('bqd,bkd->bqk', jnp.repeat({0}, 2, 0), jnp.repeat({0}, 2, 0))",
    ]
    g.emit(g.choice(options), name)


MAKERS: Final[tuple[tuple[Maker, float], ...]] = (
    (part_of_product, 4),
    (chain_of_products, 3),
    (chosen_rows, 2.5),
    (order_statistics, 2.5),
    (recurrence, 4),
    (attention, 2),
    (filters, 1.5),
    (many_small, 1.5),
)
"""Every maker of this module and how often it is tried."""
