"""export: writes an experiment or a model as StableHLO programs and weights to one folder.

The programs compute what evaluation computes: `exp(x)` and `exp.predict(x)`, or `model(x)[0]`. Only
the arrays that they need are written: no optimizer state, and averaged parameters if evaluation
uses them.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Any, Literal

import jax
import jax.numpy as jnp

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.model import Model
from solstice.errors import InvalidTypeError, InvalidValueError, SolsticeError
from solstice.experiment import Experiment
from solstice.experiments.task import Names
from solstice.exporting import folder
from solstice.exporting.forms import Form
from solstice.exporting.programs import FixedSizeError, Traced, lowered, traced, with_batch
from solstice.exporting.sizes import check_sizes
from solstice.exporting.subject import Function, example_of, settled, subject
from solstice.tree.kinds import is_array
from solstice.tree.naming import flatten_with_paths
from solstice.tree.pytree import PyTree

Batch = int | Literal["any", "example"]
# What jax.export calls them.
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Numbers of examples for which a network may branch; the example's is tried too.
_TRIED = 1, 2, 3


def export(
    exp_or_model: Experiment | Model,
    path: str | os.PathLike[str],
    *,
    example: PyTree = None,
    batch: Batch = "any",
    platforms: str | Iterable[str] = ("cpu", "cuda", "tpu"),
    preprocess: Callable[..., PyTree] | None = None,
    classes: Iterable[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a trained network to a folder that `load_exported` reads, as programs and weights.

    For an experiment, these compute `exp(x)` and `exp.predict(x)`, with the parameters of
    evaluation; for a model, `model(*inputs)[0]`. On one platform and one device, and with one batch
    size, an export gives the same numbers as these under `jax.jit`, bit for bit. With a fixed
    `batch` and one of `platforms`, the program is the same. Otherwise jax merges equal operations,
    and XLA may round the last bit of a rare network otherwise.

    The folder gets its name when all of it is on the disk. What a killed export left beside it, the
    next export to the same path deletes.

    Args:
        exp_or_model: An experiment that can be called on inputs, an `Ensemble` of such, or a
            `compat.Model`.
        path: A new or empty folder.
        example: A batch of inputs of any length, or their `jax.ShapeDtypeStruct`s, as `preprocess`
            takes them, or the experiment if there is no `preprocess`; several as a tuple. None
            means those that initialised the network. Symbolic sizes (`jax.export.symbolic_shape`)
            are kept.
        batch: How many examples the program takes: "any" number, a fixed number, or "example" to
            keep all shapes of the example.
        platforms: The platforms that the program can run on: some of "cpu", "cuda", "rocm" and
            "tpu", no matter where it is exported.
        preprocess: A function that JAX can trace, which becomes part of the program. It is called
            as `preprocess(*inputs)` and returns the inputs of the experiment.
        classes: The names of the classes, in order; for a binary classifier, those of 0 and 1; for
            several labels, one name each. With them, a model's outputs are read as logits.
        overwrite: Whether to replace an earlier export. Other files are never replaced.

    Raises:
        TypeError: It cannot be called, or an argument is of a wrong type.
        ValueError: There is no example, the names of classes do not fit, or the network cannot be
            traced with an unknown number of examples, or compiled for one of the platforms.
        FileExistsError: There is something at the path.
        ImportError: safetensors is not installed.

    >>> import numpy as np, optax, solstice, tempfile
    >>> from jax.example_libraries import stax
    >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> exp = exp.train(30, [(x, y)], progress=False)
    >>> path = tempfile.mkdtemp() + "/classifier"
    >>> solstice.export(exp, path, classes=["odd", "even"])
    >>> exported = solstice.load_exported(path)
    >>> np.array_equal(exported(x), exp(x)), exported.predict(x).tolist()
    (True, ['odd', 'even', 'even', 'odd'])
    """
    batch, platforms, names = _batch(batch), _platforms(platforms), _names(classes)
    place = folder.vacant(path, overwrite=arguments.flag(overwrite, "overwrite"))
    known = subject(exp_or_model, names)
    arguments.check_untraced((exp_or_model, example), "export()")
    if batch == "any" or len(platforms) > 1:
        exp_or_model = settled(exp_or_model)
    inputs = example_of(known, example, raw=preprocess is not None)
    if preprocess is not None:
        takes = ", ".join(["x", *(f"x{i}" for i in range(1, len(inputs)))])
        arguments.function(preprocess, "preprocess", takes)
    shapes = with_batch(inputs, batch)

    def trace(function: Function) -> Traced:
        return _traced(exp_or_model, _prepared(function, preprocess), inputs, shapes)

    programs, why = {"outputs": trace(known.outputs)}, known.unpredicted
    if known.predictions is not None:
        try:
            programs["predictions"] = trace(known.predictions)
        except Exception as error:
            if names is not None or isinstance(error, SolsticeError):
                raise
            # The outputs can still be exported; asking for predictions raises an error.
            first = str(error).partition("\n")[0]
            why = f"jax cannot trace its predict() ({type(error).__name__}: {first})"
    rule = None
    if names is not None:
        rule = known.names(programs["outputs"].gives)
        _check_names(names, rule, programs, why)
    about = {
        "of": type(exp_or_model).__name__,
        "versions": {"solstice": version("jax-solstice"), "jax": jax.__version__},
        "platforms": list(platforms),
        "inputs": Form.of(shapes).to_dict(),
        "input_names": None if preprocess is not None else known.input_names,
        "outputs_are": known.outputs_are,
        "gives": {name: Form.of(one.gives).to_dict() for name, one in programs.items()},
        "takes": {name: list(one.weights) for name, one in programs.items()},
        "unpredicted": None if "predictions" in programs else why,
        "classes": names,
        "each_class": rule is not None and rule.each,
    }
    weights = {name: array for one in programs.values() for name, array in one.weights.items()}
    serialized = {name: lowered(one, platforms) for name, one in programs.items()}
    folder.write(place, folder.Content(about, serialized, weights))


def _prepared(function: Function, preprocess: Callable[..., PyTree] | None) -> Function:
    if preprocess is None:
        return function

    def prepared(thing: Any, inputs: tuple[PyTree, ...]) -> PyTree:
        try:
            found = preprocess(*inputs)
        except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
            first = str(error).partition("\n")[0]
            raise InvalidTypeError(
                f"preprocess is expected to be a function that jax can trace; it reads the "
                f"values of its inputs: {first} Write it with jax.numpy, and without an `if` on "
                f"values."
            ) from error
        return function(thing, found if type(found) is tuple else (found,))

    return prepared


def _traced(
    thing: Experiment | Model,
    function: Function,
    inputs: tuple[PyTree, ...],
    shapes: tuple[PyTree, ...],
) -> Traced:
    """Trace a function of an experiment or a model and of inputs.

    Raises:
        ValueError: It can be traced for the example's number of examples, and not for any number.
    """
    pairs, structure = flatten_with_paths(thing)
    arrays = {name: leaf for name, leaf in pairs if is_array(leaf)}
    _check_here(arrays)
    leaves, form = jax.tree.flatten(shapes)

    def flat(arrays: Mapping[str, Any], inputs: list[Any]) -> PyTree:
        whole = jax.tree.unflatten(structure, [arrays.get(name, leaf) for name, leaf in pairs])
        found = function(whole, jax.tree.unflatten(form, inputs))
        return jax.tree.map(jnp.asarray, found)

    try:
        found = traced(flat, arrays, leaves)
    except Exception as error:
        fixed = jax.tree.leaves(with_batch(inputs, "example"))
        if isinstance(error, SolsticeError) or fixed == leaves or not _traces(flat, arrays, fixed):
            raise
        first = str(error).partition("\n")[0]
        raise FixedSizeError(
            f"batch={'any'!r} is expected to suit a network whose program is the same for any "
            f"number of examples; tracing {type(thing).__name__} with {describe(shapes)} failed: "
            f"{type(error).__name__}: {first} The network must not depend on the number: use "
            "x.shape[0] or -1 instead of len(x) in a reshape, and no `if` on it. Or fix it, as in "
            "batch=32, and pad smaller batches."
        ) from error
    if not all(isinstance(n, int) for leaf in leaves for n in leaf.shape):
        sized = {size: jax.tree.leaves(with_batch(inputs, size)) for size in _TRIED}
        fixed = jax.tree.leaves(with_batch(inputs, "example"))
        examples = next((leaf.shape[0] for leaf in fixed if leaf.shape), 0)
        if sized[1] != sized[2]:  # no sizes that the user named
            check_sizes(flat, arrays, found, sized | ({examples: fixed} if examples else {}))
    return found


def _traces(function: Callable[..., PyTree], arrays: Mapping[str, Any], inputs: list[Any]) -> bool:
    try:
        traced(function, arrays, inputs)
    except Exception:  # noqa: BLE001 - then it is not the number of examples; the first is raised
        return False
    return True


def _check_here(arrays: Mapping[str, Any]) -> None:
    for name, array in arrays.items():
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            raise InvalidValueError(
                f"exp_or_model is expected to hold arrays of this process; {name!r} is in "
                f"several processes. Gather it in all of them by solstice.sharding.gather(exp), "
                f"and export it in one."
            )


def _batch(batch: Any) -> Batch:
    if isinstance(batch, str):
        return arguments.choice(batch, "batch", ("any", "example"))
    return arguments.count(batch, "batch", most=2**31 - 1)


def _platforms(platforms: Any) -> tuple[str, ...]:
    listed = [platforms] if isinstance(platforms, str) else arguments.texts(platforms, "platforms")
    if not listed:
        raise InvalidValueError(
            f"platforms are expected to be some of {', '.join(_PLATFORMS)}; it is {platforms!r}."
        )
    chosen = [arguments.choice(one, "platforms", _PLATFORMS) for one in listed]
    return tuple(dict.fromkeys(chosen))


def _names(classes: Any) -> tuple[str, ...] | None:
    if classes is None:
        return None
    names = arguments.texts(classes, "classes")
    if not names or len(set(names)) < len(names) or isinstance(classes, set | frozenset):
        raise InvalidValueError(
            f"classes are expected to be different names in their order, at least one; they are "
            f"{describe(classes)}."
        )
    return tuple(names)


def _check_names(
    names: tuple[str, ...], rule: Names | None, programs: Mapping[str, Traced], why: str
) -> None:
    """Raise if class names do not fit the predictions.

    Raises:
        ValueError: There are too many or too few, or there are no classes to name.
    """
    if "predictions" not in programs:
        raise InvalidValueError(
            f"classes are expected to name the predicted classes; they are {', '.join(names)}, and "
            f"{why}. Define `predict(self, x)`, which returns class indices, or export "
            f"without classes."
        )
    gives = programs["predictions"].gives
    whole = isinstance(gives, jax.ShapeDtypeStruct) and jnp.issubdtype(gives.dtype, jnp.integer)
    if rule is None or not whole:
        raise InvalidValueError(
            f"classes are expected to name the predicted classes; they are {', '.join(names)}, and "
            f"predictions are {describe(gives)}, not class indices. Export without classes."
        )
    if rule.number != len(names):
        raise InvalidValueError(
            f"classes are expected to be {rule.number} names, as many as there are classes; they "
            f"are {len(names)}: {', '.join(names[:8])}."
        )
