"""What random programs are made of: one operation at a time."""

from __future__ import annotations

from typing import Final

from lepton_jax.fuzz.generator import BOOL, COMPLEX, FLOATS, INTS, Generator, Maker, broadcasts, convert
from lepton_jax.fuzz.program import Type

_UNARY = {
    "float": (
        "jnp.sin({0})",
        "jnp.tanh({0})",
        "-{0}",
        "jnp.abs({0})",
        "jnp.exp(jnp.minimum({0}, 2))",
        "jnp.log1p(jnp.abs({0}))",
        "jnp.sqrt(jnp.abs({0}) + 1)",
        "lax.rsqrt({0} * {0} + 1)",
        "1 / (1 + {0} * {0})",
        "jax.nn.sigmoid({0})",
        "lax.square({0})",
        "{0} ** 3",
        "{0} ** 2.5",
        "jnp.sign({0})",
        "jnp.floor({0})",
        "lax.erf({0})",
        "jax.nn.relu({0})",
        "jax.nn.gelu({0})",
        "jnp.clip({0}, -1, 1)",
        "lax.stop_gradient({0})",
        "lax.reduce_precision({0}, 8, 7)",
        "jnp.where(jnp.isfinite({0}), {0}, 0)",
        "jnp.expm1({0} / 8)",
        "{0} * 2.5",
        "1.5 - {0}",
        "{0} / 3",
    ),
    "int": (
        "~{0}",
        "-{0}",
        "jnp.abs({0})",
        "jnp.sign({0})",
        "lax.population_count({0})",
        "lax.clz({0})",
        "{0} * {0}",
        "{0} >> 1",
        "{0} << 2",
        "{0} % 3",
        "{0} // 2",
        "{0} & 5",
        "{0} * 3",
        "7 - {0}",
    ),
    "bool": ("~{0}", "jnp.logical_not({0})"),
    "complex": ("jnp.conj({0})", "{0} * 1j", "-{0}", "jnp.exp(1j * jnp.imag({0}))", "{0} * {0}"),
}

_BINARY = {
    "float": (
        "{0} + {1}",
        "{0} - {1}",
        "{0} * {1}",
        "{0} / (1 + {1} * {1})",
        "jnp.maximum({0}, {1})",
        "jnp.minimum({0}, {1})",
        "jnp.arctan2({0}, 1 + jnp.abs({1}))",
        "jnp.fmod({0}, 1 + jnp.abs({1}))",
        "jnp.power(jnp.abs({0}) + 1, jnp.tanh({1}))",
        "jnp.logaddexp({0}, {1})",
        "{0} * {1} + {0}",
        "({0} + {1}) * ({0} - {1})",
    ),
    "int": (
        "{0} + {1}",
        "{0} - {1}",
        "{0} * {1}",
        "{0} // jnp.where({1} == 0, 1, {1})",
        "jnp.remainder({0}, jnp.where({1} == 0, 3, {1}))",
        "{0} & {1}",
        "{0} | {1}",
        "{0} ^ {1}",
        "{0} << ({1} & 3)",
        "{0} >> ({1} & 3)",
        "jnp.maximum({0}, {1})",
        "lax.div({0}, jnp.where({1} == 0, 1, {1}).astype({0}.dtype))",
        "lax.rem({0}, jnp.where({1} == 0, 5, {1}).astype({0}.dtype))",
    ),
    "bool": ("{0} & {1}", "{0} | {1}", "{0} ^ {1}", "{0} == {1}"),
    "complex": ("{0} + {1}", "{0} - {1}", "{0} * {1}"),
}

# What passes should see through: these leave a value as it is, or make it a constant.
_NEUTRAL = {
    "float": (
        "{0} * 1",
        "1 * {0}",
        "{0} + 0",
        "{0} - 0.0",
        "{0} / 1",
        "-(-{0})",
        "{0} ** 1",
        "{0} - {0}",
        "jnp.maximum({0}, {0})",
        "{0} + jnp.zeros_like({0})",
        "{0} * jnp.ones_like({0})",
        "{0}.astype('float32').astype({0}.dtype)",
        "jnp.where({0} == {0}, {0}, 0)",
        "{0} * 2 / 2",
        "{0} + {0}",
        "({0} - {0}) + {0}",
        "jnp.where({0} > 0, {0}, {0})",
        "0 - {0}",
        "{0} * -1",
    ),
    "int": (
        "{0} * 1",
        "{0} + 0",
        "{0} - {0}",
        "{0} ^ {0}",
        "{0} & {0}",
        "{0} | 0",
        "~~{0}",
        "-(-{0})",
        "{0} // 1",
        "{0} % 1",
        "{0} << 0",
        "{0} * 0",
        "{0}.astype('int32').astype({0}.dtype)",
        "{0}.astype('float32').astype({0}.dtype)",
        "{0} == {0}",
    ),
    "bool": (
        "{0} & True",
        "{0} | False",
        "~~{0}",
        "{0} ^ {0}",
        "{0} | True",
        "{0}.astype('int32').astype(bool)",
    ),
    "complex": ("{0} * 1", "jnp.conj(jnp.conj({0}))", "lax.complex(jnp.real({0}), jnp.imag({0}))"),
}


def family(dtype: str) -> str:
    """The table that a dtype has: float, int, bool or complex."""
    if dtype in FLOATS:
        return "float"
    return "int" if dtype in INTS else {BOOL: "bool", COMPLEX: "complex"}.get(dtype, "int")


def _known(kind: Type) -> bool:
    return kind.dtype in (*FLOATS, *INTS, BOOL, COMPLEX)


def unary(g: Generator) -> None:
    """A function of one value."""
    found = g.pick(_known)
    if found is not None:
        g.emit(g.choice(_UNARY[family(found[1].dtype)]), found[0])


def binary(g: Generator) -> None:
    """A function of two values that broadcast."""
    found = g.pick(_known)
    mate = None if found is None else g.mate(found[1])
    if found is not None and mate is not None:
        operands = (found[0], mate) if g.rng.random() < 0.5 else (mate, found[0])
        g.emit(g.choice(_BINARY[family(found[1].dtype)]), *operands)


def neutral(g: Generator) -> None:
    """Arithmetic that changes nothing, or leaves nothing."""
    found = g.pick(_known)
    if found is not None:
        g.emit(g.choice(_NEUTRAL[family(found[1].dtype)]), found[0])


def repeated(g: Generator) -> None:
    """A statement written before, written again; sums and products the other way round."""
    visible = {name for name, _ in g.scope}
    earlier = [s for s in g.statements if s.results and not s.regions and visible.issuperset(s.operands)]
    if not earlier:
        return
    old = g.rng.choice(earlier)
    turned = old.operands[::-1] if old.template in ("{0} + {1}", "{0} * {1}") else old.operands
    g.emit(old.template, *turned)


def constant(g: Generator) -> None:
    """A constant: zeros, ones, an identity, a ramp, odd numbers."""
    shape = g.shape()
    options = [
        f"jnp.zeros({shape})",
        f"jnp.ones({shape})",
        f"jnp.full({shape}, 2.5)",
        f"jnp.full({shape}, -1)",
    ]
    options += [f"jnp.eye({max(shape, default=1)})", f"jnp.arange({max(shape, default=3)})"]
    size = Type(shape, "float32").size
    options += [f"np.linspace(-1, 1, {size}, dtype=np.float32).reshape({shape})"]
    options += [f"lax.broadcasted_iota('int32', {shape}, 0)"] if shape else []
    made = g.choice(options)
    g.emit(made if not made.startswith("np.") else f"jnp.asarray({made})")


def comparison(g: Generator) -> None:
    """A bool from two values, or from one."""
    found = g.pick(lambda kind: kind.dtype in (*FLOATS, *INTS))
    if found is None:
        return
    mate = g.mate(found[1])
    if mate is None or g.rng.random() < 0.3:
        g.emit(g.choice(["{0} > 0", "{0} <= 1", "jnp.isnan({0} * 1.0)", "{0} != 0"]), found[0])
    else:
        sign = g.choice(["<", "<=", ">", ">=", "==", "!="])
        g.emit("{0} " + sign + " {1}", found[0], mate)


def select(g: Generator) -> None:
    """A choice between two values, between a value and zero, or between limits."""
    found = g.pick(_known)
    if found is None:
        return
    name, kind = found
    wanted = kind.shape
    which = g.pick(lambda other: other.dtype == BOOL and broadcasts(other.shape, wanted))
    mate = g.mate(kind)
    if which is not None and mate is not None:
        g.emit(g.choice(["jnp.where({0}, {1}, {2})", "jnp.where({0}, {2}, {1})"]), which[0], name, mate)
    elif which is not None:
        g.emit(g.choice(["jnp.where({0}, {1}, 0)", "jnp.where({0}, 1, {1})"]), which[0], name)
    elif kind.dtype in FLOATS:
        g.emit(g.choice(["lax.clamp(jnp.asarray(-1, {0}.dtype), {0}, jnp.asarray(2, {0}.dtype))"]), name)


def conversion(g: Generator) -> None:
    """A value in another dtype."""
    found = g.pick_any()
    if found is not None:
        g.emit(convert(found[1], Type(found[1].shape, g.type().dtype)), found[0])


def bits(g: Generator) -> None:
    """The bits of a value as another type."""
    found = g.pick_dtype("float32", "int32")
    if found is None:
        return
    if found[1].dtype == "float32":
        g.emit("lax.bitcast_convert_type({0}, 'int32') & 0xFF", found[0])
    else:
        g.emit("lax.bitcast_convert_type(({0} & 0x7FFFFF) | 0x3F800000, 'float32')", found[0])


def complex_parts(g: Generator) -> None:
    """Complex numbers from floats, and back."""
    found = g.pick_dtype(COMPLEX)
    if found is not None:
        g.emit(g.choice(["jnp.real({0})", "jnp.imag({0})", "jnp.abs({0}) + 1"]), found[0])
        return
    real = g.pick_dtype("float32")
    if real is not None:
        g.emit(g.choice(["lax.complex({0}, {0})", "{0} * 1j", "{0} + 0j"]), real[0])


def draw(g: Generator) -> None:
    """Random numbers from a typed key, and new keys."""
    found = g.pick_key()
    if found is None:
        return
    shape = g.shape()
    options = [
        f"jax.random.normal({{0}}, {shape})",
        f"jax.random.uniform({{0}}, {shape})",
        f"jax.random.randint({{0}}, {shape}, 0, 7)",
        "jax.random.fold_in({0}, 3)",
        "jax.random.split({0})[1]",
        "jax.random.split({0}, 3)[0]",
        "jax.random.bernoulli({0})",
    ]
    g.emit(g.choice(options), found[0])


def effect(g: Generator) -> None:
    """A value recorded, in order."""
    found = g.pick(lambda kind: kind.size <= 4)
    if found is not None and not g.quiet:
        g.effect(f"io_callback(record, None, {g.rng.randrange(1000)}, {{0}}, ordered=True)", found[0])


MAKERS: Final[tuple[tuple[Maker, float], ...]] = (
    (unary, 8),
    (binary, 10),
    (neutral, 9),
    (repeated, 5),
    (constant, 3),
    (comparison, 4),
    (select, 5),
    (conversion, 5),
    (bits, 2),
    (complex_parts, 1.5),
    (draw, 8),
    (effect, 6),
)
"""Every maker of this module and how often it is tried."""
