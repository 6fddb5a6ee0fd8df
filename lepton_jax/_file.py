"""Models in files: `model.save(path)` and `lepton.load(path)`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax._model_report import ModelReport
from lepton_jax.ir._jax import without_places
from lepton_jax.storage import LeptonFileError, Reader, writing
from lepton_jax.storage.reader import MOST_BYTES

if TYPE_CHECKING:
    from lepton_jax._optimized import Optimized
    from lepton_jax._prepared import Prepared

_PARAMS: Final = "params/"
_PROGRAM: Final = "program/exported"
_GRAPH: Final = "program/graph"


class SavedModel:
    """A model from a file: `model(x)`, as it was saved, on the platforms it was saved for.

    Attributes:
        params: the arrays that are kept, by name.
        exported: the program, a function of a list of these arrays and of the inputs.
        metadata: what the file says: versions, pipeline, platforms, the report.
        graph: the program as text.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        exported: jax.export.Exported,
        metadata: Mapping[str, Any],
        graph: str,
    ) -> None:
        self.params = params
        self.exported = exported
        self.metadata = metadata
        self.graph = graph
        self._call = jax.jit(exported.call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            ValueError: other shapes than it was saved for, or another platform.
        """
        return self._call(list(self.params.values()), *args, **kwargs)

    @property
    def nbytes(self) -> int:
        """The bytes that the parameters take in memory."""
        return sum(int(array.nbytes) for array in self.params.values())

    def report(self) -> str:
        """What was done to the program and its parameters, as it was said when the model was saved."""
        return str(self.metadata["report"])

    def __repr__(self) -> str:
        return f"<SavedModel of {self.metadata['name']}, {self.nbytes:,} bytes>"


def save_model(
    fun: Optimized[Any, Any],
    params: Prepared,
    path: str | os.PathLike[str],
    sample: Sequence[Any],
    named: Mapping[str, Any],
    *,
    platforms: Sequence[str] | None,
    coding: Any,
    gradients: bool,
) -> None:
    """See `Model.save`."""
    options = fun.options
    if options.jit_arguments.get("static_argnums") or options.jit_arguments.get("static_argnames"):
        raise LeptonFileError(
            "a model with static arguments cannot be saved: compile a function that has them built in, "
            "such as functools.partial(fun, mode='fast')"
        )
    if not sample and not named:
        sample, named = fun.preparer.latest_inputs(params.form)
    arrays = dict(params.items())
    keys = {name: str(jax.random.key_impl(a)) for name, a in arrays.items() if _is_key(a)}

    def run(arrays: list[Any], *args: Any, **kwargs: Any) -> Any:
        whole = [
            jax.random.wrap_key_data(array, impl=keys[name]) if name in keys else array
            for name, array in zip(params, arrays, strict=True)
        ]
        return fun.preparer.run(params.with_arrays(whole), *args, **kwargs)

    plain = {name: jax.random.key_data(a) if name in keys else a for name, a in arrays.items()}
    shapes = [jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)) for a in plain.values()]
    with without_places():
        exported = jax.export.export(jax.jit(run), platforms=platforms)(shapes, *sample, **named)
    report = ModelReport(fun.report, params)
    latest = fun.preparer.latest
    metadata = {
        "kind": "model",
        "name": getattr(fun, "__name__", "a function"),
        "versions": {name: version(name) for name in ("lepton-jax", "jax", "jaxlib")},
        "pipeline": str(options.pipeline),
        "platforms": list(exported.platforms),
        "params": list(arrays),
        "report": str(report),
    }
    with writing(path, metadata, coding=coding) as file:
        for name, array in plain.items():
            file.add(_PARAMS + name, np.asarray(array))
        file.add(_PROGRAM, np.frombuffer(exported.serialize(vjp_order=int(gradients)), np.uint8))
        text = "" if latest is None else latest.graph.to_text()
        file.add(_GRAPH, np.frombuffer(text.encode(), np.uint8))


def load(path: str | os.PathLike[str], *, most_bytes: int = MOST_BYTES) -> SavedModel:
    """A model from a file that `Model.save` wrote.

    Args:
        path: of the file.
        most_bytes: what the arrays and the program may take in memory.

    Raises:
        LeptonFileError: the file is damaged, has no model in it, takes more than allowed, or has a model that
            needs JAX's 64-bit mode.
        OSError: it cannot be read.

    Example:
        >>> import tempfile, pathlib
        >>> import lepton_jax as lepton
        >>> model = lepton.compile(lambda w, x: x @ w, jnp.ones((2, 3)), jnp.ones((1, 2)))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "m.lepton"
        >>> model.save(path)
        >>> load(path)(jnp.ones((1, 2))).tolist()
        [[2.0, 2.0, 2.0]]
    """
    with Reader(path, most_bytes=most_bytes) as file:
        if file.metadata.get("kind") != "model":
            raise LeptonFileError(
                f"{Path(path).name} has arrays and no program: read it with lepton.storage.Reader"
            )
        _check(file)
        metadata = dict(file.metadata)
        found = file.read_all()
    params = {name: _as_saved(name, found.pop(_PARAMS + name)) for name in metadata["params"]}
    program, text = (found[name].tobytes() for name in (_PROGRAM, _GRAPH))
    try:
        graph = text.decode()
    except UnicodeDecodeError as error:
        raise LeptonFileError("the file calls itself a model, but its graph is no text") from error
    try:
        exported = jax.export.deserialize(bytearray(program))
    except Exception as error:  # the reader of another library, on bytes that it may not know
        raise LeptonFileError(
            f"JAX {jax.__version__} cannot read the program, which was saved with JAX "
            f"{metadata['versions'].get('jax')}: {error}"
        ) from error
    return SavedModel(params, exported, metadata, graph)


def _check(file: Reader) -> None:
    """Raise where a file that calls itself a model is none."""
    about = file.metadata
    texts = [about.get(name) for name in ("name", "report", "pipeline")]
    lists = [about.get(name) for name in ("params", "platforms")]
    versions = about.get("versions")
    if not (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
        and isinstance(versions, dict)
        and all(isinstance(number, str) for number in versions.values())
    ):
        raise LeptonFileError("the file calls itself a model, but its metadata are not a model's")
    names = [_PROGRAM, _GRAPH, *(f"{_PARAMS}{name}" for name in about["params"])]
    if sorted(names) != sorted(file):
        raise LeptonFileError("the file calls itself a model, but its arrays are not a model's")
    if any(file.entries[name].dtype != "uint8" for name in (_PROGRAM, _GRAPH)):
        raise LeptonFileError("the file calls itself a model, but its program and graph are not bytes")


def _as_saved(name: str, array: Any) -> jax.Array:
    """An array of JAX, of the dtype that was saved."""
    found = jnp.asarray(array)
    if found.dtype != array.dtype:
        raise LeptonFileError(
            f"{name} is {array.dtype}, which JAX has only in 64-bit mode, in which the model was saved: "
            "set JAX_ENABLE_X64=1"
        )
    return found


def _is_key(array: Any) -> bool:
    return isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
