"""Encoding: a leaf's kind and values, for files, texts and digests, and back.

Data are arrays of numbers, typed PRNG keys, and Python's numbers, strings and bytes. Everything
else (functions, modules of other libraries) is an object, which is not saved: nothing is pickled.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.growing import Growing
from solstice.tree.kinds import OBJECT, is_array, is_typed_key, kind
from solstice.tree.names import names_difference, path_name
from solstice.tree.pytree import PyTree


def host_array(leaf: PyTree) -> np.ndarray:
    """Return the numbers of an array on the host; for typed keys, their data.

    A sharded array is gathered.

    >>> host_array(jax.random.key(7))
    array([0, 7], dtype=uint32)
    """
    values = np.asarray(jax.random.key_data(leaf) if is_typed_key(leaf) else leaf)
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def from_host(values: np.ndarray, like: PyTree, impl: str | None = None) -> PyTree:
    """Return numbers as an array like `like`.

    Args:
        values: The numbers, or the data of keys.
        like: The leaf that they replace: a numpy array or scalar, a jax array with its sharding and
            weak type, or a `jax.ShapeDtypeStruct`.
        impl: The keys' implementation, for typed keys.

    >>> from_host(np.float32([1, 2]), like=jnp.zeros(2))
    Array([1., 2.], dtype=float32)
    """
    if isinstance(like, np.ndarray | np.generic):
        array = values.astype(like.dtype, copy=False)
        return array[()] if isinstance(like, np.generic) else array
    # An uncommitted array stays so, or a step would recompile.
    sharding = like.sharding if getattr(like, "committed", True) else None
    if sharding is not None and not sharding.is_fully_addressable:
        return across_processes(lambda part: values[part], values.shape, sharding, impl)
    array = jnp.asarray(values) if impl is None else as_keys(values, impl)
    if getattr(like, "weak_type", False):
        array = _weakly_typed(array)
    return array if sharding is None else jax.device_put(array, sharding)


def across_processes(
    part: Callable[[tuple[slice, ...] | None], np.ndarray],
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    impl: str | None,
) -> Array:
    """Return an array over devices of several processes; each reads the parts it holds.

    Args:
        part: A function from an index to the numbers there, or the data of keys.
        shape: The shape of the numbers.
        sharding: The array's sharding.
        impl: The keys' implementation, for typed keys.
    """
    array = jax.make_array_from_callback(shape, sharding, part)
    if impl is None:
        return array
    wrap = jax.jit(
        lambda numbers: jax.random.wrap_key_data(numbers, impl=impl), out_shardings=sharding
    )
    return wrap(array)


def _weakly_typed(array: Array) -> Array:
    # jax makes only scalars weakly typed; an update keeps that.
    zeros = jnp.broadcast_to(jnp.asarray(array.dtype.type(0).item()), array.shape)
    return zeros.at[...].set(array) if zeros.dtype == array.dtype else array


def as_keys(values: np.ndarray, impl: str) -> Array:
    """Return typed keys of an implementation, such as "threefry2x32", from their data."""
    return jax.random.wrap_key_data(jnp.asarray(values), impl=impl)


def key_impl(leaf: PyTree) -> str | None:
    """Return the name of typed keys' implementation; None for anything else."""
    return str(jax.random.key_impl(leaf)) if is_typed_key(leaf) else None


def check_kinds(
    where: str, found: Mapping[str, str], like: Mapping[str, PyTree], name: str = "like"
) -> None:
    """Raise if the kinds of leaves, by path, differ from those of the leaves of `like`.

    Raises:
        ValueError: The message names the leaf and says how it differs.
    """
    difference = names_difference(like, found) or next(
        (
            f"{path!r} is {found[path]} there and {kind(leaf)} in `{name}`"
            for path, leaf in like.items()
            if found[path] != kind(leaf)
        ),
        None,
    )
    if difference:
        raise InvalidValueError(
            f"The leaves in {where} are expected to be like those of `{name}`; {difference}. Give "
            f"`{name}` the structure, shapes and dtypes of the tree that was saved."
        )


def check_data(tree: PyTree) -> None:
    """Raise if an array of a tree has no values, or is not of numbers of at most 64 bits.

    Raises:
        TypeError: The message names the leaf.
    """
    if not any(map(_is_no_data, jax.tree.leaves(tree))):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if _is_no_data(leaf):
            raise InvalidTypeError(
                f"The leaf {path_name(path)!r} is expected to be an array of numbers; it is "
                f"{describe(leaf)}. Keep only numbers in arrays; anything else can be a "
                f"str leaf or a static field."
            )


def kept(tree: PyTree, what: str) -> PyTree:
    """Return a copy of a state of plain values.

    Args:
        tree: Containers, arrays, numbers, strings, and `Growing`.
        what: What state it is, for the message.

    Raises:
        TypeError: It has something that a checkpoint cannot hold; the message says where.

    >>> kept({"seen": {7}}, "Count.get_state()")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidTypeError: Count.get_state() is expected to be what a checkpoint holds: \
numbers, strings, arrays of numbers, and dicts, lists and tuples of these; 'seen' is the set {7}. \
Give it another form, such as a list.
    """
    try:
        leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    except ValueError as error:  # a dict whose names cannot be ordered
        raise InvalidTypeError(f"{what} is expected to be a tree: {error}") from error
    for path, leaf in leaves:
        lost = kind(leaf) == OBJECT and not isinstance(leaf, Growing)
        if lost or _is_no_data(leaf):
            raise InvalidTypeError(
                f"{what} is expected to be what a checkpoint holds: numbers, strings, arrays of "
                f"numbers, and dicts, lists and tuples of these; {path_name(path)!r} is "
                f"{describe(leaf)}. Give it another form, such as a list."
            )
    own = [leaf.copy() if isinstance(leaf, np.ndarray) else leaf for _, leaf in leaves]
    return jax.tree.unflatten(structure, own)


def _is_no_data(leaf: PyTree) -> bool:
    if not is_array(leaf):
        return False
    return isinstance(leaf, jax.ShapeDtypeStruct) or not _holds_numbers(leaf)


def _holds_numbers(leaf: PyTree) -> bool:
    if isinstance(leaf, np.ma.MaskedArray):  # its mask would be lost
        return False
    if is_typed_key(leaf) or leaf.dtype == np.bool_:
        return True
    widest = 16 if jnp.issubdtype(leaf.dtype, np.complexfloating) else 8
    return jnp.issubdtype(leaf.dtype, np.number) and leaf.dtype.itemsize <= widest
