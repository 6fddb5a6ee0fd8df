"""The walls of the house: what each room may import, read from the source without running it."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ADAPTERS = {
    *(f"lepton_jax/ir/_jax/{name}.py" for name in ("coordination", "equations", "jaxprs", "primitives")),
    "lepton_jax/ir/_primitives.py",
}
INTERNALS = ("jax._src", "jax.interpreters", "jax.extend")
# What a room may import of its neighbours (the table of the design), and of other people's packages.
ROOMS: dict[str, set[str]] = {
    "ir": set(),
    "rewrite": {"ir"},
    "targets": {"ir"},
    "numerics": set(),
    "parallel": {"ir", "targets", "numerics"},
    "storage": {"numerics"},
    "models": set(),
    "passes": {"rewrite", "numerics", "targets", "parallel", "ir"},
}
LIBRARIES = {name: {"jax", "jaxlib", "numpy"} for name in ROOMS} | {
    "models": {"jax", "numpy", "flax", "optax"},
    "numerics": {"jax", "jaxlib", "numpy", "optax"},  # optax: loss scaling wraps its optimisers
    "parallel": {"jax", "jaxlib", "numpy", "scipy", "optax"},  # scipy: HiGHS; optax is wrapped
    "passes": {"jax", "jaxlib", "numpy", "scipy"},  # scipy: the extra `saturate`
    "storage": {"jax", "jaxlib", "numpy", "ml_dtypes", "zstandard", "orbax"},
}
THIRD_PARTY = {
    *("jax", "jaxlib", "numpy", "ml_dtypes", "flax", "optax", "chex", "orbax", "scipy", "sklearn"),
    *("equinox", "zstandard"),
}
FOREIGN_PATH = re.compile(r"(?<![\w.~$}/-])/(?:work|root|home|Users)/\w")
GENERATED = re.compile(r"__pycache__|build|dist|\.git|\.venv.*|\..*_cache|\.hypothesis|.*\.egg-info")


def tree(*folders: str) -> Iterator[Path]:
    """Files of these folders of the repository, paths relative to its root, without what tools left there."""
    for folder in folders:
        for where, inner, files in os.walk(ROOT / folder):
            inner[:] = sorted(name for name in inner if not GENERATED.fullmatch(name))
            for file in sorted(files):
                yield (Path(where) / file).relative_to(ROOT)


def sources() -> list[Path]:
    """Every Python file of the repository."""
    return [path for path in tree(".") if path.suffix == ".py"]


def module_name(path: Path) -> str:
    """The name under which a source file is imported; a package's own file has its package's name."""
    parts = list(path.with_suffix("").parts)
    if parts[0] == "passes":
        parts.insert(0, "lepton_jax")
    return ".".join(parts).removesuffix(".__init__")


def room(module: str) -> str:
    """The room of a module of lepton_jax: `ir`, …, `passes`, or `` for the modules of its top level."""
    second = module.split(".")[1:2]
    return second[0] if second and second[0] in ROOMS else ""


def imported(code: str, path: Path) -> Iterator[str]:
    """Dotted names that a file imports, or reaches through the name of an imported module.

    `from a import b` gives `a.b`, since `b` may be a module. Calls of `import_module` and `__import__` with a
    literal name count as imports.
    """
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    bound: dict[str, str] = {}
    nodes = list(ast.walk(ast.parse(code, str(path))))
    for node in nodes:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    first = alias.name.partition(".")[0]
                    bound[alias.asname or first] = alias.name if alias.asname else first
                    yield alias.name
            case ast.ImportFrom(module=module, names=names, level=level):
                parent = package.rsplit(".", level - 1)[0] if level else ""
                base = ".".join(filter(None, (parent, module)))
                for alias in names:
                    bound[alias.asname or alias.name] = f"{base}.{alias.name}"
                    yield f"{base}.{alias.name}"
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name
    for node in nodes:
        if isinstance(node, ast.Attribute) and (chain := dotted(node)):
            first, _, rest = chain.partition(".")
            if first in bound:
                yield f"{bound[first]}.{rest}"


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain on a plain name, otherwise the empty string."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            base = dotted(value)
            return f"{base}.{attr}" if base else ""
    return ""


def within(name: str, package: str) -> bool:
    """Whether a dotted name is this package or something in it."""
    return name == package or name.startswith(f"{package}.")


def internals_used(code: str, path: Path) -> set[str]:
    """The imports of a file that reach into parts of JAX that change between versions."""
    return {name for name in imported(code, path) if any(within(name, internal) for internal in INTERNALS)}


def walls_broken(code: str, path: Path) -> set[str]:
    """The imports of a file of lepton_jax that its room is not allowed."""
    home = room(module_name(path))
    broken = set()
    for name in imported(code, path):
        first = name.partition(".")[0]
        if first == "lepton_jax":
            there = room(name)
            allowed = there != "passes" if not home else there == home or there in ROOMS[home]
        else:
            allowed = not home or first not in THIRD_PARTY or first in LIBRARIES[home]
        if not allowed:
            broken.add(name)
    return broken


@pytest.mark.parametrize(
    "code",
    [
        "import jax._src",
        "import jax._src.core as core",
        "from jax import _src",
        "from jax._src import core",
        "from jax._src.core import Jaxpr",
        "import jax.interpreters.partial_eval as pe",
        "from jax.interpreters import ad",
        "from jax import interpreters",
        "from jax import extend as jex",
        "import jax.extend as jex",
        "from jax.extend.core import primitives",
        "import jax\nx = jax.extend.core.Literal",
        "import jax as j\nx = j._src.core",
        "def f():\n    import jax\n    return jax.interpreters.ad",
        "import importlib\nimportlib.import_module('jax._src.core')",
        "__import__('jax.extend')",
    ],
)
def test_the_check_sees_every_way_into_jax_internals(code: str) -> None:
    assert internals_used(code, Path("lepton_jax/rewrite/pattern.py"))


@pytest.mark.parametrize(
    "code",
    [
        "import jax",
        "import jax.numpy as jnp\njnp.extend",
        "from jax import lax\nlax.extend",
        "class jax:\n    extend = 1\njax.extend",
        "'jax._src'",
    ],
)
def test_the_check_lets_public_jax_pass(code: str) -> None:
    assert not internals_used(code, Path("lepton_jax/rewrite/pattern.py"))


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("lepton_jax/ir/graph.py", "from lepton_jax.rewrite import Pass"),
        ("lepton_jax/ir/graph.py", "from ..rewrite import Pass"),
        ("lepton_jax/ir/graph.py", "from .. import rewrite"),
        ("lepton_jax/ir/graph.py", "import flax"),
        ("lepton_jax/ir/graph.py", "import lepton_jax as lepton"),
        ("lepton_jax/rewrite/manager.py", "from lepton_jax import optimize"),
        ("lepton_jax/rewrite/manager.py", "import lepton_jax.passes.simplify.cse"),
        ("lepton_jax/rewrite/__init__.py", "from ..targets import Target"),
        ("lepton_jax/targets/cpu.py", "from lepton_jax import rewrite"),
        ("lepton_jax/numerics/errors.py", "def f():\n    from lepton_jax.ir import Graph"),
        ("lepton_jax/_api.py", "from lepton_jax.passes.simplify import cse"),
        (
            "lepton_jax/_api.py",
            "from importlib import import_module\nimport_module('lepton_jax.passes.loops')",
        ),
        ("lepton_jax/demo/run.py", "from lepton_jax import passes"),
        ("passes/simplify/cse.py", "from lepton_jax import optimize"),
        ("passes/simplify/cse.py", "from lepton_jax.models import LeptonNet"),
        ("passes/simplify/cse.py", "import optax"),
    ],
)
def test_the_check_sees_a_broken_wall(path: str, code: str) -> None:
    assert walls_broken(code, Path(path))


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("lepton_jax/ir/graph.py", "import jax\nfrom . import _jax\nfrom lepton_jax.ir._jax import bind"),
        (
            "lepton_jax/rewrite/manager.py",
            "from ..ir import Graph\nfrom .rules import Rule\nimport dataclasses",
        ),
        ("lepton_jax/_api.py", "from lepton_jax import ir, rewrite, targets"),
        ("lepton_jax/demo/run.py", "import lepton_jax as lepton\nimport sklearn"),
        (
            "passes/simplify/cse.py",
            "from ...rewrite import Pass\nfrom .shared import key\nimport jax.numpy as jnp",
        ),
    ],
)
def test_the_check_lets_an_open_door_be(path: str, code: str) -> None:
    assert not walls_broken(code, Path(path))


def test_only_the_adapter_knows_jax_internals() -> None:
    found = {
        str(path): names
        for path in sources()
        if str(path) not in ADAPTERS and (names := internals_used((ROOT / path).read_text(), path))
    }
    assert not found
    for adapter in ADAPTERS:
        assert internals_used((ROOT / adapter).read_text(), Path(adapter)), f"{adapter} is no adapter"


def test_rooms_import_only_what_the_design_allows() -> None:
    house = [path for path in tree("lepton_jax", "passes") if path.suffix == ".py"]
    rooms = {room(module_name(path)) for path in house}
    assert rooms >= {"ir", "rewrite", "targets", "numerics", "models", "passes"}
    broken = {str(path): names for path in house if (names := walls_broken((ROOT / path).read_text(), path))}
    assert not broken


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    found = []
    for path in tree("."):
        try:
            lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:  # a picture or an archive
            continue
        found += [f"{path}: {line}" for line in lines if FOREIGN_PATH.search(line)]
    assert not found


def test_the_check_sees_a_place_on_a_machine() -> None:
    assert FOREIGN_PATH.search("see " + "/wo" + "rk/notes")
    assert FOREIGN_PATH.search("`" + "/ro" + "ot/x`")
    assert not FOREIGN_PATH.search("https://example.org/wo" + "rk/notes")
    assert not FOREIGN_PATH.search("docs/wo" + "rk/notes")
