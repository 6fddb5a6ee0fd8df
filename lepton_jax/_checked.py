"""`verify=True` and `measure=True`: the first call of each shape decides which program runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from lepton_jax import _nnx
from lepton_jax._measure import Choice, choose
from lepton_jax._options import Options, StaticArguments
from lepton_jax._stage import call_key


class CheckedCalls:
    """A function whose first call of each shape compares the optimised program with the plain one.

    Args:
        fun: the plain function.
        jit: its optimised form.
        trace: traces the optimised form, for its report.
        options: what is to be checked.
        static: the static arguments.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        jit: Callable[..., Any],
        trace: Callable[..., Any],
        options: Options,
        static: StaticArguments,
    ) -> None:
        self._fun, self._jit, self._trace = fun, jit, trace
        self._options, self._static = options, static
        self._choices: dict[Any, Choice] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program that was decided on.

        Raises:
            TypeError: there are NNX modules among the arguments.
        """
        if _nnx.holds_modules((args, kwargs)):
            raise TypeError(
                "verify and measure run a function more than once, which would change the NNX modules given "
                "to it more than once: use nnx.split and nnx.merge, or leave them out"
            )
        key = call_key(self._static, args, kwargs)
        choice = self._choices.get(key)
        if choice is None:
            if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs))):
                return self._jit(*args, **kwargs)
            choice = self._choices[key] = choose(self._fun, self._jit, self._options, args, kwargs)
            traced = self._trace(*args, **kwargs)
            traced.report.notes += choice.notes
            traced.report.predicted = traced.predicted()
        return choice.fun(*args, **kwargs)

    def clear_cache(self) -> None:
        """Forget all decisions."""
        self._choices.clear()
