"""A function of named arrays and inputs as a program that jax exports."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters import partial_eval

from solstice.arguments import describe
from solstice.errors import InvalidValueError, SolsticeError
from solstice.tree.pytree import PyTree


class FixedSizeError(InvalidValueError):
    """A network's program is another for another number of examples."""


class Traced(NamedTuple):
    """A function, traced.

    Attributes:
        program: A function of a dict of arrays and a list of inputs; returns a list of arrays.
        weights: The arrays that it needs, by name.
        inputs: The inputs' shapes.
        gives: The shapes of its results, as a tree.
    """

    program: Callable[[dict[str, Any], list[Any]], list[Any]]
    weights: dict[str, Any]
    inputs: list[jax.ShapeDtypeStruct]
    gives: PyTree


def traced(
    function: Callable[[dict[str, Any], list[Any]], PyTree],
    arrays: Mapping[str, Any],
    inputs: Sequence[jax.ShapeDtypeStruct],
) -> Traced:
    """Trace a function, and find which of the arrays it needs."""
    names = list(arrays)
    shapes = [jax.eval_shape(lambda array: array, array) for array in arrays.values()]

    def flat(*leaves: Any) -> PyTree:
        return function(dict(zip(names, leaves, strict=False)), list(leaves[len(names) :]))

    closed, gives = jax.make_jaxpr(flat, return_shape=True)(*shapes, *inputs)
    needed, used = partial_eval.dce_jaxpr(
        closed.jaxpr, [True] * len(closed.out_avals), [False] * len(names) + [True] * len(inputs)
    )
    kept = [name for name, one in zip(names, used, strict=False) if one]
    call = jaxpr_as_fun(ClosedJaxpr(needed, closed.consts))

    def program(weights: dict[str, Any], inputs: list[Any]) -> list[Any]:
        return call(*(weights[name] for name in kept), *inputs)

    return Traced(program, {name: arrays[name] for name in kept}, list(inputs), gives)


def lowered(one: Traced, platforms: Sequence[str]) -> bytes:
    """Return a traced function as jax serializes it.

    Raises:
        ValueError: It cannot be compiled for one of the platforms, or serialized.
    """
    try:
        return bytes(exported(one, platforms).serialize())
    except Exception as error:
        able = [name for name in platforms if _lowers(one, name)]
        if isinstance(error, SolsticeError) or able == list(platforms):
            raise
        remedy = f"Name those that can: platforms={able}." if able else "See the error above."
        raise InvalidValueError(
            f"platforms are expected to be some that the network can be compiled for; they are "
            f"{', '.join(platforms)}: {error}. {remedy}"
        ) from error


def exported(one: Traced, platforms: Sequence[str] | None = None) -> jax.export.Exported:
    """Return a traced function as jax exports it; by default for the current platform."""
    weights = {name: jax.eval_shape(lambda a: a, array) for name, array in one.weights.items()}
    return jax.export.export(jax.jit(one.program), platforms=platforms)(weights, one.inputs)


def _lowers(one: Traced, platform: str) -> bool:
    try:
        exported(one, [platform]).serialize()
    except Exception:  # noqa: BLE001 - whatever it is, it says that this platform will not do
        return False
    return True


def with_batch(inputs: tuple[PyTree, ...], batch: int | str) -> tuple[PyTree, ...]:
    """Return the shapes of inputs, with their first axes as `batch` says.

    Sizes that are symbolic already are the user's, and everything is left as it is.

    Raises:
        ValueError: The inputs' first axes differ.
    """
    shapes = jax.tree.map(_shape, inputs)
    leaves = [leaf for leaf in jax.tree.leaves(shapes) if leaf.shape]
    if batch == "example" or not all(isinstance(n, int) for one in leaves for n in one.shape):
        return shapes
    sizes = {leaf.shape[0] for leaf in leaves}
    if len(sizes) > 1:
        raise InvalidValueError(
            f"example is expected to hold arrays with as many examples along their first axes; it "
            f"is {describe(inputs)}. If these axes are something else, keep all shapes with "
            f"batch='example', or name sizes: n, m = jax.export.symbolic_shape('n, m'), and "
            f"example=(jax.ShapeDtypeStruct((n, 8), 'float32'), ...)."
        )
    size = batch if isinstance(batch, int) else jax.export.symbolic_shape("batch")[0]

    def sized(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = (size, *leaf.shape[1:]) if leaf.shape else ()
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return jax.tree.map(sized, shapes)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    if not hasattr(leaf, "shape"):
        raise InvalidValueError(
            f"example is expected to hold only arrays; it holds {describe(leaf)}. Convert it to an "
            "array, or bind it with an adapter's call=."
        )
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
    return jax.ShapeDtypeStruct(leaf.shape, dtype)
