"""The command `lepton`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lepton`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="lepton", description="An optimising front end for JAX.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    demo = commands.add_parser("demo", help="train two small models, optimise them, show what it brings")
    demo.add_argument("--out", metavar="FILE", help="write the same as a self-contained HTML page")
    demo.add_argument("--fast", action="store_true", help="a few training steps only")

    commands.add_parser("passes", help="list the passes, their options and the presets")
    rules = commands.add_parser(
        "rules", help="list the rules of a pass: level, backends, meaning, source line"
    )
    rules.add_argument("name", help="the pass")
    commands.add_parser(
        "calibrate", help="measure this machine, for the cost model; takes less than a minute"
    )

    for name, about in (
        ("pack", "a checkpoint (safetensors, a folder of Orbax) as a .lepton file, without loss"),
        ("unpack", "a .lepton file as safetensors: what was packed, bit by bit"),
    ):
        command = commands.add_parser(name, help=about)
        command.add_argument("source")
        command.add_argument("target", nargs="?", help="the file to write; beside the source if not given")
    inspected = commands.add_parser("inspect", help="what is in a .lepton file; checks all of it")
    inspected.add_argument("file")

    from lepton_jax import _aot, _bisect, fuzz

    _aot.add_arguments(
        commands.add_parser("aot", help="compile for a TPU pod that is not here: memory, collectives")
    )
    _bisect.add_arguments(commands.add_parser("bisect", help="find the one rewrite that breaks a check"))
    fuzz.add_arguments(commands.add_parser("fuzz", help="optimise random programs and check them"))

    args = parser.parse_args(argv)
    if args.command == "demo":
        from lepton_jax.demo import run

        run(out=args.out, fast=args.fast)
        return 0
    if args.command == "passes":
        print(describe_passes())
        return 0
    if args.command == "rules":
        print(describe_rules(args.name))
        return 0
    if args.command == "calibrate":
        print(describe_calibration())
        return 0
    if args.command in ("pack", "unpack", "inspect"):
        return file_command(args)
    if args.command == "aot":
        return _aot.aot_command(args)
    return _bisect.bisect_command(args) if args.command == "bisect" else fuzz.fuzz_command(args)


def file_command(args: argparse.Namespace) -> int:
    """Run `lepton pack`, `unpack` or `inspect`."""
    from lepton_jax import storage

    try:
        if args.command == "inspect":
            print(storage.inspect(args.file))
            return 0
        run = storage.pack if args.command == "pack" else storage.unpack
        written = run(args.source, args.target, progress=_show_progress if sys.stderr.isatty() else None)
    except (storage.LeptonFileError, OSError) as error:
        print(f"lepton {args.command}: {error}", file=sys.stderr)
        return 1
    before, after = size_of(Path(args.source)), size_of(written)
    print(f"{written}: {after:,} bytes, {before:,} before ({before / max(after, 1):.3f}×)")
    return 0


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _show_progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{done / max(total, 1):4.0%} of {total:,} bytes", end=end, file=sys.stderr, flush=True)


def describe_passes() -> str:
    """Every pass with its options and where it comes from, and the presets."""
    import dataclasses
    import inspect

    from lepton_jax.rewrite.pipeline import PRESETS
    from lepton_jax.rewrite.registry import get_pass, origin_of, pass_names

    lines = ["passes:"]
    for name in pass_names():
        cls = get_pass(name)
        options = ", ".join(f"{f.name}={f.default}" for f in dataclasses.fields(cls))
        summary = (inspect.getdoc(cls) or "").splitlines()[0]
        lines.append(
            f"  {name:<18} {summary} [{origin_of(name)}]" + (f" options: {options}" if options else "")
        )
    lines.append("presets:")
    lines += [f"  {name:<18} {text or '(nothing)'}" for name, text in PRESETS.items()]
    return "\n".join(lines)


def describe_rules(name: str) -> str:
    """Every rule of a pass, with its level, where it pays, its guard, its meaning and its source line."""
    from lepton_jax.rewrite import RulePass
    from lepton_jax.rewrite.registry import get_pass

    cls = get_pass(name)
    if not issubclass(cls, RulePass):
        return f"{name} is not made of rules; see its description with: lepton passes"
    lines = []
    for rule in cls.rules:
        guard = "" if rule.guard is None else f", unless {rule.guard.__name__}"
        lines.append(f"{rule.name} ({rule.level}; {', '.join(sorted(rule.backends))}{guard})")
        lines += [f"    {line}" if line else "" for line in rule.doc.splitlines()]
        lines.append(f"    {rule.where}")
    return "\n".join(lines)


def describe_calibration() -> str:
    """Measures this machine; the figures beside the built-in ones."""
    from lepton_jax.targets import TARGETS, calibrate

    rates, file = calibrate()
    builtin = TARGETS.get(rates.platform)
    lines = [f"{'':<40}{'measured':>12}{'built in':>12}"]

    def line(what: str, measured: float, known: float | None) -> None:
        lines.append(f"{what:<40}{measured:>12.3g}" + ("" if known is None else f"{known:>12.3g}"))

    for dtype, rate in rates.flops.items():
        line(f"{dtype} products, operations/s", rate, None if builtin is None else builtin.flops.get(dtype))
    for field, what in (
        ("vector_flops", "elementwise, operations/s"),
        ("bytes_per_second", "memory, bytes/s"),
        ("fresh_bytes_per_second", "memory used for the first time, bytes/s"),
        ("seconds_per_node", "starting an operation, s"),
        ("seconds_per_fusion", "starting a kernel of XLA's, s"),
        ("seconds_per_iteration", "one round of a loop, s"),
        ("seconds_per_compiled_iteration", "one round of a compiled loop, s"),
    ):
        measured = getattr(rates, field)
        if measured is not None:
            line(what, measured, None if builtin is None else getattr(builtin, field))
    for size, rate in rates.caches:
        known = None if builtin is None else dict(builtin.caches).get(size)
        line(f"arrays up to {size / 2**20:.3g} MiB, bytes/s", rate, known)
    lines.append(
        f"kept in {file}" if file is not None else "could not be written: set LEPTON_CACHE to a folder"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
