"""Model: a network as one immutable pytree, the same for every library.

The helpers below are shared by the adapters; none of them names a framework.
"""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.leaves import check_own_leaves
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.static import Static
from solstice.tree.keys import is_key
from solstice.tree.naming import tree_difference
from solstice.tree.overwritten import unboxed
from solstice.tree.ownership import owned
from solstice.tree.pytree import PyTree
from solstice.tree.reprs import Shown

# A key for each named stream, or one key for all of them.
Keys = Array | Mapping[str, Array] | None


class Model(Shown, eqx.Module):
    """An initialised network: three fields of arrays, and a call over batched inputs.

    Attributes:
        params: Strongly typed float or complex arrays, which the optimizer updates. A leaf that is
            in `frozen` is None here; a leaf whose gradient is its next value is in a box
            (`compat.Overwritten`).
        frozen: The network's other constants, integer buffers and frozen weights, in a tree like
            `params`; None if there are none.
        state: Arrays that the forward pass updates: batch statistics and other collections.

    >>> import jax, jax.numpy as jnp, solstice
    >>> from jax.example_libraries import stax
    >>> x = jnp.ones((3, 4))
    >>> model = solstice.compat.as_model(stax.serial(stax.Dense(2)), x, key=jax.random.key(0))
    >>> outputs, same = model(x)
    >>> outputs.shape, same is model
    ((3, 2), True)
    >>> def loss(params):
    ...     return solstice.replace(model, params=params)(x, train=True)[0].sum()
    >>> jax.tree.structure(jax.grad(loss)(model.params)) == jax.tree.structure(model.params)
    True
    """

    params: eqx.AbstractVar[PyTree]
    frozen: eqx.AbstractVar[PyTree]
    state: eqx.AbstractVar[PyTree]

    @abc.abstractmethod
    def __call__(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        """Return the outputs and the model to continue with.

        Args:
            *inputs: Batched inputs, as for the library's call.
            key: A raw or typed PRNG key, or a mapping of them by stream; None if the network draws
                no random numbers. Evaluation ignores it.
            train: Whether to train. Evaluation returns the same model.
            **kwargs: Passed to the library's call; a train flag among them overrides `train`.

        Raises:
            TypeError: `train` is traced, or `key` is not a key.
            ValueError: The network draws random numbers and `key` is None.
        """

    def intermediates(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, name: str, **kwargs: PyTree
    ) -> PyTree:
        """Return what the network sows under `name` in a forward pass; see `compat.intermediates`.

        Raises:
            TypeError: This library does not support it.
        """
        raise InvalidTypeError(
            f"model is expected to be of Flax or Haiku, whose networks can sow values in a forward "
            f"pass; it is {describe(self)}. Return the values with the network's outputs."
        )

    def tagged(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        """Return what the model's call returns, with tags on the outputs of its sub-modules.

        `compat.capture` and `compat.intervene` trace it. An adapter applies `compat.tag` to the
        outputs of each sub-module, but not to the network's. An adapter that cannot do so keeps
        this default, and users tag values in their own functions.
        """
        return self(*inputs, key=key, train=train, **kwargs)

    def trainable(self) -> PyTree:
        """Return booleans in a tree like the weights: which leaves `compat.unfreeze` may train."""
        return jax.tree.map(eqx.is_inexact_array, boxed_weights(self))

    @abc.abstractmethod
    def unwrap(self) -> Any:
        """Return the library's own object, with the current values."""

    def settle_averages(self) -> Self:
        """Return the model with running averages as they are after long training.

        Some libraries correct running averages in the first steps, with a counter or a flag. After
        the weights of a trained network are inserted, this correction must not apply: averages that
        are right in evaluation would be wrong in the next training step. Outputs in evaluation stay
        the same. The default, for networks without such corrections, returns the model itself.
        """
        return self

    def library_name(self, name: str) -> str:
        """Return the name that the library's own tools use for an array; see `compat.save`.

        Args:
            name: The array's path, with "params/" or "state/" before it. By default, the name is
                the path.
        """
        return name

    @property
    def example(self) -> tuple[PyTree, ...] | None:
        """The inputs' shapes that the network was initialised with; None if there were none.

        A tuple with a `jax.ShapeDtypeStruct` for each array, the batch axis included. An experiment
        uses it to find the number of classes and the shape of a batch.
        """
        return None


class Example(Shown):
    """The shapes of a batch's inputs in the static part of a model; equal for any size of a batch.

    >>> one, four = (Example((jnp.zeros((size, 3)),)) for size in (1, 4))
    >>> one == four, four.inputs
    (True, (ShapeDtypeStruct(shape=(4, 3), dtype=float32),))
    """

    def __init__(self, inputs: tuple[PyTree, ...]) -> None:
        self.inputs = jax.tree.map(_shape, inputs)
        leaves, structure = jax.tree.flatten(self.inputs)
        self._form = structure, tuple(map(_form, leaves))

    def __hash__(self) -> int:
        return hash(self._form)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Example) and self._form == other._form


def _shape(leaf: PyTree) -> PyTree:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_shaped(leaf) else leaf


def _form(leaf: PyTree) -> PyTree:
    return (leaf.ndim, leaf.shape[1:], leaf.dtype) if is_shaped(leaf) else leaf


def is_shaped(leaf: object) -> bool:
    """Return whether `leaf` is an array or a `jax.ShapeDtypeStruct`."""
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def split_params(weights: PyTree) -> tuple[PyTree, PyTree]:
    """Split a library's tree of weights into `params` and `frozen`, with None for the others'.

    >>> import numpy as np
    >>> split_params({"w": np.ones(1), "table": np.arange(2)})[1]
    {'table': Array([0, 1], dtype=int32), 'w': None}
    >>> split_params({"w": np.ones(1)})[1] is None
    True
    """
    arguments.check_leaves(weights, "weights")
    weights = owned(
        jax.tree.map(lambda leaf: leaf if eqx.is_array(leaf) else jnp.asarray(leaf), weights)
    )
    return divide(weights, jax.tree.map(eqx.is_inexact_array, weights))


def divide(weights: PyTree, trained: PyTree) -> tuple[PyTree, PyTree]:
    """Return the weights as `params` and `frozen`, by a tree of booleans.

    If nothing is frozen, `frozen` is None, since a tree of None would be walked in every call.
    """
    params, frozen = eqx.partition(weights, trained)
    return params, frozen if jax.tree.leaves(frozen) else None


def join_params(model: Model, like: Static[Any] | None = None) -> PyTree:
    """Return the library's tree of weights: `params` with its holes filled from `frozen`.

    Boxes (`compat.Overwritten`) are removed.

    Raises:
        TypeError: A leaf of the weights or the state is not an array.
        ValueError: The structure differs from `like`, that of the weights that the model was made
            with.
    """
    arguments.instance(model, "model", Model, "a compat.Model")
    if like is not None:
        arguments.instance(like, "like", Static, "a compat.Static of a tree's structure, or None")
    return unboxed(checked_weights(model, like))


def checked_weights(model: Model, like: Static[Any] | None) -> PyTree:
    """Return what `join_params` does, boxes and all; it raises the same errors."""
    try:
        weights = boxed_weights(model)
    except ValueError as error:
        raise InvalidValueError(
            f"{type(model).__name__}: params and frozen are expected to be trees of one structure, "
            f"with None where the other has an array; params are {describe(model.params)}, frozen "
            f"is {describe(model.frozen)}. Replace values and keep the trees: "
            "solstice.replace(model, params=jax.tree.map(..., model.params))."
        ) from error
    if like is not None and (found := jax.tree.structure(weights)) != like.value:
        raise InvalidValueError(
            f"{type(model).__name__}: params (with frozen) are expected to be a tree like the one "
            f"the model was made with; {tree_difference(like.value, found)}. Replace values and "
            f"keep the tree: solstice.replace(model, params=jax.tree.map(..., model.params))."
        )
    check_own_leaves(type(model).__name__, params=weights, state=model.state)
    return weights


def boxed_weights(model: Model) -> PyTree:
    """Return `params` with its holes filled from `frozen`, boxes and all."""
    return model.params if model.frozen is None else eqx.combine(model.params, model.frozen)


def as_inputs(example: PyTree, name: str = "example") -> tuple[PyTree, ...]:
    """Return an example as the tuple of a call's inputs; only a tuple holds several.

    A `jax.ShapeDtypeStruct` becomes zeros. Arrays become jax arrays with jax's dtypes, as under
    jit: float64 from numpy must not make a library use float64 parameters.

    Raises:
        TypeError: A leaf is neither an array nor a number, or none has an axis for examples.
    """
    check_example(example, name)
    return jax.tree.map(_as_input, example if type(example) is tuple else (example,))


def check_example(example: PyTree, name: str) -> None:
    """Raise if this cannot be a batch's inputs.

    Raises:
        TypeError: A leaf is neither an array nor a number, or none has an axis for examples.
    """
    arguments.check_leaves(example, name)
    if not any(getattr(leaf, "ndim", 0) for leaf in jax.tree.leaves(example)):
        raise InvalidTypeError(
            f"{name} is expected to be a batch's inputs, arrays with examples along their first "
            f"axis, or as many jax.ShapeDtypeStruct; it is {describe(example)}."
        )


def _as_input(leaf: PyTree) -> PyTree:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))
    # Not jnp.asarray, which compiles a program for each shape of numpy's arrays.
    numpys = eqx.is_array(leaf) and not isinstance(leaf, jax.Array)
    return jax.device_put(leaf, may_alias=False) if numpys else leaf


def check_call(call: object) -> None:
    """Raise if a user's `call` is not a function of the module and of inputs."""
    if call is not None:
        arguments.function(call, "call", "network", more=True)


def bind_call(
    function: Callable[..., PyTree], call: Callable[..., PyTree] | None
) -> Callable[..., PyTree]:
    """Return the user's `call` around a library's function; the function itself for None."""
    return function if call is None else functools.partial(call, function)


def single_key(key: Keys, adapter: str) -> Array | None:
    """Return the single key for a library without named streams.

    Args:
        key: The caller's key: None, a raw or typed key, or a mapping of one.
        adapter: The adapter's name, for the error.

    Raises:
        TypeError: It is not a key, or a mapping of several.
    """
    if isinstance(key, Mapping):
        if len(key) != 1:
            raise InvalidTypeError(
                f"{adapter}: this library has one stream of random numbers, so one key is "
                f"expected; it got the streams {', '.join(map(repr, key)) or describe(key)}."
            )
        (key,) = key.values()
    return check_key(key, adapter)


def check_key(key: Any, adapter: str) -> Array | None:
    """Return `key`, which must be None or one raw or typed key.

    Raises:
        TypeError: It is something else.
    """
    if key is None or is_key(key):
        return key
    raise InvalidTypeError(
        f"{adapter}: key is expected to be a PRNG key such as jax.random.key(0), a mapping of "
        f"them by stream, or None; it got {describe(key)}."
    )


def missing_key(adapter: str, stream: str = "dropout") -> ValueError:
    """Return the error for a network that draws random numbers in training and got no key.

    Args:
        adapter: The adapter's name.
        stream: The library's name for the stream of random numbers.

    >>> str(missing_key("PebbleModel")).split(".")[0].endswith("no key was given for it")
    True
    """
    return InvalidValueError(
        f"{adapter}: in training this network draws random numbers from the stream {stream!r}, and "
        "no key was given for it. Pass one: model(x, key=jax.random.key(0), train=True), or "
        f"key={{{stream!r}: ...}} for this stream alone; an experiment takes key= when it is "
        "created."
    )


def random_evaluation(adapter: str, remedy: str) -> ValueError:
    """Return the error for a network that would draw random numbers in evaluation."""
    return InvalidValueError(
        f"{adapter}: evaluation is expected to be deterministic, but this network draws random "
        f"numbers with train=False. {remedy}"
    )
