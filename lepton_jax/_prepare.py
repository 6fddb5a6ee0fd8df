"""`prepare` and `apply` of an optimised function, at all the shapes that it is called with."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import jax

from lepton_jax._batches import is_finite
from lepton_jax._bound import Bound, apply_bound, bind, late_leaves, prepare_leaves, whole_arguments
from lepton_jax._calibrate import Calibration, calibrate, calibrate_weights
from lepton_jax._inputs import argument_names, name_inputs
from lepton_jax._options import Options, StaticArguments
from lepton_jax._prepared import Form, Prepared, PrepareError, shape_of
from lepton_jax._stage import Program, call_key, dynamic_leaves
from lepton_jax.ir import _jax
from lepton_jax.rewrite import LeptonError

_MOST_PROGRAMS: Final = 64
_NAMED: Final = 8


class Preparer:
    """`prepare` and `apply` of one function.

    Args:
        fun: the function.
        options: what to do with it.
        static: its static arguments.
    """

    def __init__(self, fun: Callable[..., Any], options: Options, static: StaticArguments) -> None:
        self._fun = fun
        self._options = options
        self._static = static
        self._bound: OrderedDict[Any, Bound] = OrderedDict()
        self._applies: dict[Any, Any] = {}
        self.calibration: Calibration = {}
        self._call: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any], form: Form | None = None) -> Bound:
        """The program at the shapes of a call, traced once.

        Args:
            form: of parameters that are prepared already: the program that takes them, if there is one.
        """
        around = jax.sharding.get_abstract_mesh()
        key = (call_key(self._static, args, kwargs), None if form is None else form.key, around)
        found = self._bound.get(key)
        if found is None:
            args, kwargs = self._shapes(args, kwargs)  # where arrays lie makes no other program
            inside = (args, kwargs)
            if around.manual_axes:
                inside = jax.tree.map(_jax.in_shard_map, inside)
            found = self._bound[key] = self._bind(inside[0], inside[1], form)
            self.note_call(args, kwargs)
            if len(self._bound) > _MOST_PROGRAMS:
                self._bound.popitem(last=False)
        return found

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any], form: Form | None) -> Bound:
        turns = ("auto", *([form.turned] if form is not None and form.turned else ()), "always", "never")
        programs = (
            bind(self._fun, self._options, self._static, args, kwargs, self.calibration, turn)
            for turn in turns
        )
        first = next(programs)
        if form is None or form.key == first.form.key:
            return first
        return next((program for program in programs if program.form.key == form.key), first)

    def calibrate(self, params: Any, batches: Iterable[Any], sample: Sequence[Any]) -> None:
        """Run batches through the program and keep what its passes asked to see."""
        self.calibration = calibrate(self._fun, self._options, self._static, params, batches, sample)

    def calibrate_weights(self, args: Sequence[Any]) -> None:
        """Keep what the passes ask for of the weights alone, where there are no batches."""
        self.calibration = calibrate_weights(self._fun, self._options, self._static, args)

    def forget_seen(self) -> None:
        """Keep only the shapes of what calibration found: the parameters are prepared."""
        self.calibration = {site: tuple(map(shape_of, arrays)) for site, arrays in self.calibration.items()}
        self._bound = OrderedDict((key, replace(bound, seen=())) for key, bound in self._bound.items())

    @property
    def latest(self) -> Program | None:
        """The program that was cut last."""
        return next(reversed(self._bound.values())).program if self._bound else None

    def note_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Remember the shapes of a call, for parameters that come alone."""
        self._call = self._shapes(args, kwargs)

    def _shapes(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call with shapes in the places of arrays."""
        fixed = {i: args[i] for i in self._static.positions if i < len(args)}
        shapes = [fixed[i] if i in fixed else jax.tree.map(shape_of, each) for i, each in enumerate(args)]
        named = {k: v if k in self._static.names else jax.tree.map(shape_of, v) for k, v in kwargs.items()}
        return tuple(shapes), named

    def latest_inputs(self, form: Form) -> tuple[list[Any], dict[str, Any]]:
        """The shapes of the latest call, without what was prepared."""
        assert self._call is not None
        return late_arguments(form, *self._call)

    def prepare(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Prepared:
        """See `Optimized.prepare`."""
        args, kwargs = self._completed(args, kwargs)
        before = self._call
        try:
            bound = self.bound(args, kwargs)
        except LeptonError:
            raise
        except Exception as error:
            if before is None or not (said := _difference(self._fun, before, (args, kwargs))):
                raise
            words = f"the function fails with these arguments, which are other than before: {said}"
            raise PrepareError(f"{words} ({type(error).__name__}: {error})") from error
        leaves = dynamic_leaves(self._static, args, kwargs)
        given = [leaves[i] for i in sorted(bound.params)]
        if self._holds_arrays(given):
            self._check_finite(bound, leaves)
        return self._run_prepare(bound, given, args, kwargs)

    def _holds_arrays(self, given: Sequence[Any]) -> bool:
        """Whether parameters are given, not their shapes.

        Raises:
            PrepareError: they are not, and shapes do not do.
        """
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in given):
            raise PrepareError("prepare needs the parameters themselves, not their shapes")
        return True

    def _run_prepare(
        self, bound: Bound, given: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Prepared:
        """Compute what is kept of parameters; `args` and `kwargs` are the whole call."""
        return prepare_leaves(bound, given)

    def _check_finite(self, bound: Bound, leaves: Sequence[Any]) -> None:
        """Raise where a parameter that was compressed has NaN or infinite elements."""
        used = {i: site for site in bound.program.report.sites if site.done for i in site.params}
        for i in sorted(set(used) & set(bound.params)):
            if not is_finite(leaves[i]):
                raise PrepareError(
                    f"{bound.paths[i]} has NaN or infinite elements and cannot be compressed "
                    f"({used[i].done}): mend it, or leave it out with skip={bound.paths[i]!r}"
                )

    def _completed(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """A whole call: parameters that come alone are completed by the shapes of the latest call."""
        if _is_whole(self._fun, args, kwargs):
            return args, kwargs
        if self._call is None:
            raise PrepareError(
                "prepare needs the shapes of all arguments: call the function once before, or give a sample "
                "of each argument: f.prepare(params, x)"
            )
        known, named = self._call
        inputs = name_inputs(self._fun, self._options.params, self._static, known, named)
        arguments = whole_arguments(self._fun, inputs, self._static, known, named)
        whole, given = list(known), list(args)
        for name, position in arguments:
            if name in kwargs and position is not None:
                whole[position] = kwargs[name]
            elif name in kwargs:
                named = {**named, name: kwargs[name]}
            elif given and position is not None:
                whole[position] = given.pop(0)
            else:
                raise PrepareError(f"prepare is not given {name!r}, which is among the parameters")
        if given:
            raise PrepareError(f"prepare takes the parameters, {len(arguments)} arguments, or a whole call")
        return whole, named

    def jitted(self, prepared: Prepared) -> Any:
        """`apply` as a jitted function of the prepared parameters and the other arguments.

        Raises:
            PrepareError: these are not prepared parameters.
        """
        if not isinstance(prepared, Prepared):
            raise PrepareError(f"apply takes what prepare returned, not {type(prepared).__name__}")
        places = tuple(i for _, i in prepared.form.arguments if i is not None)
        found = self._applies.get(places)
        if found is None:
            found = self._applies[places] = self._new_jit(places)
        return found

    def _new_jit(self, places: Sequence[int]) -> Any:
        return jax.jit(self.run, **self._jit_arguments(places))

    def _jit_arguments(self, places: Sequence[int]) -> dict[str, Any]:
        """What `jax.jit` is told, at the places that the arguments have in `apply`."""
        moved = dict(self._options.jit_arguments)
        if self._static.positions:
            moved["static_argnums"] = tuple(sorted(self._static.positions))
        if self._static.names:
            moved["static_argnames"] = tuple(sorted(self._static.names))
        for key in ("static_argnums", "donate_argnums"):
            if key in moved:
                moved[key] = tuple(i - sum(p < i for p in places) + 1 for i in moved[key])
        return moved

    def run(self, prepared: Prepared, *args: Any, **kwargs: Any) -> Any:
        """`apply`, neither jitted nor spread over a mesh."""
        whole, named = self.completed(prepared, args, kwargs)
        bound = self.bound(whole, named, prepared.form)
        return apply_bound(bound, prepared, late_leaves(bound, self._static, whole, named))

    def completed(
        self, prepared: Prepared, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The whole call of the function, with shapes in the places of what was prepared."""
        form, whole, named = prepared.form, list(args), dict(kwargs)
        for (name, place), tree in zip(form.arguments, form.arguments_given(), strict=True):  # by place
            if place is None or place > len(whole):  # what stands before it is given by name
                named[name] = tree
            else:
                whole.insert(place, tree)
        if not _is_whole(self._fun, whole, named):
            given = " and ".join(name for name, _ in form.arguments)
            found = f"{len(args)} by position" + (f" and {', '.join(kwargs)} by name" if kwargs else "")
            raise TypeError(f"apply takes {given} as prepared, then the other arguments alone; got {found}")
        return whole, named


def late_arguments(
    form: Form, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """A call without what was prepared."""
    places = {i for _, i in form.arguments}
    names = {name for name, i in form.arguments if i is None}
    named = {name: each for name, each in kwargs.items() if name not in names}
    return [each for i, each in enumerate(args) if i not in places], named


def _kind(leaf: Any) -> tuple[Any, str]:
    """The shape and dtype of a leaf, which need not be an array."""
    return getattr(leaf, "shape", ()), str(getattr(leaf, "dtype", type(leaf)))


def _difference(fun: Callable[..., Any], before: tuple[Any, Any], now: tuple[Any, Any]) -> str:
    """Which arrays a call has other than the one before, by name; empty if they are the same."""
    old, new = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): _kind(leaf)
            for path, leaf in jax.tree.leaves_with_path(
                {**dict(zip(argument_names(fun, len(args)), args, strict=True)), **named}
            )
        }
        for args, named in (before, now)
    )
    said = {
        "without": sorted(old.keys() - new.keys()),
        "with": sorted(new.keys() - old.keys()),
        "with other shapes or dtypes of": sorted(n for n in old.keys() & new.keys() if old[n] != new[n]),
    }
    return "; ".join(f"{words} {', '.join(names[:_NAMED])}" for words, names in said.items() if names)


def _is_whole(fun: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether these are all the arguments that a function wants, as far as it says what it wants."""
    try:
        inspect.signature(fun).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True
