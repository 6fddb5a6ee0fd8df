"""The command `lepton aot`: compile a function for devices that are not here."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from lepton_jax._api import Optimized, optimize
from lepton_jax._bisect import _find
from lepton_jax._sharded.request import OPEN, OpenMesh, Spread
from lepton_jax._sharded.sharding import Sharding
from lepton_jax.parallel.aot.compile import compile_for
from lepton_jax.parallel.aot.topologies import EXAMPLES, Topology, get_topology
from lepton_jax.rewrite import LeptonError

EXAMPLE_ARGS = "example_args"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lepton aot`."""
    parser.add_argument("function", metavar="module:function", help="what to compile")
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help=f"for what: {', '.join(EXAMPLES)} and others like these",
    )
    parser.add_argument(
        "--mesh",
        metavar="AXES",
        help='the axes of the mesh, as "data=64,model=8"; one size may be left open; auto to try all shapes '
        "(default: data)",
    )
    parser.add_argument(
        "--preset", metavar="NAME", help="spread it so: dp, fsdp, tp, fsdp+tp, sp, ep or auto"
    )
    parser.add_argument(
        "--judge",
        metavar="NAME",
        help="who chooses among the best few of --preset auto: predict (default), shardy or compile",
    )
    parser.add_argument(
        "--objective",
        metavar="NAME",
        help="what --preset auto looks for: the least time (default), or the fewest bytes on the wire",
    )
    parser.add_argument(
        "--microbatches",
        metavar="N",
        help="compute the batch in so many parts; auto for as many as the memory demands",
    )
    parser.add_argument(
        "--args",
        metavar="module:function",
        help="a function that returns a tuple of the arguments, jax.ShapeDtypeStruct or arrays; it may take "
        f"the mesh (default: the function {EXAMPLE_ARGS} of the same module)",
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")


def aot_command(args: argparse.Namespace) -> int:
    """Compile as `lepton aot` does, and print the report.

    Returns:
        0 if the program fits, 1 if it does not, 2 if it could not be compiled for another reason.
    """
    try:
        _on_cpu(args.topology)
        topology = get_topology(args.topology)
        mesh = OpenMesh(topology=topology) if args.mesh == OPEN else topology.mesh(args.mesh)
        parts = parse_count(args.microbatches)
        solved_by = {"judge": args.judge, "objective": args.objective}
        fun = spread_over(find_function(args.function), mesh, args.preset, topology, parts, **solved_by)
        name, beside = args.args or EXAMPLE_ARGS, args.function.rpartition(":")[0]
        values = arguments(name if ":" in name else f"{beside}:{name}", mesh)
        axes: Any = args.mesh
        notes: tuple[str, ...] = ()
        if isinstance(fun, Optimized) and fun.options.spread is not None:
            plan = fun.plan(*values)
            axes, notes = dict(plan.axes), plan.notes
        elif not any(getattr(leaf, "sharding", None) is not None for leaf in jax.tree.leaves(values)):
            notes = (
                "nothing says how to spread this function: every device computes all of it; give --preset",
            )
        found = compile_for(fun, values, topology, axes)
    except (LeptonError, ValueError, TypeError) as error:
        print(f"lepton aot: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # of the user's module: 1 would say that the program does not fit
        traceback.print_exc()
        print(f"lepton aot: {args.function} failed with {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    found = dataclasses.replace(found, name=args.function)
    print(json.dumps({**found.to_json(), "notes": notes}, indent=1) if args.json else found)
    for note in () if args.json else notes:
        print(f"note               {note}")
    return 0 if found.fits else 1


def find_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` or `folder/file.py:function` names.

    Raises:
        ValueError: it is not of that form, or there is no such file or function.
    """
    place, colon, path = name.rpartition(":")
    if not place.endswith(".py"):
        try:
            return _find(name)
        except ModuleNotFoundError as error:
            if error.name != place.partition(".")[0]:
                raise
            raise ValueError(
                f"there is no module {place!r} in {Path.cwd()} or on Python's path; a file is named by its "
                f"path, as folder/{place}.py:{path}"
            ) from error
    file = Path(place).resolve()
    if not file.is_file():
        raise ValueError(f"there is no file {place}")
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    return _find(f"{file.stem}{colon}{path}")


def _on_cpu(topology: str) -> None:
    """Keep JAX from looking for accelerators, and give it the CPU devices that are asked for."""
    count = re.match(r"cpu:(\d+)$", topology)
    with contextlib.suppress(RuntimeError):  # JAX has started already
        if "JAX_PLATFORMS" not in os.environ:
            jax.config.update("jax_platforms", "cpu")
        if count and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update("jax_num_cpu_devices", int(count[1]))


def arguments(name: str, mesh: jax.sharding.Mesh | OpenMesh) -> tuple[Any, ...]:
    """The arguments that a function of the user's makes, of the mesh if it takes one.

    Raises:
        ValueError: there is no such function, it returns no tuple, or it wants a mesh that is still to be
            found.
    """
    try:
        make: Callable[..., Any] = find_function(name)
    except ValueError as error:
        raise ValueError(
            f"{error}: write a function {name.rpartition(':')[2]}() that returns the arguments as a tuple of "
            "jax.ShapeDtypeStruct, or name another one with --args"
        ) from error
    takes_mesh = any(
        each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        for each in inspect.signature(make).parameters.values()
    )
    if takes_mesh and isinstance(mesh, OpenMesh):
        raise ValueError(f"{name} takes the mesh, which --mesh auto finds for its arguments: give its axes")
    values = make(mesh) if takes_mesh else make()
    if not isinstance(values, tuple):
        raise ValueError(
            f"{name} returns a {type(values).__name__}; it should return the arguments as a tuple"
        )
    return values


def parse_count(text: str | None) -> int | str | None:
    """What `--microbatches` says.

    Raises:
        ValueError: it is neither a number of parts nor `auto`.
    """
    if text is None or text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--microbatches is a number of parts or auto, not {text}")
    return int(text)


def spread_over(
    fun: Callable[..., Any],
    mesh: jax.sharding.Mesh | OpenMesh,
    preset: Any,
    topology: Topology,
    microbatches: int | str | None = None,
    *,
    judge: str | None = None,
    objective: str | None = None,
) -> Any:
    """A function spread over the mesh of a topology.

    What `lepton.optimize` made for a mesh of its own is made again for this one. A plain function stays as it
    is unless a preset is named.

    Args:
        fun: the function.
        mesh: of the topology's devices.
        preset: `shard=` of `lepton.optimize`; None for what the function says.
        topology: to optimise for its platform.
        microbatches: of `lepton.optimize`; None for what the function says.
        judge, objective: of `lepton.Sharding`; None for what the function says.

    Raises:
        ValueError: nothing says how to spread it, and the mesh is open, there is a judge, an objective, or a
            number of micro-batches.
    """
    before = fun.options.spread if isinstance(fun, Optimized) else None
    sharding = Sharding.of(preset) if preset is not None else None if before is None else before.sharding
    if sharding is None:
        said = {
            "--mesh auto": isinstance(mesh, OpenMesh) or None,
            "--judge": judge,
            "--objective": objective,
            "--microbatches": microbatches,
        }
        if named := [name for name, value in said.items() if value is not None]:
            needs = "need" if len(named) > 1 else "needs"
            raise ValueError(f"{' and '.join(named)} {needs} --preset, or a function with shard=")
    else:
        sharding = sharding.solved_by(judge, objective)
    if not isinstance(fun, Optimized):
        if sharding is None:
            return fun
        return optimize(fun, mesh=mesh, shard=sharding, target=topology.platform, microbatches=microbatches)
    changed = dataclasses.replace(fun.options, target=fun.options.target or topology.platform)
    if sharding is not None:
        given = Spread(mesh, sharding) if before is None else before
        given = given if microbatches is None else dataclasses.replace(given, microbatches=microbatches)
        changed = dataclasses.replace(
            changed, spread=dataclasses.replace(given, mesh=mesh, sharding=sharding)
        )
    return Optimized(fun.__wrapped__, changed)
