"""The parts of an experiment or a model to export: two functions, and facts about the inputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from solstice.arguments import describe
from solstice.compat.model import Model, check_example, is_shaped
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.experiment import Experiment
from solstice.experiments.batches import inputs_by_name
from solstice.experiments.task import Names
from solstice.experiments.tasked import Tasked
from solstice.signatures import overrides
from solstice.tree.pytree import PyTree

# From the experiment or the model, and inputs.
Function = Callable[[Any, tuple[PyTree, ...]], PyTree]


class Subject(NamedTuple):
    """An experiment or a model, as an export sees it.

    Attributes:
        outputs: Returns the outputs.
        outputs_are: A description of the outputs.
        predictions: Returns the predictions; None if they are not defined.
        unpredicted: Why they are not defined.
        names: From the outputs' shapes to how class names relate to predictions.
        example: Its inputs' shapes; None if unknown.
        input_names: The names of several inputs, if they have any.
    """

    outputs: Function
    outputs_are: str
    predictions: Function | None
    unpredicted: str
    names: Callable[[Any], Names | None]
    example: tuple[PyTree, ...] | None
    input_names: tuple[str, ...] | None


def subject(thing: Experiment | Model, classes: tuple[str, ...] | None) -> Subject:
    """Return the parts of an experiment or a model to export.

    Raises:
        TypeError: It is neither, or an experiment that cannot be called.
    """
    if isinstance(thing, Model):
        return _of_model(thing, classes)
    if not isinstance(thing, Experiment):
        what = f"the class {thing.__name__!r}" if isinstance(thing, type) else describe(thing)
        raise InvalidTypeError(
            f"exp_or_model is expected to be an experiment or a compat.Model; it is {what}. Adapt "
            f"a network first: solstice.compat.as_model(network, example, key=...)."
        )
    if not callable(thing):
        raise InvalidTypeError(
            f"exp_or_model is expected to be called on a batch's inputs; {type(thing).__name__} "
            f"has no method `__call__`. Define `__call__(self, x)`, which returns the outputs, or "
            f"export its model."
        )
    inner, predicts = thing.innermost(), overrides(thing, Experiment, "predict")
    known = inner if isinstance(inner, Tasked) else None
    return Subject(
        outputs=lambda exp, inputs: exp(_as_one(inputs)),
        outputs_are=known.task.outputs_are if known else "outputs",
        predictions=(lambda exp, inputs: exp.predict(_as_one(inputs))) if predicts else None,
        unpredicted=f"{type(thing).__name__} has no method `predict`",
        names=known.task.names if known else lambda outputs: Names(len(classes or ())),
        example=known.example if known else None,
        input_names=known.input_names if known else None,
    )


def settled(thing: Any) -> Any:
    """Return an experiment or a model whose models have settled averages.

    Evaluation computes the same. But for a program of any size or of several platforms, jax merges
    equal operations, and XLA then rounds a division by a merged value otherwise: that of a batch
    norm's two moments by one correction of their first steps.
    """

    def settle(node: Any) -> Any:
        return node.settle_averages() if isinstance(node, Model) else node

    return jax.tree.map(settle, thing, is_leaf=lambda node: isinstance(node, Model))


def _of_model(model: Model, classes: tuple[str, ...] | None) -> Subject:
    def outputs(model: Model, inputs: tuple[PyTree, ...]) -> PyTree:
        return model(*inputs)[0]

    def most_probable(model: Model, inputs: tuple[PyTree, ...]) -> PyTree:
        return outputs(model, inputs).argmax(-1)

    def names(outputs: Any) -> Names | None:
        return Names(outputs.shape[-1]) if getattr(outputs, "ndim", 0) else None

    named = classes is not None
    return Subject(
        outputs=outputs,
        outputs_are="logits, one for each class along the last axis" if named else "outputs",
        predictions=most_probable if named else None,
        unpredicted="it was exported from a model without `classes`",
        names=names,
        example=model.example,
        input_names=None,
    )


def example_of(known: Subject, example: PyTree, *, raw: bool) -> tuple[PyTree, ...]:
    """Return the inputs that a program is exported for.

    Args:
        known: What is exported.
        example: What the user gave.
        raw: Whether they are inputs of a user's `preprocess`.

    Raises:
        TypeError: They are not inputs.
        ValueError: There are none.
    """
    if example is not None:
        if not raw and known.input_names is not None:
            example = inputs_by_name(example, (known.input_names,))
        check_example(example, "example")
        inputs = example if type(example) is tuple else (example,)
        if not raw and known.example is not None:
            _check_axes(inputs, known.example)
        return inputs
    if raw:
        raise InvalidValueError(
            "example is expected to be a batch of inputs of preprocess; it is None. Pass one, or "
            "its shapes: example=jax.ShapeDtypeStruct((1, 28, 28), 'uint8')."
        )
    if known.example is None:
        raise InvalidValueError(
            "example is expected to be a batch's inputs, since this network was created without "
            "any; it is None. Pass one: export(..., example=x[:1])."
        )
    return known.example


def _check_axes(inputs: tuple[PyTree, ...], known: tuple[PyTree, ...]) -> None:
    """Raise if an example has other axes than the one that initialised the network."""
    if jax.tree.structure(inputs) != jax.tree.structure(known):
        return  # the network's own error is clearer
    for found, wanted in zip(*map(jax.tree.leaves, (inputs, known)), strict=True):
        if is_shaped(wanted) and is_shaped(found) and found.ndim != wanted.ndim:
            raise InvalidValueError(
                f"example is expected to be a batch's inputs, with as many axes as those that "
                f"initialised the network, {describe(_as_one(known))}; it is "
                f"{describe(_as_one(inputs))}. For a single example, pass a batch: x[None]."
            )


def _as_one(inputs: tuple[PyTree, ...]) -> PyTree:
    """Return inputs as an experiment takes them: one by itself, several as a tuple."""
    one = len(inputs) == 1 and type(inputs[0]) is not tuple
    return inputs[0] if one else inputs
