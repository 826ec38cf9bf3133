"""Exported: loads and calls an export without any network library."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.exporting import folder
from solstice.exporting.forms import ArrayForm, Form, array_form
from solstice.tree.names import names_difference
from solstice.tree.pytree import PyTree
from solstice.tree.reprs import Shown
from solstice.tree.tensors import untrusted


def load_exported(path: str | os.PathLike[str]) -> "Exported":
    """Return an exported network, ready to be called; no network library is needed.

    Args:
        path: The folder that `export` wrote, on this machine or another.

    Raises:
        FileNotFoundError: There is no such folder.
        DamagedFileError: `export` did not write it, or a part is missing or was changed.
        ValueError: It is of a newer version, does not support the platform of this process, or
            needs 64-bit types that are disabled in jax.
        ImportError: safetensors is not installed.

    >>> import equinox as eqx, jax, numpy as np, solstice, tempfile
    >>> model = solstice.compat.EquinoxModel(eqx.nn.Linear(4, 2, key=jax.random.key(0)))
    >>> path = tempfile.mkdtemp() + "/linear"
    >>> solstice.export(model, path, example=np.ones((1, 4), np.float32), platforms="cpu")
    >>> exported = solstice.load_exported(path)
    >>> exported.inputs, exported(np.ones((3, 4), np.float32)).shape
    (float32[batch,4], (3, 2))
    """
    content = folder.read(path)
    with untrusted(os.fspath(path), is_file=False):
        return Exported(os.fspath(path), content)


class Exported(Shown):
    """An exported network: call it on a batch to get the outputs.

    `load_exported` returns it. The first call with each number of examples compiles the program.

    Attributes:
        path: The folder.
        of: The class of what was exported, such as "ClassificationExperiment".
        classes: The names of the classes or labels; None if the export has none.
        inputs: The shape and the type of the input, or a tuple of several; "batch" in a shape is
            any number of examples.
        outputs: The shape and the type of the outputs.
        outputs_are: A description of the outputs, such as "logits, one for each class".
        platforms: The platforms it runs on: "cpu", "cuda", "rocm", "tpu".
        versions: The versions of Solstice and JAX that wrote it.

    >>> import numpy as np, optax, solstice, tempfile
    >>> from jax.example_libraries import stax
    >>> x, path = np.eye(4, dtype="float32"), tempfile.mkdtemp() + "/classifier"
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> solstice.export(exp, path, classes=["odd", "even"], platforms="cpu")
    >>> def answers(exported: solstice.Exported, x) -> dict[str, int]:
    ...     names, counts = np.unique(exported.predict(x), return_counts=True)
    ...     return dict(zip(names.tolist(), counts.tolist()))
    >>> sum(answers(solstice.load_exported(path), x).values())
    4
    >>> solstice.load_exported(path).outputs_are
    'logits, one for each class along the last axis'
    """

    def __init__(self, path: str, content: folder.Content) -> None:
        about = content.about
        self.path = path
        self.of = str(about["of"])
        names = about["input_names"]
        self._takes, self._names = Form.from_dict(about["inputs"]), names and tuple(names)
        self.platforms = tuple(about["platforms"])
        self.versions: dict[str, str] = about["versions"]
        self.outputs_are = str(about["outputs_are"])
        self.classes = None if about["classes"] is None else tuple(about["classes"])
        self._each, self._unpredicted = about["each_class"], about["unpredicted"]
        gives = {name: Form.from_dict(one) for name, one in about["gives"].items()}
        self.inputs = _one(self._takes.whole(), names)
        self.outputs = gives["outputs"].whole()
        self._check_platform()
        for form in (self._takes, *gives.values()):
            _check_types(form.arrays)
        _check_types([one for one in content.weights.values() if isinstance(one, np.ndarray)])
        weights = {name: jax.device_put(array) for name, array in content.weights.items()}
        self._programs = {
            name: _Program(
                _deserialized(content.programs[name], self),
                {one: weights[one] for one in about["takes"][name]},
                self._takes,
                form,
            )
            for name, form in gives.items()
        }

    def __call__(self, *inputs: PyTree, **named: PyTree) -> Any:
        """Return the outputs for a batch of inputs.

        Args:
            *inputs: As the experiment or the model takes them: several inputs as several arguments,
                as one tuple, or as a mapping if they have names. Arrays of jax or numpy.
            **named: The same as a mapping: only for inputs that have names.

        Raises:
            TypeError: Their structure differs from `inputs`, or they have another dtype.
            ValueError: They have other shapes.
        """
        return self._programs["outputs"](self._arrays(inputs, named))

    def predict(self, *inputs: PyTree, **named: PyTree) -> Any:
        """Return what the experiment's `predict` does for a batch of inputs.

        If the export has names of classes, the result is an array of these names; with several
        labels, 0 or 1 for each label, in the order of `classes`.

        Raises:
            TypeError: The export has no predictions; or as for a call.
        """
        if "predictions" not in self._programs:
            raise InvalidTypeError(
                f"The export at {self.path!r} has only outputs: {self._unpredicted}. Call it "
                f"for its outputs: exported(x)."
            )
        found = self._programs["predictions"](self._arrays(inputs, named))
        if self.classes is None or self._each:
            return found
        if isinstance(found, Tracer):
            raise InvalidTypeError(
                "predict() returns class names, which are not jax arrays, and is "
                "expected to be called outside of jax.jit. Inside, use exported(x).argmax(-1)."
            )
        numbers = np.asarray(found)
        outside = (numbers < 0) | (numbers >= len(self.classes))
        if outside.any():
            raise InvalidValueError(
                f"Predictions are expected to be indices of the {len(self.classes)} classes; "
                f"{numbers[outside][0]} is not. Export with the names of all classes."
            )
        return np.asarray(self.classes)[numbers]

    def _arrays(self, inputs: tuple[PyTree, ...], named: dict[str, PyTree]) -> list[Any]:
        if named and (inputs or not self._names):
            raise InvalidTypeError(
                f"inputs are expected to be {describe(self.inputs)}, without keywords unless they "
                f"have names; there are {', '.join(f'{name}=' for name in named)}. Call "
                f"exported(x)."
            )
        inputs = (named,) if named else inputs
        if len(inputs) == 1:
            inputs = inputs[0] if type(inputs[0]) is tuple else self._by_name(inputs)
        if type(self._takes.tree) is tuple and len(self._takes.tree) != len(inputs):
            raise InvalidTypeError(
                f"inputs are expected to be {describe(self.inputs)}; they are {describe(inputs)}."
            )
        one = len(inputs) == 1
        what = "x" if one else "inputs"
        return self._takes.taken_apart(inputs, what)

    def _by_name(self, inputs: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        named = inputs[0]
        if self._names is None or not isinstance(named, Mapping):
            return inputs
        if not named.keys() >= set(self._names):
            raise InvalidTypeError(
                f"inputs are expected to be named {', '.join(map(repr, self._names))}; "
                f"{names_difference(self._names, map(str, named))}."
            )
        return tuple(named[name] for name in self._names)

    def _check_platform(self) -> None:
        here = jax.default_backend()
        if not set(self.platforms) & ({"cuda", "rocm"} if here == "gpu" else {here}):
            raise InvalidValueError(
                f"The export at {self.path!r} is for {' and '.join(self.platforms)}, and this "
                f"process computes on {here}. Export it again with "
                f"{'cuda or rocm' if here == 'gpu' else here} in platforms=, or run it on a "
                "platform that it supports."
            )

    def _shown(self) -> list[tuple[str, object]]:
        if "outputs" not in vars(self):
            return []  # half initialised
        inputs, outputs = (jax.tree.map(_shape, one) for one in (self.inputs, self.outputs))
        shown = [("", self.path), ("of", self.of), ("inputs", inputs), ("outputs", outputs)]
        shown += [("classes", self.classes)] * (self.classes is not None)
        return [*shown, ("platforms", self.platforms)]


def _shape(form: ArrayForm) -> jax.ShapeDtypeStruct:
    """Return an object that prints like an array."""
    return jax.ShapeDtypeStruct(form.shape, form.dtype)


class _Program:
    """One exported program, with the weights that it takes."""

    def __init__(
        self,
        exported: jax.export.Exported,
        weights: dict[str, PyTree],
        takes: Form,
        gives: Form,
    ) -> None:
        n = len(jax.tree.leaves(weights))
        found = [
            array_form(aval.shape, aval.dtype)
            for aval in (*exported.in_avals[n:], *exported.out_avals)
        ]
        if found != [*takes.arrays, *gives.arrays]:
            raise InvalidValueError("the arrays of a program do not match export.json")
        self._weights, self._gives = weights, gives
        self._call = jax.jit(_without_gradient(exported.call))

    def __call__(self, arrays: Sequence[Any]) -> Any:
        try:
            found = self._call(self._weights, list(arrays))
        except ValueError as error:
            raise InvalidValueError(
                f"inputs are expected to fit the exported program; they are "
                f"{describe(list(arrays))}: {error}"
            ) from error
        except NotImplementedError as error:
            raise InvalidTypeError(
                f"An exported program is compiled as a whole: jax.jit can contain it, but jax.vmap "
                f"cannot ({error}). It takes a batch; call it on that."
            ) from error
        return self._gives.whole(found)


def _without_gradient(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of which a gradient is a clear error."""
    wrapped = jax.custom_vjp(call)

    def backward(_: Any, cotangents: Any) -> Any:
        raise InvalidTypeError(
            "An exported program has no gradient: it is for inference only. Differentiate the "
            "experiment or the model that was exported, or wrap the outputs: "
            "jax.lax.stop_gradient(exported(x))."
        )

    wrapped.defvjp(lambda *arguments: (call(*arguments), None), backward)
    return wrapped


def _deserialized(program: bytes, of: Exported) -> jax.export.Exported:
    try:
        return jax.export.deserialize(bytearray(program))
    except Exception as error:
        raise InvalidValueError(
            f"The export at {of.path!r} was written by jax {of.versions.get('jax')}, and jax "
            f"{jax.__version__} cannot read it: {error}. Load it with a version closer to that "
            f"one, or export it again."
        ) from error


def _check_types(arrays: Sequence[ArrayForm | np.ndarray]) -> None:
    for one in arrays:
        if jax.dtypes.canonicalize_dtype(one.dtype) != one.dtype:
            raise InvalidValueError(
                f"The exported program has an array {describe(one)}, of a type that is disabled in "
                f"jax. Enable it before anything else: "
                f"jax.config.update('jax_enable_x64', True)."
            )


def _one(inputs: PyTree, names: Sequence[str] | None) -> PyTree:
    """Return the inputs as users pass them: one by itself, several by name or in a tuple."""
    if names:
        return dict(zip(names, inputs, strict=True))
    return inputs[0] if type(inputs) is tuple and len(inputs) == 1 else inputs
