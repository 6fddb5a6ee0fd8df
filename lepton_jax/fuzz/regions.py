"""Random operations that run functions: loops, branches, calls, custom derivatives, vmap."""

from __future__ import annotations

from typing import Final

from lepton_jax.fuzz.generator import Generator, Maker
from lepton_jax.fuzz.program import KEY, Block, Type

_DEEPEST = 3


def _room(g: Generator) -> int:
    """How many statements a region may have; 0 when there is no room for one."""
    return 0 if g.depth > _DEEPEST or g.left < 2 else g.rng.randint(1, min(6, g.left))


def _operands(g: Generator, count: int) -> tuple[list[str], list[Type]]:
    """Up to `count` values, now and then a key among them."""
    found = [g.pick_any() for _ in range(count)]
    picked = [pair for pair in found if pair is not None]
    if g.rng.random() < 0.15 and (key := g.pick_key()) is not None:
        picked.append(key)
    return [name for name, _ in picked], [kind for _, kind in picked]


def _tuple(start: int, stop: int) -> str:
    return "(" + "".join(f"{{{i}}}, " for i in range(start, stop)).rstrip() + ")"


def scan(g: Generator) -> None:
    """A scan with carries, inputs and outputs; its length may be 0 or 1."""
    size = _room(g)
    if not size:
        return
    carries, kinds = _operands(g, g.rng.randint(0, 3))
    scanned = [g.pick_any(least=1) for _ in range(g.rng.randint(0, 2))]
    lengths = [kind.shape[0] for _, kind in filter(None, scanned)]
    length = lengths[0] if lengths else g.rng.choice([0, 1, 2, 3])
    xs = [(name, kind) for name, kind in filter(None, scanned) if kind.shape[0] == length]
    rows = [Type(kind.shape[1:], kind.dtype) for _, kind in xs]
    outputs = [g.rng.choice([*kinds, *rows]) for _ in range(g.rng.randint(0, 2)) if kinds or rows]
    outputs = [kind for kind in outputs if kind.dtype != KEY]
    body = g.block([*kinds, *rows], size, [*kinds, *outputs])
    n = len(carries)
    operands = [*carries, *(name for name, _ in xs)]
    options = f"length={length}, reverse={g.rng.random() < 0.3}, unroll={g.rng.choice([1, 1, 1, 2])}"
    args = f"{_tuple(0, n)}, {_tuple(n, len(operands))}"
    g.emit(f"lax.scan(lambda c, x: split({n}, {{f0}}(*c, *x)), {args}, {options})", *operands, regions=[body])


def while_loop(g: Generator) -> None:
    """A while loop with a counter; how often it runs may depend on a value."""
    size = _room(g)
    if not size or g.straight:
        return
    names, kinds = _operands(g, g.rng.randint(1, 3))
    body = g.block([Type((), "int32"), *kinds], size, kinds)
    most, read = g.index(5, len(names))
    init = f"(0, *{_tuple(0, len(names))})"
    run = f"lax.while_loop(lambda s: s[0] < {most}, lambda s: (s[0] + 1, *{{f0}}(*s)), {init})[1:]"
    g.emit(run, *names, *read, regions=[body])


def fori_loop(g: Generator) -> None:
    """A loop that runs a fixed number of times."""
    size = _room(g)
    if not size:
        return
    names, kinds = _operands(g, g.rng.randint(1, 3))
    body = g.block([Type((), "int32"), *kinds], size, kinds)
    times = g.rng.choice([0, 1, 2, 3])
    g.emit(
        f"lax.fori_loop(0, {times}, lambda i, s: {{f0}}(i, *s), {_tuple(0, len(names))})",
        *names,
        regions=[body],
    )


def cond(g: Generator) -> None:
    """Two branches; the predicate may be a constant."""
    size = _room(g)
    which = g.pick(lambda kind: kind == Type((), "bool"))
    if not size:
        return
    if which is None or g.rng.random() < 0.2:
        _branches(g, size, 2, f"lax.cond({g.rng.choice(['True', 'False'])}, {{f0}}, {{f1}}", [])
    else:
        _branches(g, size, 2, "lax.cond({0}, {f0}, {f1}", [which[0]])


def switch(g: Generator) -> None:
    """Several branches; the index may be a constant."""
    size = _room(g)
    if size:
        count = g.rng.randint(1, 3)
        listed = ", ".join(f"{{f{i}}}" for i in range(count))
        which, read = g.index(count, 0)
        _branches(g, size, count, f"lax.switch({which}, [{listed}]", read)


def _branches(g: Generator, size: int, count: int, head: str, read: list[str]) -> None:
    names, kinds = _operands(g, g.rng.randint(1, 3))
    outputs = [g.rng.choice(kinds) if kinds else g.type() for _ in range(g.rng.randint(1, 2))]
    outputs = [Type((), "float32") if kind.dtype == KEY else kind for kind in outputs]
    blocks = [g.block(kinds, max(size // count, 1), outputs) for _ in range(count)]
    args = "".join(f", {{{i}}}" for i in range(len(read), len(read) + len(names)))
    g.emit(head + args + ")", *read, *names, regions=blocks)


def _call(g: Generator, head: str, block: Block, names: list[str]) -> None:
    g.emit(head + "(" + ", ".join(f"{{{i}}}" for i in range(len(names))) + ")", *names, regions=[block])


def jit(g: Generator) -> None:
    """A nested jit."""
    size = _room(g)
    if size:
        names, kinds = _operands(g, g.rng.randint(1, 3))
        _call(
            g,
            g.rng.choice(["jax.jit({f0})", "jax.jit({f0})", "jax.jit({f0}, inline=True)"]),
            g.block(kinds, size),
            names,
        )


def jit_twice(g: Generator) -> None:
    """One jitted function called twice."""
    size = _room(g)
    if size:
        names, kinds = _operands(g, g.rng.randint(1, 2))
        block = g.block(kinds, size, kinds)
        listed = ", ".join(f"{{{i}}}" for i in range(len(names)))
        g.emit(f"(lambda f: f(*f({listed})))(jax.jit({{f0}}))", *names, regions=[block])


def checkpoint(g: Generator) -> None:
    """A rematerialised call."""
    size = _room(g)
    if size:
        names, kinds = _operands(g, g.rng.randint(1, 3))
        _call(g, "jax.checkpoint({f0})", g.block(kinds, size, quiet=True, straight=True), names)


def _floats(g: Generator, count: int) -> tuple[list[str], list[Type]]:
    found = [g.pick_dtype("float32") for _ in range(count)]
    picked = [pair for pair in found if pair is not None]
    return [name for name, _ in picked], [kind for _, kind in picked]


def custom_jvp(g: Generator) -> None:
    """A function with a forward rule that is not its derivative, so that it matters."""
    size = _room(g)
    names, kinds = _floats(g, 2)
    if not size or not names:
        return
    body = g.block(kinds, size, [g.rng.choice(kinds)], closed=True, quiet=True, straight=True)
    _call(g, "twice_the_tangent({f0})", body, names)


def custom_vjp(g: Generator) -> None:
    """A function with a backward rule that is not its derivative."""
    size = _room(g)
    names, kinds = _floats(g, 2)
    if not size or not names or not g.straight:
        return
    body = g.block(kinds, size, [g.rng.choice(kinds)], closed=True, quiet=True, straight=True)
    _call(g, "thrice_the_cotangent({f0})", body, names)


def vmap(g: Generator) -> None:
    """A function mapped over the first axis of its arguments, or over none of one."""
    size = _room(g)
    first = g.pick(lambda kind: kind.ndim >= 1 and kind.size > 0)
    if not size or first is None:
        return
    rows = first[1].shape[0]
    second = g.pick(lambda kind: kind.ndim >= 1 and kind.shape[0] == rows)
    fixed = g.pick_any()
    assert second is not None and fixed is not None  # the first would do
    kinds = [Type(kind.shape[1:], kind.dtype) for _, kind in (first, second)]
    body = g.block([*kinds, fixed[1]], size, quiet=True)
    _call(g, "jax.vmap({f0}, (0, 0, None))", body, [first[0], second[0], fixed[0]])


def associative(g: Generator) -> None:
    """An associative scan."""
    found = g.pick(lambda kind: kind.dtype in ("float32", "int32") and kind.ndim >= 1 and kind.size > 0)
    if found is not None:
        how = g.rng.choice(["jnp.add", "jnp.multiply", "jnp.maximum"])
        g.emit(f"lax.associative_scan({how}, {{0}}, reverse={g.rng.random() < 0.3})", found[0])


def idle(g: Generator) -> None:
    """Loops and branches that do nothing, or the same either way."""
    found = g.pick_any()
    if found is None:
        return
    options = [
        "lax.scan(lambda c, _: (c, None), {0}, None, length=3)[0]",
        "lax.scan(lambda c, _: (c, c), {0}, None, length=1)[1][0]",
        "lax.fori_loop(0, 0, lambda i, c: c[..., ::-1] if c.ndim else -c, {0})"
        if found[1].dtype != "bool"
        else "{0}",
        "lax.cond(True, lambda a: a, lambda a: jnp.zeros_like(a), {0})",
        "lax.switch(1, [lambda a: jnp.ones_like(a), lambda a: a], {0})",
        "lax.map(lambda a: a, jnp.expand_dims({0}, 0))[0]",
        "jax.checkpoint(lambda a: a)({0})",
    ]
    g.emit(g.choice(options), found[0])


def gradient(g: Generator) -> None:
    """The gradient of a region, inside the program."""
    size = _room(g)
    names, kinds = _floats(g, 1)
    if not size or not names:
        return
    body = g.block(kinds, size, [Type((), "float32")], quiet=True, straight=True)
    g.emit("jax.grad(lambda x: {f0}(x)[0])({0})", *names, regions=[body])


MAKERS: Final[tuple[tuple[Maker, float], ...]] = (
    (scan, 5),
    (while_loop, 2.5),
    (fori_loop, 2.5),
    (cond, 3),
    (switch, 2),
    (jit, 3),
    (jit_twice, 1.5),
    (checkpoint, 2),
    (custom_jvp, 1.5),
    (custom_vjp, 1.5),
    (vmap, 2.5),
    (associative, 1),
    (idle, 2),
    (gradient, 1),
)
"""Every maker of this module and how often it is tried."""
