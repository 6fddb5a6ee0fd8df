"""Products of activations with weights in the form that the target is fast at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.binding import Sources, parameters_of
from lepton_jax.ir.cost import bytes_of, dtype_name, size_of
from lepton_jax.ir.graph import Graph, Node, Value, constant
from lepton_jax.passes.lower._layout import in_rows, is_in_rows, row_major
from lepton_jax.passes.lower._products.sides import Product, product_of
from lepton_jax.passes.lower._products.stored import is_early, readers, runs_early, stem
from lepton_jax.passes.lower._products.tables import is_table, is_viewed, keep_unsigned
from lepton_jax.passes.lower._products.unsigned import as_signed, as_unsigned
from lepton_jax.passes.lower._products.write import arguments, transposed, turned_and_back, write_product
from lepton_jax.rewrite import Pass, PassContext, erase_dead, rewrite
from lepton_jax.rewrite.context import Level
from lepton_jax.rewrite.errors import PipelineError
from lepton_jax.rewrite.replacement import write, write_before
from lepton_jax.targets.forms import Form, form_by_columns, product_form, unsigned_form

_RULES: Final = {
    "turned": "turned-product",
    "unsigned": "unsigned-product",
    "rows": "product-by-rows",
    "plain": "padded-row",
}

_LETTERS: Final = {"turned": "y", "rows": "y", "unsigned": "u", "plain": "n"}
"""How weights are kept that cost nothing to turn, in words such as `ynu`: turned, as they are, unsigned."""

_TURNED: Final = ("turned", "unsigned")
"""Where the weight stands of products whose result is transposed."""

_SUMS: Final[dict[str, tuple[str, ...]]] = {
    "int8": ("int32",),
    "float32": ("float32",),
    "bfloat16": ("float32", "bfloat16"),
    "float8_e4m3fn": ("float32", "bfloat16", "float16"),
    "float8_e5m2": ("float32", "bfloat16", "float16"),
}
"""The results that products of each dtype may have."""

Turned: TypeAlias = dict[tuple[Value, tuple[int, ...], bool, Graph | None], Value]
"""Weights turned already: the weight, the order of its dimensions, whether unsigned, and where it is read."""

_ANY: Final = 64
"""Rows of a product whose number of rows is not known."""

_LARGEST_CONSTANT: Final = 2**28
"""Bytes of a constant above which it is not turned: there would be two of it."""


@dataclass(frozen=True)
class Products(Pass):
    """Writes products of int8, fp8 and float32 matrices in the form that the target is fast at.

    Before:
        %2: i32[1,4096] = dot_general[dimension_numbers=(((1,),(0,)),((),()))] %x %w
    After:
        %2 = transpose %w;  %3: i8[4,4096] = pad %x 0
        %4 = jit[name=row_major] %3;  %5: i32[4096,4] = dot_general[...=(((1,),(1,)),((),()))] %2 %4
        %6 = optimization_barrier %5;  %7 = slice %6;  %8: i32[1,4096] = transpose %7

    Which form that is, `lepton_jax.targets.forms` says, as measured: the weight stored along what is summed
    over, on the left where there are few rows, and one row padded to four. A weight is turned only where
    that costs nothing: where it depends on parameters alone, so that `prepare` turns it, or is a constant;
    what is marked by `lepton_jax.ir.binding.store` is kept turned. Otherwise only what needs no turning is
    done. Several dimensions count as one, batches stay batches.

    It runs last: simplifications would take the transpose back into the product. On integers it is exact, on
    floating-point numbers the sums are made in another order: level `reassociate`.

    Attributes:
        level: a tighter limit on the level than the run's.
        turn: which floating-point weights are turned that cost nothing to turn: `auto`: as the number of rows
            wants it; `always` or `never`: whatever it is, so that prepared weights serve any number of rows;
            a word such as `yn`: those of the first product, not those of the second, the rest as in `auto`.
            `u` in such a word: those of a product of int8, as unsigned numbers; other int8 ones are signed.
        unsigned: whether `auto` lets prepared weights of int8 be unsigned where that is faster, as constants
            may be. The last run of this pass, which knows how weights were prepared, lets those be that no
            run before it has turned.
    """

    name: ClassVar[str] = "products"

    level: Level | None = None
    turn: str = "auto"
    unsigned: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.turn not in ("auto", "always", "never") and set(self.turn) - set(_LETTERS.values()):
            choices = "auto, always, never or a word of y, n and u"
            raise PipelineError(f"option 'turn' of pass {self.name!r} is {choices}; got {self.turn!r}")

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Each product of the program as it stands, regions included."""
        nodes = [node for node in graph.walk() if node.op == "dot_general"]
        early = parameters_of(graph, ctx.params) if nodes and ctx.params else {}
        plans = [(node, *plan) for node in nodes if (plan := self._plan(node, early, ctx)) is not None]
        turned: Turned = {}
        pin = row_major if ctx.rates.platform == "cpu" else None
        is_mixed = pin is not None and any(form.weight_at in _TURNED for _, _, form in plans)
        for node, weight, form in plans:
            rule, of_rows = _RULES[form.weight_at], form.weight_at == "rows"
            if of_rows and not is_mixed and _stands(product_of(node, weight), form):
                continue
            if ctx.fire(rule, node):
                unsigned = form.weight_at == "unsigned"
                if unsigned and (kept := keep_unsigned(node, weight, early, rule)) is not None:
                    turned[node.operands[weight], tuple(range(kept.ndim)), True, node.graph] = kept
                if not node.operands[1 - weight].is_static:
                    _read_turned(node, weight, rule, turned, unsigned=unsigned)
                    continue
                product = product_of(node, weight)
                _write(node, product, form, rule, turned, pin=in_rows if of_rows and is_mixed else pin)
                erase_dead(node)

    def _plan(self, node: Node, early: Sources, ctx: PassContext) -> tuple[int, Form] | None:
        """Which operand of a dot_general is the weight, and the form to write the product in."""
        dtype = _dtype_of(node)
        weight = None if dtype is None else _weight_at(node, early)
        if dtype is None or weight is None:
            return None
        if not ctx.allows("exact" if dtype == "int8" else "reassociate", self.level):
            return None
        may_turn = _may_turn(node, weight, early) or (dtype == "int8" and is_table(node, weight, early))
        if dtype == "bfloat16" and not (ctx.is_bound or node.operands[weight].is_const):
            may_turn = False  # under vmap XLA would take the transpose in, which no CPU library runs
        told = self._told(len(ctx.turned)) if may_turn else ""
        if dtype == "int8" and told == "n":
            told = "y"  # its weights are turned in any case
        product = product_of(node, weight)
        is_last = (
            self.unsigned and ctx.is_bound and (node.rule is None or node.rule.rule not in _RULES.values())
        )
        prepared = product.weight.value.is_const or is_last
        shifts = may_turn and told == "" and prepared and not is_viewed(product.weight.value, early)
        form = (
            _form_of(product, dtype, may_turn and told != "n", ctx, told=told, shifts=shifts)
            if product.x.value.is_static
            else _form_of_any(product, dtype, may_turn, ctx, told=told)
        )
        if may_turn:
            ctx.turned += _LETTERS["plain" if form is None else form.weight_at]
        return None if form is None else (weight, form)

    def _told(self, place: int) -> str:
        """How a weight is to be kept, as one of `_LETTERS`; empty: as its rows want it."""
        fixed = {"auto": "", "always": "y", "never": "n"}.get(self.turn)
        return self.turn[place : place + 1] if fixed is None else fixed


def _dtype_of(node: Node) -> str | None:
    """The dtype of both operands, where products of it are known here."""
    a, b = node.operands
    if node.params.get("out_sharding") is not None or a.dtype != b.dtype:
        return None
    if any(isinstance(size, int) and size == 0 for size in (*a.shape, *b.shape)):
        return None
    dtype = dtype_name(a.dtype)
    return dtype if dtype_name(node.result.dtype) in _SUMS.get(dtype, ()) else None


def _weight_at(node: Node, early: Sources) -> int | None:
    """Which operand is the weight: the one known early, else the larger; None if both are known early."""
    known = [is_early(value, early) for value in node.operands]
    if all(known):
        return None
    if any(known):
        position = known.index(True)
        return position if node.operands[position].is_static else None
    if not all(value.is_static for value in node.operands):
        return None
    sizes = [size_of(value.shape) for value in node.operands]
    return int(sizes[1] >= sizes[0])


def _may_turn(node: Node, position: int, early: Sources) -> bool:
    """Whether turning the weight costs nothing at run time.

    It must be known early, and nothing late may read it as it is, in which case it would be kept as it is.
    """
    weight = node.operands[position]
    if weight.is_const:
        small = bytes_of(weight) <= _LARGEST_CONSTANT
        return small and _jax.plain_constant(weight.const) is not None
    source = stem(weight)
    return source in early and all(_reads_alike(node, position, *use, early) for use in readers(source))


def _reads_alike(node: Node, position: int, other: Node, place: int, early: Sources) -> bool:
    """Whether `other`, which reads the weight at `place`, is early or sums over the same dimensions of it."""
    if other is node or runs_early(other, early):
        return True
    if other.op != "dot_general":
        return False
    mine, theirs = (n.params["dimension_numbers"] for n in (node, other))
    return [set(part[position]) for part in mine] == [set(part[place]) for part in theirs]


def _form_of(
    product: Product, dtype: str, may_turn: bool, ctx: PassContext, *, told: str, shifts: bool
) -> Form | None:
    """The form to write a product in, None to leave it as it is."""
    x, weight, always = product.x, product.weight, told == "y" and dtype != "int8"
    if told == "u":
        return unsigned_form(x.rows)
    by_rows = may_turn or weight.is_by_rows
    platform, sizes = ctx.rates.platform, (x.rows, product.inner, weight.rows)
    if x.is_by_rows:
        form = product_form(platform, dtype, *sizes, by_rows=by_rows, always=always, shifts=shifts)
    elif x.is_by_columns and by_rows:
        form = form_by_columns(platform, dtype, *sizes, shifts=shifts)
        if form is None and always:
            form = product_form(platform, dtype, *sizes, by_rows=True, always=True)
    elif (dtype == "int8" or always) and by_rows:  # put in order first: one example, or one row, may be in it
        form = product_form(platform, dtype, *sizes, by_rows=True, always=always, shifts=shifts)
    else:
        return None
    if form is None or (form.weight_at == "plain" and not weight.is_by_columns):
        return None
    pinned = (platform, dtype, form.weight_at) == ("cpu", "int8", "rows")
    return None if _stands(product, form, pinned=pinned) else form


def _form_of_any(product: Product, dtype: str, may_turn: bool, ctx: PassContext, *, told: str) -> Form | None:
    """The form of a product of any number of rows: the weight turned where it is so for other numbers."""
    if not (ctx.is_bound and may_turn):
        return None
    if told == "u":
        return Form("unsigned", 0)
    if product.weight.is_by_rows or not (told == "y" or dtype == "int8"):
        return None
    rows = product.weight.rows
    form = product_form(ctx.rates.platform, dtype, _ANY, product.inner, rows, by_rows=True, always=True)
    return None if form is None or form.weight_at == "plain" else form


def _stands(product: Product, form: Form, *, pinned: bool = False) -> bool:
    """Whether a product has the form already.

    Args:
        pinned: whether activations that are computed must be pinned too, see `in_rows`.
    """
    if product.x.rows != form.rows:
        return False
    if form.weight_at == "plain":
        return True
    if form.weight_at == "unsigned":
        return False
    if pinned and (made_by := product.x.value.node) is not None and not is_in_rows(made_by):
        return False
    return product.weight.is_by_rows and product.x_first == (form.weight_at == "rows")


def _write(
    node: Node, product: Product, form: Form, rule: str, turned: Turned, *, pin: Callable[..., Any] | None
) -> None:
    """Put the product in its form in place of a node."""
    order = product.weight.order(by_rows=form.weight_at != "plain")
    weight, unsigned = product.weight.value, form.weight_at == "unsigned"
    if unsigned or list(order) != sorted(order):
        weight = _turned(weight, order, node, rule, turned, unsigned=unsigned)
    made = rewrite(write_product, product.x.value, weight, **arguments(product, form, node, pin=pin))
    write(made, node, rule)


def _read_turned(node: Node, position: int, rule: str, turned: Turned, *, unsigned: bool) -> None:
    """Let a product of any number of rows read a weight that is kept turned, and write it as it is."""
    order = product_of(node, position).weight.order(by_rows=True)
    kept = turned.get((node.operands[position], tuple(order), unsigned, node.graph))
    if kept is not None:
        node.set_operand(position, *write_before(rewrite(as_signed, kept), node, rule))
        return
    back = tuple(int(i) for i in np.argsort(order))
    source = stem(node.operands[position])
    made = rewrite(turned_and_back, source, order=order, back=back, unsigned=unsigned)
    (weight,) = write_before(made, node, rule)
    node.set_operand(position, weight)


def _turned(
    value: Value, order: tuple[int, ...], node: Node, rule: str, turned: Turned, *, unsigned: bool
) -> Value:
    """A value with its dimensions in another order, made once for all that read it so."""
    key = (value, order, unsigned, node.graph)
    if key not in turned and value.is_const:
        contents: Any = _jax.plain_constant(value.const)
        array = jnp.asarray(np.ascontiguousarray(np.transpose(contents, order)))
        array = as_unsigned(array) if unsigned else array
        turned[key] = constant(array, jax.typeof(array))
    if key not in turned:
        source = stem(value)
        made = rewrite(transposed, source, order=order, stored=source is not value, unsigned=unsigned)
        (turned[key],) = write_before(made, node, rule)
    return turned[key]
