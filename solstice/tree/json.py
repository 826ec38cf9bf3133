"""Trees as JSON that any program reads, and back, exactly.

Every array keeps its dtype and all its numbers: also bfloat16, typed PRNG keys, NaN and infinities
(except the payload of a NaN). Use it for small trees that people may read, such as a configuration
or a history; save weights with `tree.save`.

JSON's types stay themselves; other values are an object with one name that starts with a dollar
sign:

    {"$array": {"dtype": "float32", "shape": [2], "data": [1.5, "NaN"]}}      row by row
    {"$key": {"impl": "threefry2x32", "shape": [2], "data": [0, 7]}}          its raw numbers
    {"$tuple": [...]}  {"$float": "-Infinity"}  {"$complex": [re, im]}  {"$bytes": base64}
    {"$dict": [[name, value], ...]}              a dict with other names than plain strings
    {"$object": "jax.nn.relu"}                   not data: only its presence is kept
"""

import base64
import json
import math

import jax
import jax.numpy as jnp
import numpy as np

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidValueError
from solstice.tree.encoding import as_keys, check_data, check_kinds, from_host, host_array, key_impl
from solstice.tree.growing import Growing
from solstice.tree.kinds import OBJECT, VALUES, is_array, kind
from solstice.tree.names import path_name
from solstice.tree.naming import leaves_by_path
from solstice.tree.pytree import PyTree
from solstice.tree.tensors import as_dtype


def to_json(tree: PyTree, *, indent: int | None = None) -> str:
    """Return a tree as JSON text.

    Dicts, lists, tuples and None are kept. Any other node (an Experiment, a named tuple) becomes an
    object of its children by name.

    Args:
        tree: The tree, with arrays, typed keys, numbers, strings and bytes as leaves.
        indent: As in `json.dumps`.

    Raises:
        TypeError: A leaf is an array of something other than numbers.

    >>> to_json({"rate": 0.5, "best": float("-inf"), "shape": (8, 8)})
    '{"rate": 0.5, "best": {"$float": "-Infinity"}, "shape": {"$tuple": [8, 8]}}'
    """
    if indent is not None:
        indent = arguments.count(indent, "indent", least=0, most=100)
    check_data(tree)
    return json.dumps(_encode(tree), indent=indent, allow_nan=False)


def from_json(text: str, like: PyTree = None) -> PyTree:
    """Return the tree that `to_json` encoded.

    Args:
        text: The text.
        like: A tree of the same structure, whose arrays (or `jax.ShapeDtypeStruct`s) have the same
            shapes and dtypes: the result has its classes, its kinds of arrays and its objects that
            are not data. Without it, arrays are numpy's (bit for bit, since jax may lack 64-bit
            types), keys are jax's, and nodes other than dicts, lists and tuples are dicts.

    Raises:
        ValueError: The text is not JSON of a tree, or the tree is not like `like`; the message
            names the leaf and how it differs.

    >>> from_json(to_json({"w": np.float32([1, np.nan]), "sizes": (3, None)}))
    {'w': array([ 1., nan], dtype=float32), 'sizes': (3, None)}
    >>> from_json(to_json({"w": np.float32([1, 2])}), like={"w": jnp.zeros(2)})
    {'w': Array([1., 2.], dtype=float32)}
    """
    try:
        tree = _decode(json.loads(arguments.text(text, "text")))
    except json.JSONDecodeError as error:
        raise InvalidValueError(
            f"text is expected to be JSON, as tree.to_json writes it; it is {text[:60]!r}: {error}."
        ) from error
    if like is None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if isinstance(leaf, _Object):
                raise InvalidValueError(
                    f"{path_name(path)!r} is an object that JSON does not hold, {leaf.name}; give "
                    f"a tree that has it: from_json(text, like)."
                )
        return tree
    found, wanted = leaves_by_path(tree), leaves_by_path(like)
    check_kinds("the JSON", {path: kind(leaf) for path, leaf in found.items()}, wanted)
    leaves = [_like(found[path], leaf) for path, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _like(found: PyTree, like: PyTree) -> PyTree:
    if not is_array(like):
        return like if kind(like) == OBJECT else found
    return from_host(host_array(found), like, key_impl(found))


def _encode(node: PyTree) -> PyTree:
    if node is None:
        return None
    if type(node) in VALUES:
        return encode_leaf(node)
    if type(node) in (list, Growing):
        return [_encode(child) for child in node]
    if type(node) is tuple:
        return {"$tuple": [_encode(child) for child in node]}
    if type(node) is dict:
        if all(type(name) is str and not name.startswith("$") for name in node):
            return {name: _encode(child) for name, child in node.items()}
        return {"$dict": [[_encode(name), _encode(child)] for name, child in node.items()]}
    if jax.tree_util.all_leaves([node]):
        return encode_leaf(node)
    # One level of any other node, since jax flattens everything that is not a leaf.
    children = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda child: child is not node)
    named = {path_name(path): child for path, child in children}
    if len(named) != len(children):
        raise InvalidValueError(f"Two parts of {describe(node)} have one name; rename one of them.")
    return _encode(named)


def encode_leaf(leaf: object) -> PyTree:
    """Return a leaf as values for `json.dumps`; see the top of this file.

    >>> encode_leaf(jax.random.key(7))
    {'$key': {'impl': 'threefry2x32', 'shape': [2], 'data': [0, 7]}}
    """
    if is_array(leaf):
        values = host_array(leaf)
        impl = key_impl(leaf)
        numbers = {"shape": list(values.shape), "data": _numbers(values)}
        if impl is not None:
            return {"$key": {"impl": impl, **numbers}}
        return {"$array": {"dtype": values.dtype.name, **numbers}}
    if type(leaf) is float and not math.isfinite(leaf):
        return {"$float": _number(leaf)}
    if type(leaf) is complex:
        return {"$complex": [_number(leaf.real), _number(leaf.imag)]}
    if type(leaf) is bytes:
        return {"$bytes": base64.b64encode(leaf).decode()}
    if type(leaf) in VALUES:
        return leaf
    return {"$object": getattr(leaf, "__qualname__", type(leaf).__qualname__)}


class _Object:
    """The mark of an object that is not data."""

    def __init__(self, name: str) -> None:
        self.name = name


_DECODERS = {
    "$tuple": lambda items: tuple(map(_decode, items)),
    "$dict": lambda items: {_decode(name): _decode(child) for name, child in items},
    "$float": float,
    "$complex": lambda parts: complex(*map(float, parts)),
    "$bytes": base64.b64decode,
    "$object": _Object,
    "$array": lambda array: _array(array, array["dtype"]),
    "$key": lambda array: as_keys(_array(array, "uint32"), array["impl"]),
}


def _decode(node: PyTree) -> PyTree:
    if isinstance(node, list):
        return [_decode(child) for child in node]
    if not isinstance(node, dict):
        return node
    if len(node) == 1 and (tag := next(iter(node))) in _DECODERS:
        try:
            return _DECODERS[tag](node[tag])
        except (KeyError, TypeError) as error:
            raise InvalidValueError(
                f"This is not a {tag} as tree.to_json writes it: {node}."
            ) from error
    return {name: _decode(child) for name, child in node.items()}


def _numbers(values: np.ndarray) -> list[float | str]:
    if jnp.issubdtype(values.dtype, np.complexfloating):
        values = np.stack([np.real(values), np.imag(values)], axis=-1)
    if jnp.issubdtype(values.dtype, np.inexact):
        # Exact in Python's floats, which give the same numbers back.
        return [_number(value) for value in values.astype(np.float64).ravel().tolist()]
    if values.dtype == np.bool_:
        return values.ravel().tolist()
    return [int(value) for value in values.ravel().tolist()]


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _array(array: dict[str, PyTree], dtype: str) -> np.ndarray:
    data, shape, sort = array["data"], tuple(array["shape"]), as_dtype(dtype)
    if jnp.issubdtype(sort, np.complexfloating):
        parts = np.array([float(value) for value in data], np.float64)
        return parts.view(np.complex128).astype(sort).reshape(shape)
    if jnp.issubdtype(sort, np.inexact):
        data = [float(value) for value in data]
    return np.array(data, sort).reshape(shape)
