"""Functions that Lepton has made of others, which know what the passes did at their latest trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from lepton_jax._inputs import name_inputs
from lepton_jax._options import Options, StaticArguments
from lepton_jax._stage import Program, forget_tracers, manager_for, trace_call
from lepton_jax.ir import _jax
from lepton_jax.rewrite import Report


class Reported:
    """A function as the passes of its options make it, with a report of what they did.

    Attributes:
        maker: the public function that makes it, for its text.
    """

    maker: ClassVar[str]

    def __init__(self, fun: Callable[..., Any], options: Options) -> None:
        self._fun = fun
        self._options = options
        self._static = StaticArguments.of(fun, options)
        self._latest: Program | None = None

    @property
    def report(self) -> Report:
        """What the passes did, at the latest trace.

        Raises:
            ValueError: it was not called yet.
        """
        if self._latest is None:
            raise ValueError(f"{self!r} has no report yet: call it first")
        return self._latest.report

    def __repr__(self) -> str:
        return f"<lepton.{self.maker} of {getattr(self._fun, '__name__', 'a function')}>"

    def _rewritten(self, args: Sequence[Any], kwargs: Mapping[str, Any], **how: Any) -> tuple[Program, Any]:
        """A call of the function after the passes.

        Args:
            args: the function's, arrays or `jax.ShapeDtypeStruct`s.
            kwargs: the same, by name.
            how: what else `PassManager.run` is told.

        Returns:
            The program, and the tree of its results.
        """
        inputs = name_inputs(self._fun, self._options.params, self._static, args, kwargs)
        jaxpr, out_tree = trace_call(self._fun, self._static, args, kwargs)
        name = getattr(self._fun, "__name__", "f")
        graph, report = manager_for(self._options).run(jaxpr, name, inputs.params, inputs.paths, **how)
        jaxpr = _jax.forget_tracers(jaxpr)
        forget_tracers(graph)
        return Program(jaxpr, graph, report, name, self._options), out_tree
