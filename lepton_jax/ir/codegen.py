"""A graph as Python source that rebuilds the same program, operation by operation."""

from __future__ import annotations

import builtins
import enum
import inspect
import json
import keyword
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import _bind, _jax
from lepton_jax.ir._bind import bind as bind
from lepton_jax.ir._bind import spec as spec
from lepton_jax.ir._describe import CUSTOM, described, is_known, key_kind
from lepton_jax.ir._describe import CodegenError as CodegenError
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.importer import from_jaxpr

_INLINE: Final = 16
"""Constants of at most so many elements are written in line."""

_RESERVED: Final = frozenset({"np", "jax", "bind", "ARRAYS", *dir(_bind), *dir(builtins)})


def to_python(graph: Graph, arrays: dict[str, np.ndarray], name: str | None = None) -> str:
    """Python source that defines a function which runs the same program as a graph.

    The function takes the graph's flat inputs and returns the list of its flat outputs; traced
    again, it gives the same graph, up to names. Not kept: name stacks, equation contexts, and the
    rules of custom_jvp and custom_vjp, which are functions (the derivative is that of the body).

    Args:
        graph: the program.
        arrays: receives the constants that are too large to be written in line. The source reads
            them from a global dictionary `ARRAYS`.
        name: of the function (default: the graph's, made an identifier).

    Raises:
        CodegenError: a constant is a tracer, or an operation has a parameter that cannot be
            written, such as a callback or a mesh, or is not known by name.

    Example:
        >>> from lepton_jax.ir import trace
        >>> print(to_python(trace(lambda x: x * 2.0, jax.ShapeDtypeStruct((3,), "float32")), {}, "f"))
        import numpy as np
        from lepton_jax.ir.codegen import bind
        <BLANKLINE>
        def f(v0):
            v1 = bind("mul", [v0, np.float32(2.0)], out_dtype=None)
            return [v1]
        <BLANKLINE>
    """
    writer = _Writer(arrays)
    writer.function(graph, identifier(graph.name) if name is None else name)
    return writer.source()


def to_spec(aval: Any) -> str:
    """An expression for the shape and dtype of an array, to be read with `spec`.

    Raises:
        CodegenError: it is not an array, or its shape or dtype cannot be written.
    """
    if not _jax.is_array_aval(aval):
        raise CodegenError(f"an argument is not an array: {aval}")
    return _Writer({}).spec(aval, "argument")


def identifier(name: str) -> str:
    """`name` as a Python identifier."""
    cleaned = name if name.isidentifier() else re.sub(r"\W+", "_", name).strip("_")
    return cleaned if cleaned.isidentifier() and not keyword.iskeyword(cleaned) else f"f_{cleaned}"


class _Writer:
    """Collects the module: constants first, then functions, those of regions before their callers."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.blocks: list[str] = []
        self.functions: dict[Graph, str] = {}
        self.taken = set(_RESERVED)
        self.known: dict[int, tuple[Any, str]] = {}  # constants and jaxprs by identity, kept alive
        self.helpers: set[str] = set()

    def source(self) -> str:
        text = "\n\n".join(self.blocks)
        imports = [f"import {module}" for module in ("jax",) if re.search(rf"\b{module}\.", text)]
        imports += ["import numpy as np"] if re.search(r"\bnp\.", text) else []
        if self.helpers:
            runtime = sorted(self.helpers - {"bind"})
            imports += ["from lepton_jax.ir._bind import " + ", ".join(runtime)] if runtime else []
            imports += ["from lepton_jax.ir.codegen import bind"] if "bind" in self.helpers else []
        return "\n".join(imports) + "\n\n" * bool(imports) + text.rstrip() + "\n"

    def helper(self, name: str, *args: str) -> str:
        """A call of a function of `_bind`."""
        self.helpers.add(name)
        return f"{name}({', '.join(args)})"

    def fresh(self, wanted: str) -> str:
        """A global name that is not taken."""
        name, count = wanted, 1
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        return name

    # Functions

    def function(self, graph: Graph, wanted: str) -> str:
        """Write a graph as a function; its name. A graph that several calls share is written once."""
        if graph in self.functions:
            return self.functions[graph]
        name = self.functions[graph] = self.fresh(wanted)
        names = {value: f"v{i}" for i, value in enumerate(graph.inputs)}
        lines = [f"def {name}({', '.join(names.values())}):"]
        for node in graph:
            lines.append("    " + self.statement(node, names))
        outputs = ", ".join(self.read(value, names, "return") for value in graph.outputs)
        self.blocks.append("\n".join([*lines, f"    return [{outputs}]"]) + "\n")
        return name

    def statement(self, node: Node, names: dict[Value, str]) -> str:
        operands = ", ".join(self.read(value, names, node.op) for value in node.operands)
        regions, params = described(node)
        args = [json.dumps(node.op), f"[{operands}]"]
        if regions:
            args.append(f"regions=[{', '.join(self.function(g, identifier(g.name)) for g in regions)}]")
        args += [f"{key}={self.value(value, node.op, key)}" for key, value in params.items()]
        call = self.helper("bind", *args)
        for value in node.results:
            names[value] = f"v{len(names)}"
        results = ", ".join(names[value] if value.uses else "_" for value in node.results)
        if not node.primitive.multiple_results:
            return f"{results} = {call}"
        note = "  # the derivative is that of the body" if node.op in CUSTOM else ""
        return f"[{results}] = {call}{note}"

    def read(self, value: Value, names: Mapping[Value, str], op: str) -> str:
        return self.constant(value, op) if value.is_const else names[value]

    # Constants

    def constant(self, value: Value, op: str) -> str:
        """An expression for a constant; all but scalars become globals, each array once."""
        const = value.const
        if isinstance(const, _jax.Tracer):
            raise CodegenError(f"{op}: a constant belongs to a trace that is going on outside")
        is_weak = bool(getattr(value.aval, "weak_type", False))
        if _jax.is_extended(value.dtype):
            return self.once(const, "C", lambda: self.key_array(const, op))
        plain = _jax.plain_constant(const)
        if plain is None:
            raise CodegenError(f"{op}: the contents of a constant are not to be had")
        if is_weak and isinstance(const, (int, float, complex)):
            return _number(_python(np.asarray(const)))
        if plain.ndim == 0:
            return self.scalar(plain, is_weak, op)
        return self.once(const, "C", lambda: self.array(plain, is_weak, op))

    def once(self, thing: Any, letter: str, write: Callable[[], str]) -> str:
        """A global that holds what `write` writes, one for each thing."""
        if id(thing) not in self.known:
            name = self.fresh(f"{letter}{len(self.known)}")
            self.known[id(thing)] = (thing, name)
            self.blocks.append(f"{name} = {write()}")
        return self.known[id(thing)][1]

    def scalar(self, plain: np.ndarray, is_weak: bool, op: str) -> str:
        number = _number(_python(plain))
        name = _dtype_name(plain.dtype, op)
        if is_weak:
            return self.helper("weak", number, f'"{name}"')
        if plain.dtype.isbuiltin == 1:
            return number if name == "bool" else f"np.{name}({number})"
        return self.helper("array", number, f'"{name}"')

    def array(self, plain: np.ndarray, is_weak: bool, op: str) -> str:
        name = f'"{_dtype_name(plain.dtype, op)}"'
        if plain.size <= _INLINE:
            values = ", ".join(map(_number, _python(plain.reshape(-1))))
            text = self.helper("array", f"[{values}]", name, repr(plain.shape))
        else:
            key = f"a{len(self.arrays)}"
            self.arrays[key] = _bind.storable(plain)
            text = self.helper("stored", f'ARRAYS["{key}"]', name)
        return self.helper("weak", text, name) if is_weak else text

    def key_array(self, const: Any, op: str) -> str:
        data = np.asarray(jax.random.key_data(const))
        return self.helper("keys", self.array(data, False, op), f'"{key_kind(const.dtype, op)}"')

    # Parameters

    def value(self, value: Any, op: str, key: str) -> str:
        """A parameter as source.

        Raises:
            CodegenError: it cannot be written.
        """
        if value is None or type(value) in (bool, int):
            return repr(value)
        if type(value) is str:
            return json.dumps(value)
        if type(value) in (float, complex):
            return _number(value)
        if isinstance(value, np.dtype) or _is_key_dtype(value):
            return self.helper("dtype", f'"{_dtype_name(value, op)}"')
        if isinstance(value, (np.ndarray, np.generic)):
            plain = np.asarray(value)
            return self.array(plain, False, op) if plain.ndim else self.scalar(plain, False, op)
        if isinstance(value, _jax.ShapedArray):
            return self.spec(value, op)
        if _jax.is_jaxpr(value):
            return self.jaxpr(value, op, key)
        text = self.public(value, op, key) or self.container(value, op, key)
        if text is None:
            raise CodegenError(f"{op}: parameter {key!r} cannot be written as Python: {type(value).__name__}")
        return text

    def container(self, value: Any, op: str, key: str) -> str | None:
        if type(value) is dict:
            items = (f"{self.value(k, op, key)}: {self.value(v, op, key)}" for k, v in value.items())
            return f"{{{', '.join(items)}}}"
        if type(value) not in (tuple, list, frozenset):
            return None
        inner = [self.value(v, op, key) for v in value]
        if type(value) is tuple:
            return f"({inner[0]},)" if len(inner) == 1 else f"({', '.join(inner)})"
        listed = f"[{', '.join(inner)}]"
        return listed if type(value) is list else f"frozenset({listed})"

    def public(self, value: Any, op: str, key: str) -> str | None:
        """What JAX exports: members of its enums, instances of its classes, policies, primitives."""
        cls = type(value)
        for path, module in (("jax.lax", jax.lax), ("jax", jax)):
            if getattr(module, cls.__name__, None) is not cls:
                continue
            if isinstance(value, enum.Enum):
                return f"{path}.{cls.__name__}.{value.name}"
            fields = [name for name in inspect.signature(cls).parameters if hasattr(value, name)]
            inner = ", ".join(f"{name}={self.value(getattr(value, name), op, key)}" for name in fields)
            return f"{path}.{cls.__name__}({inner})"
        for name in dir(jax.checkpoint_policies):
            if getattr(jax.checkpoint_policies, name) is value:
                return f"jax.checkpoint_policies.{name}"
        if cls.__name__ == "Primitive" and is_known(value):
            return self.helper("primitive", f'"{value.name}"')
        return None

    def jaxpr(self, value: Any, op: str, key: str) -> str:
        """A parameter that is a jaxpr, from a function for its equations; one global for each."""
        if _jax.parts(value)[0]:
            raise CodegenError(f"{op}: parameter {key!r} is a jaxpr with constants")

        def write() -> str:
            graph = from_jaxpr(value, key)
            name = self.function(graph, identifier(key))
            specs = ", ".join(self.spec(v.aval, op) for v in graph.inputs)
            closed = [] if _jax.is_closed(value) else ["closed=False"]
            return self.helper("jaxpr", name, f"[{specs}]", *closed)

        return self.once(value, "J", write)

    def spec(self, aval: Any, op: str) -> str:
        args = [f'"{_dtype_name(aval.dtype, op)}"']
        args += [self.value(aval.shape, op, "shape")] if aval.shape or aval.weak_type else []
        args += ["True"] if aval.weak_type else []
        return self.helper("spec", *args)


# Numbers and dtypes


def _python(plain: np.ndarray) -> Any:
    """An array as Python numbers; the small dtypes by way of one that holds them exactly."""
    if plain.dtype.isbuiltin == 1:
        return plain.tolist()
    return plain.astype(np.int64 if jnp.issubdtype(plain.dtype, np.integer) else np.float64).tolist()


def _number(number: Any) -> str:
    """A number as source, nan, infinities and negative zeros too."""
    if isinstance(number, complex):
        return f"complex({_number(number.real)}, {_number(number.imag)})"
    if isinstance(number, float) and not np.isfinite(number):
        return f'float("{number}")'
    return repr(number)


def _dtype_name(dtype: Any, op: str) -> str:
    if _jax.is_extended(dtype):
        return f"key<{key_kind(dtype, op)}>"
    try:
        return str(jnp.dtype(dtype.name).name)
    except TypeError:
        raise CodegenError(f"{op}: the dtype {dtype} cannot be written as Python") from None


def _is_key_dtype(value: Any) -> bool:
    return isinstance(getattr(value, "type", None), type) and _jax.is_extended(value)
