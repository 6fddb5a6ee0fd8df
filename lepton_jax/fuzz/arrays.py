"""Random operations that move data, reduce, sort, multiply matrices and convolve."""

from __future__ import annotations

from typing import Final

from lepton_jax.fuzz.generator import BOOL, COMPLEX, FLOATS, INTS, Generator, Maker
from lepton_jax.fuzz.program import Type
from lepton_jax.fuzz.scalars import neutral, unary


def movement(g: Generator) -> None:
    """A value in another shape or order."""
    found = g.pick_any(least=1)
    if found is None:
        return
    name, kind = found
    options = [
        _transpose(g, kind),
        f"jnp.reshape({{0}}, {_refactored(g, kind.shape)})",
        f"jnp.expand_dims({{0}}, {g.rng.randint(0, kind.ndim)})",
        f"jnp.broadcast_to({{0}}, {(g.rng.choice(g.dims), *kind.shape)})",
        f"lax.rev({{0}}, ({g.rng.randrange(kind.ndim)},))",
        f"jnp.roll({{0}}, 1, {g.rng.randrange(kind.ndim)})",
        f"jnp.repeat({{0}}, 2, {g.rng.randrange(kind.ndim)})",
        "jnp.tile({0}, 2)",
        "jnp.squeeze({0})",
        _slice(g, kind),
        _pad(g, kind),
    ]
    g.emit(g.choice(options), name)


def there_and_back(g: Generator) -> None:
    """Movements that cancel."""
    found = g.pick_any(least=1)
    if found is None:
        return
    name, kind = found
    axis = g.rng.randrange(kind.ndim)
    axes = list(range(kind.ndim))
    g.rng.shuffle(axes)
    back = tuple(axes.index(i) for i in range(kind.ndim))
    zeros = (0,) * kind.ndim
    options = [
        f"jnp.transpose(jnp.transpose({{0}}, {tuple(axes)}), {back})",
        f"jnp.reshape(jnp.reshape({{0}}, -1), {kind.shape})",
        f"lax.rev(lax.rev({{0}}, ({axis},)), ({axis},))",
        f"jnp.concatenate([{{0}}], {axis})",
        f"jnp.concatenate([{{0}}, {{0}}], {axis})[{':, ' * axis}:{kind.shape[axis]}]",
        f"jnp.broadcast_to({{0}}, {kind.shape})",
        f"lax.slice({{0}}, {zeros}, {kind.shape})",
        f"lax.pad({{0}}, jnp.zeros((), {{0}}.dtype), {((0, 0, 0),) * kind.ndim})",
        f"lax.pad(lax.pad({{0}}, jnp.zeros((), {{0}}.dtype), {((1, 2, 0),) * kind.ndim}), "
        f"jnp.zeros((), {{0}}.dtype), {((-1, -2, 0),) * kind.ndim})",
        "jnp.expand_dims({0}, 0)[0]",
        "jnp.stack([{0}, {0}])[1]",
        "lax.optimization_barrier({0})",
        f"lax.dynamic_slice({{0}}, {zeros}, {kind.shape})",
        f"lax.dynamic_update_slice({{0}}, {{0}}, {zeros})",
        "jax.jit(lambda x: x)({0})",
    ]
    g.emit(g.choice(options), name)


def _transpose(g: Generator, kind: Type) -> str:
    axes = list(range(kind.ndim))
    g.rng.shuffle(axes)
    return f"jnp.transpose({{0}}, {tuple(axes)})"


def _refactored(g: Generator, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Another shape of the same size."""
    sizes = [d for d in shape if g.rng.random() < 0.7 or d != 1]
    g.rng.shuffle(sizes)
    if len(sizes) > 1 and g.rng.random() < 0.6:
        sizes[:2] = [sizes[0] * sizes[1]]
    return tuple([*sizes, *([1] if g.rng.random() < 0.2 else [])])


def _slice(g: Generator, kind: Type) -> str:
    parts = []
    for size in kind.shape:
        start = g.rng.randint(0, max(size - 1, 0))
        stop = g.rng.randint(start, size)
        stride = g.rng.choice([1, 1, 2, -1])
        parts.append(g.rng.choice([":", f"{start}:{stop}", f"{start}::{abs(stride)}", f"::{stride}"]))
    return f"{{0}}[{', '.join(parts)}]"


def _pad(g: Generator, kind: Type) -> str:
    config = tuple((g.rng.randint(-1, 2), g.rng.randint(-1, 2), g.rng.choice([0, 0, 1])) for _ in kind.shape)
    return f"lax.pad({{0}}, jnp.asarray({g.rng.choice([0, 1])}, {{0}}.dtype), {config})"


def joined(g: Generator) -> None:
    """Values joined along an axis, or stacked."""
    found = g.pick_any(least=1)
    if found is None:
        return
    name, kind = found
    axis = g.rng.randrange(kind.ndim)
    fits = g.pick(
        lambda other: (
            other.dtype == kind.dtype
            and other.ndim == kind.ndim
            and all(i == axis or a == b for i, (a, b) in enumerate(zip(other.shape, kind.shape, strict=True)))
        )
    )
    assert fits is not None  # the value itself fits
    options = [f"jnp.concatenate([{{0}}, {{1}}], {axis})", f"jnp.concatenate([{{1}}, {{0}}, {{0}}], {axis})"]
    if fits[1] == kind:
        options.append(f"jnp.stack([{{0}}, {{1}}], {axis})")
    g.emit(g.choice(options), name, fits[0])


def indexed(g: Generator) -> None:
    """Rows picked or written, at fixed or computed places."""
    found = g.pick(lambda kind: kind.ndim >= 1 and kind.size > 0)
    if found is None:
        return
    name, kind = found
    rows = kind.shape[0]
    width = g.rng.randint(1, rows)
    row, rows_read = g.index(rows, 1)
    start, starts_read = g.index(rows - width + 1, 1)
    several = [g.rng.randrange(rows) for _ in range(g.rng.randint(1, 3))]
    rest = kind.shape[1:]
    options = [
        f"{{0}}[{row}]",
        f"{{0}}[np.array({several})]",
        f"jnp.take({{0}}, jnp.array({several}), axis=0, mode='clip')",
        f"lax.dynamic_slice_in_dim({{0}}, {start}, {width})",
        f"lax.dynamic_update_slice_in_dim({{0}}, {{0}}[:{width}], {start}, 0)",
        f"lax.dynamic_index_in_dim({{0}}, {row}, keepdims=False)",
        f"{{0}}.at[{row}].set({'False' if kind.dtype == BOOL else 0})",
        f"{{0}}.at[{row}].set({{0}}[0])",
        f"{{0}}.at[np.array({several})].add({{0}}[0])" if kind.dtype != BOOL else "{0}[::-1]",
        f"{{0}}.at[np.array({several})].multiply(2)" if kind.dtype != BOOL else "{0}[:1]",
        f"{{0}}.at[{row}].max({{0}}[0])" if kind.dtype not in (BOOL, COMPLEX) else "{0}[-1:]",
        f"jnp.take_along_axis({{0}}, jnp.zeros({(1, *rest)}, 'int32'), 0)",
    ]
    how = g.choice(options)
    g.emit(how, name, *((rows_read or starts_read) if "{1}" in how else []))


def reduction(g: Generator) -> None:
    """A value reduced along some axes, or along none."""
    found = g.pick_any(least=1)
    if found is None:
        return
    name, kind = found
    axes = tuple(i for i in range(kind.ndim) if g.rng.random() < 0.6)
    keep = g.rng.choice(["", ", keepdims=True"])
    empty = kind.size == 0
    if kind.dtype == BOOL:
        options = [
            f"jnp.any({{0}}, {axes}{keep})",
            f"jnp.all({{0}}, {axes}{keep})",
            "jnp.sum({0}, dtype='int32')",
        ]
    elif kind.dtype == COMPLEX:
        options = [f"jnp.sum({{0}}, {axes}{keep})"]
    else:
        options = [f"jnp.sum({{0}}, {axes}{keep})", f"jnp.prod({{0}}, {axes}{keep})"]
        options += [] if empty else [f"jnp.max({{0}}, {axes}{keep})", f"jnp.min({{0}}, {axes}{keep})"]
        options += [] if empty else ["jnp.argmax({0})", f"jnp.argmin({{0}}, {kind.ndim - 1})"]
    if kind.dtype in FLOATS and not empty:
        options += [
            f"jnp.mean({{0}}, {axes}{keep})",
            f"jax.nn.logsumexp({{0}}, {axes}{keep})",
            "jax.nn.softmax({0})",
        ]
    g.emit(g.choice(options), name)


def cumulative(g: Generator) -> None:
    """A running sum, product or maximum."""
    found = g.pick(lambda kind: kind.dtype in (*FLOATS, "int32") and kind.ndim >= 1)
    if found is None:
        return
    name, kind = found
    axis, reverse = g.rng.randrange(kind.ndim), g.rng.random() < 0.4
    ways = ["cumsum", "cumprod", "cummax", *(["cumlogsumexp"] if kind.dtype in FLOATS else [])]
    g.emit(f"lax.{g.choice(ways)}({{0}}, axis={axis}, reverse={reverse})", name)


def ordered(g: Generator) -> None:
    """Values in order."""
    found = g.pick(lambda kind: kind.dtype in ("float32", *INTS) and kind.ndim >= 1 and kind.size > 0)
    if found is None:
        return
    name, kind = found
    axis = g.rng.randrange(kind.ndim)
    options = [
        f"jnp.sort({{0}}, {axis})",
        f"jnp.argsort({{0}}, {axis})",
        "lax.top_k({0}, 1)",
        f"lax.sort(({{0}}, {{0}} * 2), dimension={axis}, num_keys=1)",
        f"jnp.sort({{0}}, {axis}, descending=True)",
    ]
    g.emit(g.choice(options), name)


def product(g: Generator) -> None:
    """A matrix product or another contraction."""
    found = g.pick_dtype(*FLOATS, "int32", COMPLEX, least=1)
    if found is None:
        return
    name, kind = found
    axis = g.rng.randrange(kind.ndim)
    size = kind.shape[axis]
    fits = g.pick(lambda other: other.dtype == kind.dtype and size in other.shape)
    assert fits is not None  # the value itself fits
    other_axis = g.rng.choice([i for i, d in enumerate(fits[1].shape) if d == size])
    numbers = f"((({axis},), ({other_axis},)), ((), ()))"
    options = [
        f"lax.dot_general({{0}}, {{1}}, {numbers})",
        f"jnp.tensordot({{1}}, {{0}}, ([{other_axis}], [{axis}]))",
    ]
    if kind.dtype in FLOATS:
        options.append(f"lax.dot_general({{0}}, {{1}}, {numbers}, preferred_element_type='float32')")
    if kind.ndim == 2:
        options += ["{0} @ {0}.T", "{0}.T @ {0}", f"{{0}} @ jnp.eye({kind.shape[1]}, dtype={{0}}.dtype)"]
    if kind.ndim == 3:
        options += ["jnp.einsum('bij,bkj->bik', {0}, {0})", "jnp.einsum('bij,bij->b', {0}, {0})"]
    g.emit(g.choice(options), name, fits[0])


def convolution(g: Generator) -> None:
    """A convolution along one axis of a value [batch, channels, width]."""
    found = g.pick(lambda kind: kind.dtype == "float32" and kind.ndim == 3 and kind.size > 0)
    if found is None:
        return
    name, kind = found
    outputs, width = g.rng.randint(1, 2), g.rng.randint(1, 3)
    size = outputs * kind.shape[1] * width
    weights = f"np.linspace(-1, 1, {size}, dtype=np.float32).reshape({(outputs, kind.shape[1], width)})"
    stride, padding = g.rng.choice([1, 1, 2]), g.rng.choice(["'SAME'", "'VALID'", "((2, 0),)"])
    g.emit(f"lax.conv_general_dilated({{0}}, {weights}, ({stride},), {padding})", name)


def window(g: Generator) -> None:
    """A sliding maximum or sum."""
    found = g.pick(lambda kind: kind.dtype == "float32" and kind.ndim >= 1 and kind.size > 0)
    if found is None:
        return
    sizes = tuple(min(2, d) for d in found[1].shape)
    start, how = g.rng.choice([("-jnp.inf", "lax.max"), ("0.0", "lax.add")])
    g.emit(f"lax.reduce_window({{0}}, {start}, {how}, {sizes}, {(1,) * len(sizes)}, 'SAME')", found[0])


def fourier(g: Generator) -> None:
    """A Fourier transform of the last axis."""
    found = g.pick(lambda kind: kind.dtype in ("float32", COMPLEX) and kind.ndim >= 1 and kind.size > 0)
    if found is not None:
        g.emit(g.choice(["jnp.fft.fft({0})", "jnp.real(jnp.fft.ifft(jnp.fft.fft({0})))"]), found[0])


_LINKS: Final[tuple[Maker, ...]] = (
    movement,
    movement,
    there_and_back,
    joined,
    indexed,
    reduction,
    cumulative,
    unary,
    neutral,
)


def chain(g: Generator) -> None:
    """Several operations, each on the result of the one before."""
    for _ in range(g.rng.randint(2, 4)):
        count = len(g.statements)
        make = g.rng.choice(_LINKS)
        g.kind = make.__name__
        make(g)
        if len(g.statements) == count:
            break
        g.focus = g.statements[-1].results[0]
    g.focus = ""


MAKERS: Final[tuple[tuple[Maker, float], ...]] = (
    (movement, 9),
    (there_and_back, 6),
    (chain, 10),
    (joined, 4),
    (indexed, 6),
    (reduction, 6),
    (cumulative, 3),
    (ordered, 3),
    (product, 6),
    (convolution, 1.5),
    (window, 1),
    (fourier, 1),
)
"""Every maker of this module and how often it is tried."""
