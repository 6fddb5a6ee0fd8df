"""The demo's programs: each builder makes one row of the table out of a trained task.

A new feature that has something to show appends its builder to `BUILDERS`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

import lepton_jax as lepton
from lepton_jax.demo.measure import Timing, compile_seconds, largest_difference, measure
from lepton_jax.demo.train import Predict, Step, Task, Trained, score, train

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How good a form of a program is: its metric and, for a train step, the loss of every step."""

    value: float
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plain:
    """A function under `jax.jit`, compiled, with the seconds that tracing and compiling took."""

    jitted: Any
    trace_seconds: float
    compile_seconds: float


@dataclass(frozen=True)
class Baseline:
    """A task trained with plain `jax.jit`: what all its programs are compared with."""

    task: Task
    step: Plain
    predict: Plain
    trained: Trained
    value: float


@dataclass(frozen=True)
class Program:
    """A function to optimise.

    Attributes:
        name: first column of its row.
        fun: the function, not jitted.
        args: arguments for timing and for the largest difference.
        plain: `fun` under `jax.jit`.
        metric: what the outcomes measure, with its unit.
        before: outcome with `plain`.
        judge: finds the outcome with another compiled form of `fun`.
    """

    name: str
    fun: Callable[..., Any]
    args: tuple[Any, ...]
    plain: Plain
    metric: str
    before: Outcome
    judge: Callable[[Callable[..., Any]], Outcome]


@dataclass(frozen=True)
class Row:
    """What was measured of one program; see the columns of the table."""

    program: str
    equations_before: int
    equations_after: int
    rules: tuple[tuple[str, int], ...]
    skipped: tuple[str, ...]
    trace_seconds: float
    pass_seconds: float
    compile_seconds: float
    plain_trace_seconds: float
    plain_compile_seconds: float
    timing: Timing
    largest_difference: float
    metric: str
    before: Outcome
    after: Outcome


def fresh(fun: Callable[..., Any]) -> Callable[..., Any]:
    """The same function as a new object, so that JAX traces it anew."""

    @functools.wraps(fun)
    def copy(*args: Any) -> Any:
        return fun(*args)

    return copy


def compile_plain(fun: Callable[..., Any], args: tuple[Any, ...]) -> Plain:
    """Jits and compiles `fun` for `args`; calls of the result with such arguments reuse that work.

    A copy is traced first, so that the timed trace finds JAX's inner caches warm, as the optimised form will.
    """
    jax.jit(fresh(fun)).trace(*args)
    jitted = jax.jit(fun)
    start = time.perf_counter()
    traced = jitted.trace(*args)
    trace_seconds = time.perf_counter() - start
    return Plain(jitted, trace_seconds, compile_seconds(traced))


def build_baseline(task: Task, say: Say) -> Baseline:
    """Trains `task` with `jax.jit` and scores the result."""
    say(f"{task.name}: compiling its train step and its inference with jax.jit")
    step = compile_plain(task.step, (task.start, *next(task.batches())))
    inputs = task.tests[0][0]
    predict = compile_plain(task.predict, (task.start.params, task.start.statistics, inputs))
    trained = train(task, step.jitted, say, "training with jax.jit")
    return Baseline(task, step, predict, trained, score(task, predict.jitted, trained.state))


def inference_program(baseline: Baseline, say: Say) -> Program:
    """The trained model's prediction on one test batch."""
    task, state = baseline.task, baseline.trained.state

    def judge(predict: Predict) -> Outcome:
        return Outcome(score(task, predict, state))

    return Program(
        name=f"{task.name} inference",
        fun=task.predict,
        args=jax.device_put((state.params, state.statistics, task.tests[0][0])),
        plain=baseline.predict,
        metric=task.metric,
        before=Outcome(baseline.value),
        judge=judge,
    )


def train_step_program(baseline: Baseline, say: Say) -> Program:
    """The whole optax train step; its outcome is that of the whole training, from the same start."""
    task = baseline.task

    def judge(step: Step) -> Outcome:
        trained = train(task, step, say, "training with lepton")
        return Outcome(score(task, baseline.predict.jitted, trained.state), trained.losses)

    return Program(
        name=f"{task.name} train step",
        fun=task.step,
        args=jax.device_put((baseline.trained.state, *next(task.batches()))),
        plain=baseline.step,
        metric=f"{task.metric} after {task.steps} steps",
        before=Outcome(baseline.value, baseline.trained.losses),
        judge=judge,
    )


BUILDERS: tuple[Callable[[Baseline, Say], Program], ...] = (inference_program, train_step_program)


def measure_program(program: Program, say: Say, *, seconds: float, pairs: int) -> Row:
    """Optimises `program` with `lepton.optimize` and compares it with its plain form."""
    say(f"{program.name}: optimising and compiling")
    optimised = lepton.optimize(fresh(program.fun))
    traced = optimised.trace(*program.args)
    compiling = compile_seconds(traced)
    report = traced.report
    after = program.judge(optimised)
    expected, actual = program.plain.jitted(*program.args), optimised(*program.args)
    say(f"{program.name}: timing in turn with jax.jit")
    return Row(
        program=program.name,
        equations_before=report.equations_before,
        equations_after=report.equations_after,
        rules=tuple(sorted(report.rules.items(), key=lambda rule: (-rule[1], rule[0]))),
        skipped=tuple(report.skipped),
        trace_seconds=report.trace_seconds,
        pass_seconds=report.pass_seconds,
        compile_seconds=compiling,
        plain_trace_seconds=program.plain.trace_seconds,
        plain_compile_seconds=program.plain.compile_seconds,
        timing=measure(program.plain.jitted, optimised, program.args, seconds=seconds, pairs=pairs),
        largest_difference=largest_difference(expected, actual),
        metric=program.metric,
        before=program.before,
        after=after,
    )
