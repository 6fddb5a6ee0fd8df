"""Plans: how a program is spread over a mesh, to be read, drawn, kept and compared."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel._plan.arrays import Planned, activations, planned
from lepton_jax.parallel._plan.drawing import draw
from lepton_jax.parallel._plan.identity import PlanError, Program, all_values, mesh_differences
from lepton_jax.parallel._plan.stored import numbers, packed, restored_layout, stored
from lepton_jax.parallel._plan.table import golden_text, plan_text
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.roles import Roles

__all__ = ["Plan", "PlanError", "Planned"]

VERSION: Final = 1
UPDATE: Final = "LEPTON_UPDATE_GOLDEN"


@dataclass(frozen=True)
class Plan:
    """How a program is spread over a mesh: print it, `save` it, give it again as `shard=plan`.

    Attributes:
        way: who chose: a preset's name, `auto`, `annotations`.
        axes: of the mesh: names and sizes, in order.
        chip: what the mesh is made of.
        program: what it was made for.
        arrays: every input, and the largest arrays made on the way.
        collectives: what the devices send one another.
        seconds: predicted, of a run: `compute`, `communication`, `exposed` (what of it computing does not
            hide), `traffic` (of the memory); what was not predicted is not there.
        memory: predicted bytes on each device: `arguments`, `outputs`, `peak`.
        notes: what was left whole, and why.
        layouts: of every value of the program: distinct layouts, and of each value which it has.
        microbatches: in how many parts the batch is computed, one after the other.
        shares: how many shares of each sum over the batch are kept apart until the last part.
        gathered: which operands of the loop over parts are copies, gathered before it.
    """

    way: str
    axes: tuple[tuple[str, int], ...]
    chip: str
    program: Program
    arrays: tuple[Planned, ...]
    collectives: tuple[Collective, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    layouts: tuple[tuple[Layout, ...], tuple[int, ...]] = ((), ())
    microbatches: int = 1
    shares: int = 1
    gathered: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        graph: Graph,
        paths: Sequence[str],
        assignment: Mapping[Value, Layout],
        mesh: MeshSpec,
        prediction: Any = None,
        *,
        way: str = "annotations",
        roles: Roles | None = None,
        notes: Sequence[str] = (),
        most: int = 16,
        microbatches: int = 1,
        shares: int = 1,
        gathered: tuple[int, ...] = (),
    ) -> Plan:
        """The plan of a graph whose values lie so.

        Args:
            paths: of the inputs.
            assignment: of every value; values left out are whole.
            prediction: of `parallel.prediction`: collectives, seconds, bytes.
            roles: of the inputs; all are `other` without.
            most: how many lines of large activations it shows.
            microbatches, shares, gathered: the loop over parts of the batch that the graph has.
        """
        names = tuple(paths) or tuple(f"input{i}" for i in range(len(graph.inputs)))
        kinds = roles.kinds if roles is not None else ("other",) * len(names)
        arrays = [
            planned(name, kind, value, assignment, mesh)
            for name, kind, value in zip(names, kinds, graph.inputs, strict=True)
        ]
        chip = mesh.chip.name
        return cls(
            way,
            tuple((axis.name, axis.size) for axis in mesh.axes),
            chip,
            Program.of(graph, names),
            (*arrays, *activations(graph, assignment, mesh, most)),
            tuple(getattr(prediction, "collectives", ())),
            numbers(prediction, ("seconds", "compute", "communication", "exposed", "traffic"), float),
            numbers(prediction, ("arguments", "outputs", "peak"), int),
            tuple(dict.fromkeys(notes)),
            stored(graph, assignment),
            microbatches,
            shares,
            gathered,
        )

    def layouts_of(self, graph: Graph, paths: Sequence[str], mesh: MeshSpec) -> dict[Value, Layout]:
        """The layout of every value of the graph the plan was made for.

        Raises:
            PlanError: the plan was made for another program or another mesh; the message names what differs.
        """
        self.check_mesh(mesh)
        self.check_program(Program.of(graph, tuple(paths) or [f"input{i}" for i in range(len(graph.inputs))]))
        distinct, which = self.layouts
        return {value: distinct[i] for value, i in zip(all_values(graph), which, strict=True)}

    def inputs_of(
        self, graph: Graph, paths: Sequence[str], mesh: MeshSpec
    ) -> tuple[dict[Value, Layout], str] | None:
        """The layouts of the inputs, and a note, if another version of JAX traces the program otherwise.

        None where the program is as it was, or another one.

        Raises:
            PlanError: the plan was made for another mesh.
        """
        self.check_mesh(mesh)
        if self.program.is_of_this_jax:
            return None
        now = Program.of(graph, paths)
        if not self.program.is_traced_otherwise(now):
            return None
        note = (
            f"the plan was made with JAX {self.program.jax}; JAX {now.jax} traces the program otherwise: "
            "inputs lie as planned, all else follows from them"
        )
        return {value: each.layout for value, each in zip(graph.inputs, self.arrays, strict=False)}, note

    def gathered_of(self) -> tuple[int, ...]:
        """`gathered`; none for another version of JAX, with which the loop may have other operands."""
        return self.gathered if self.program.is_of_this_jax else ()

    def check_program(self, program: Program) -> None:
        """Check that the plan was made for this program.

        Raises:
            PlanError: it was made for another; the message names what differs.
        """
        found = self.program.differences(program)
        if found:
            raise PlanError(
                f"this plan was made for another program: {'; '.join(found)}. Make the plan again"
            )

    def check_inputs(self, graph: Graph, paths: Sequence[str]) -> None:
        """Check that the plan was made for inputs as a graph has them, before it is written in parts.

        Raises:
            PlanError: as `check_program`.
        """
        self.check_program(replace(self.program, inputs=Program.of(graph, paths).inputs))

    def check_mesh(self, mesh: MeshSpec) -> None:
        """Check that the plan was made for this mesh.

        Raises:
            PlanError: it was made for another; the message names what differs.
        """
        found = mesh_differences(dict(self.axes), self.chip, mesh)
        if found:
            made = ",".join(f"{name}={size}" for name, size in self.axes)
            raise PlanError(
                f"this plan was made for the mesh {made} of {self.chip}, not for {mesh}: {'; '.join(found)}. "
                "Make the plan again for this mesh"
            )

    def __str__(self) -> str:
        return plan_text(self)

    def draw(self, most: int = 12) -> str:
        """The large arrays as grids of blocks with the devices that hold them; those alike together.

        Args:
            most: how many layouts are drawn, those of the most bytes first.
        """
        mesh = MeshSpec.of(dict(self.axes), self.chip)
        groups: dict[tuple[Layout, int], list[Planned]] = {}
        for each in self.arrays:
            if each.layout.ndim:
                groups.setdefault((each.layout, each.layout.ndim), []).append(each)
        ranked = sorted(groups.items(), key=lambda item: -sum(each.bytes for each in item[1]))[:most]
        lines = []
        for (layout, _), members in ranked:
            grid = [f"whole on each of {mesh.devices} devices"] if layout.is_whole else draw(layout, mesh)
            named = [f"{each.name} {each.dtype}{list(each.shape)}" for each in members[:4]]
            rest = f" and {len(members) - 4} more" if len(members) > 4 else ""
            lines += [f"{layout}  {', '.join(named)}{rest}", *(f"  {line}" for line in grid), ""]
        return "\n".join(lines).rstrip()

    def golden(self) -> str:
        """The plan as text that changes only when the plan does: without predicted times and memory."""
        return golden_text(self)

    def check_golden(self, path: str | os.PathLike[str], update: bool | None = None) -> None:
        """Compare `golden()` with a file, in a test.

        Args:
            update: write the file instead; default: where the environment variable `LEPTON_UPDATE_GOLDEN`
                is set and neither empty nor 0.

        Raises:
            AssertionError: they differ, with the difference; or there is no such file.
        """
        file = Path(path)
        renew = os.environ.get(UPDATE, "0") not in ("", "0") if update is None else update
        if renew:
            file.write_text(self.golden(), encoding="utf-8")
            return
        hint = f"set {UPDATE}=1 and run again to write it"
        if not file.exists():
            raise AssertionError(f"there is no golden plan {file}; {hint}")
        before = file.read_text(encoding="utf-8")
        if before != self.golden():
            lines = difflib.unified_diff(
                before.splitlines(), self.golden().splitlines(), str(file), "now", lineterm=""
            )
            raise AssertionError("\n".join(["the plan is not the golden one:", *lines, hint]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """What `save` writes."""
        distinct, which = self.layouts
        kept = asdict(self) | {"lepton_plan": VERSION}
        kept["layouts"] = {"distinct": [asdict(each) for each in distinct], "values": packed(which)}
        return json.dumps(kept, indent=1, default=list)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            PlanError: the file holds no plan, or one of a version that this Lepton does not read.
            OSError: it cannot be read.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except ValueError as error:
            raise PlanError(f"{path} holds no plan: {error}") from error
        return cls.from_json(text, str(path))

    @classmethod
    def from_json(cls, text: str, where: str = "the text") -> Plan:
        """The plan that `to_json` wrote.

        Args:
            where: the text stands, for messages.

        Raises:
            PlanError: as `load`.
        """
        try:
            kept = json.loads(text)
        except ValueError as error:
            raise PlanError(f"{where} holds no plan: {error}") from error
        version = kept.get("lepton_plan") if isinstance(kept, dict) else None
        if version != VERSION:
            found = "no plan" if version is None else f"a plan of version {version}"
            raise PlanError(f"{where} holds {found}; this Lepton reads plans of version {VERSION}")
        try:
            return _restored(kept)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise PlanError(f"{where} is a plan that was damaged: {error!r}") from error


def _restored(kept: Mapping[str, Any]) -> Plan:
    program = kept["program"]
    arrays = [
        Planned(**{**each, "shape": tuple(each["shape"]), "layout": restored_layout(each["layout"])})
        for each in kept["arrays"]
    ]
    distinct = tuple(restored_layout(each) for each in kept["layouts"]["distinct"])
    which = tuple(number for number, often in kept["layouts"]["values"] for _ in range(often))
    if which and max(which) >= len(distinct):
        raise ValueError("a value has a layout that is not there")
    return Plan(
        kept["way"],
        tuple((name, size) for name, size in kept["axes"]),
        kept["chip"],
        Program(
            tuple((path, each) for path, each in program["inputs"]),
            program["operations"],
            program["hash"],
            program.get("jax", ""),
        ),
        tuple(arrays),
        tuple(Collective(**{**each, "axes": tuple(each["axes"])}) for each in kept["collectives"]),
        kept["seconds"],
        kept["memory"],
        tuple(kept["notes"]),
        (distinct, which),
        kept.get("microbatches", 1),
        kept.get("shares", 1),
        tuple(kept.get("gathered", ())),
    )
