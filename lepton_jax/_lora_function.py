"""Functions with adapters of low rank beside their weights; `lepton.lora` makes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax._calibrate import Calibration, keep_last
from lepton_jax._compile import Model
from lepton_jax._compile import compile as compile_model
from lepton_jax._inputs import name_inputs
from lepton_jax._options import Options, StaticArguments, make_options
from lepton_jax._prepared import shape_of
from lepton_jax._stage import manager_for, trace_call
from lepton_jax.ir.export import evaluate
from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import Pipeline, Report, UsageError, Watch

Adapters = dict[str, dict[str, jax.Array]]
"""`down` and `up` of each use of a weight, by its name; stacked over the loops that it stands in."""


class Lora:
    """A function of adapters, parameters and inputs: `f(adapters, params, *inputs)`. Made by `lepton.lora`.

    It is a plain function to JAX's transformations: train the adapters by the gradient with regard to them.

    Attributes:
        adapters: where training starts: `down` random, `up` zero, so that nothing is added yet.
        params: the parameters that were given.
        report: what has an adapter, and what has none and why.
    """

    def __init__(
        self, fun: Callable[..., Any], params: Any, sample: Sequence[Any], beside: Any, seed: int
    ) -> None:
        self._fun, self._beside, self._sample = fun, beside, tuple(sample)
        self.params = params
        watches: list[Watch] = []
        graph, self.report, _ = self._traced(beside, (params, *sample), {}, watches)
        self._places: dict[str, Any] = {watch.name: watch.observer for watch in watches}
        if not watches:
            reasons = "; ".join(f"{site.name}: {site.reason}" for site in self.report.sites)
            raise UsageError(f"no weight takes an adapter: {reasons}")
        keep_last(graph, len(watches))
        self._weights = graph
        keys = jax.random.split(jax.random.key(seed), len(watches))
        self.adapters: Adapters = {
            name: _start(place, key) for (name, place), key in zip(self._places.items(), keys, strict=True)
        }

    def __call__(self, adapters: Adapters, params: Any, *inputs: Any) -> Any:
        """Run the function with adapters beside the weights.

        Args:
            adapters: as `self.adapters`.
            params: of the function.
            inputs: of the function.
        """
        return self._evaluate(self._beside, adapters, (params, *inputs))

    def compile(self, *sample: Any, adapters: Adapters | None = None, **options: Any) -> Model:
        """The model with its parameters prepared, and adapters beside them or in them.

        Args:
            sample: of each input; those that `lora` was given, if there are none.
            adapters: trained ones, which are added to the weights before anything else is done to these:
                `model(*inputs)`. None: they stay an argument, `model(adapters, *inputs)`, while the
                parameters are prepared: in codes with `passes="deploy,quantize{weights=nf4}"`, as in QLoRA
                (Dettmers et al., arXiv:2305.14314). Such a model can be trained too.
            options: of `lepton.compile`.

        Returns:
            The model; the errors are those of `lepton.compile`.
        """
        inputs = sample or self._sample
        if adapters is None:
            return compile_model(self._of_params, self.params, self.adapters, *inputs, **options)
        return compile_model(self._whole, (self.params, adapters), *inputs, **options)

    def _of_params(self, params: Any, adapters: Adapters, *inputs: Any) -> Any:
        return self(adapters, params, *inputs)

    def _whole(self, params: Any, *inputs: Any) -> Any:
        return self._evaluate(replace(self._beside, merged=True), params[1], (params[0], *inputs))

    def merged(self, adapters: Adapters, params: Any = None) -> Any:
        """The parameters with the adapters added to them: a tree for the function as it was written.

        Args:
            adapters: trained ones.
            params: those of `lora` if None.

        Raises:
            UsageError: a weight is not simply one of the parameters, in another layout at most, or another
                weight is made of the same; `compile(adapters=...)` does not mind. Or adapters of other names
                or shapes.
        """
        self._check(adapters)
        leaves, tree = jax.tree.flatten(self.params if params is None else params)
        touched = frozenset[int]().union(*(place.params for place in self._places.values()))
        for site in self.report.sites:
            if site.op and site.name not in self._places and site.params & touched:
                raise UsageError(f"{site.name} is made of what has an adapter elsewhere: {_INSTEAD}")
        which = sorted(touched)

        def weights(chosen: Sequence[Any]) -> list[Any]:
            whole = [chosen[which.index(i)] if i in touched else leaf for i, leaf in enumerate(leaves)]
            inputs = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.tree.leaves(self._shapes))
            return evaluate(self._weights, [*whole, *inputs])

        @jax.jit
        def add(chosen: list[Any], adapters: Adapters) -> tuple[list[Any], list[Any], list[Any]]:
            """The parameters, the weights as they become, and as they should."""
            before, pull = jax.vjp(weights, chosen)
            made = [self._change(place, adapters[name]) for name, place in self._places.items()]
            changes = [change.astype(weight.dtype) for change, weight in zip(made, before, strict=True)]
            (moved,) = pull(changes)
            after = [leaf + change for leaf, change in zip(chosen, moved, strict=True)]
            return after, weights(after), [old + new for old, new in zip(before, changes, strict=True)]

        after, found, wanted = add([jnp.asarray(leaves[i]) for i in which], adapters)
        for name, new, right in zip(self._places, found, wanted, strict=True):
            if not np.allclose(np.asarray(new, np.float32), np.asarray(right, np.float32), 1e-2, 1e-5):
                raise UsageError(f"{name} is computed from its parameters, or has several uses: {_INSTEAD}")
        whole = [after[which.index(i)] if i in touched else leaf for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(tree, whole)

    def _check(self, adapters: Adapters) -> None:
        """Raise where adapters are not of the names and shapes that they have here."""
        if set(adapters) != set(self._places):
            wanted = ", ".join(self._places)
            raise UsageError(f"there are adapters of {', '.join(adapters)}, and those of {wanted} are wanted")
        for name, place in self._places.items():
            pair = adapters[name]
            if not isinstance(pair, Mapping) or set(pair) != {"down", "up"}:
                raise UsageError(f"the adapter of {name} is a dictionary of down and up, not {pair!r:.80}")
            shapes = tuple(np.shape(pair[part]) for part in ("down", "up"))
            if shapes != place.shapes:
                raise UsageError(f"the adapter of {name} has shapes {shapes}, not {place.shapes}")

    def _change(self, place: Any, pair: dict[str, jax.Array]) -> Any:
        """What an adapter adds to its weight, stacked over loops."""
        return place.weight(pair["down"], pair["up"]) * self._beside.scale

    @property
    def _shapes(self) -> Any:
        return jax.tree.map(shape_of, list(self._sample))

    def _evaluate(self, beside: Any, adapters: Adapters, args: tuple[Any, ...]) -> Any:
        self._check(adapters)
        arrays = {(name, KIND): (pair["down"], pair["up"]) for name, pair in adapters.items()}
        shapes = {key: tuple(map(shape_of, pair)) for key, pair in arrays.items()}
        seen: list[Any] = []
        graph, _, tree = self._traced(beside, args, shapes, None, seen)
        places = {id(shape): arrays[key][i] for key, pair in shapes.items() for i, shape in enumerate(pair)}
        if len(seen) != len(places):
            raise UsageError("at these inputs the function uses other weights than those that have adapters")
        results = evaluate(graph, [*jax.tree.leaves(args), *(places[id(each)] for each in seen)])
        return jax.tree.unflatten(tree, results)

    def _traced(
        self,
        beside: Any,
        args: tuple[Any, ...],
        known: Calibration,
        watches: list[Watch] | None,
        seen: list[Any] | None = None,
    ) -> tuple[Graph, Report, Any]:
        """The program with adapters, what was done, and the tree of the results."""
        options = _options()
        static = StaticArguments.of(self._fun, options)
        inputs = name_inputs(self._fun, options.params, static, args, {})
        jaxpr, tree = trace_call(self._fun, static, args, {})
        manager = manager_for(options, pipeline=Pipeline((beside,)))
        name = getattr(self._fun, "__name__", "f")
        graph, report = manager.run(
            jaxpr, name, inputs.params, inputs.paths, watches=watches, calibration=known, seen=seen
        )
        return graph, report, tree

    def __repr__(self) -> str:
        return (
            f"<lepton.lora of {getattr(self._fun, '__name__', 'a function')}, {len(self._places)} adapters>"
        )


KIND: Final = "lora"

_INSTEAD: Final = "use compile(adapters=...), which merges them in the program"


def _options() -> Options:
    return make_options("none", "approximate", None, None, None, None, None, False, True, False, 0)


def _start(place: Any, key: Any) -> dict[str, jax.Array]:
    """Small random numbers, and zeros: float32."""
    down, up = place.shapes
    inputs = max(math.prod(down[place.loops : -1]), 1)
    return {"down": jax.random.normal(key, down) / math.sqrt(inputs), "up": jnp.zeros(up)}
