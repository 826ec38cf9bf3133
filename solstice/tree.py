"""Small functions on pytrees that name neither a framework nor a metric.

They never look at what an array means; that belongs to the rooms above.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from jaxtyping import Array, PyTree

_M = TypeVar("_M", bound=eqx.Module)


def replace(obj: _M, **changes: Any) -> _M:
    """Return a copy of `obj` with some of its fields changed; `obj` stays as it is.

    It works on every `equinox.Module`, with a custom `__init__` or without: neither
    `__init__` nor `__check_init__` runs again.

    Args:
        obj: The module to copy.
        **changes: New values by field name.

    Raises:
        TypeError: `obj` is not an `equinox.Module`.
        AttributeError: A name is not a field; the message lists the fields.

    >>> import equinox, solstice
    >>> class Point(equinox.Module):
    ...     x: int
    ...     y: int
    >>> solstice.replace(Point(1, 2), y=5)
    Point(x=1, y=5)
    """
    if not isinstance(obj, eqx.Module) or isinstance(obj, type):
        raise TypeError(
            f"replace() copies an equinox.Module (an Experiment, a Model, a Metrics, ...); it got "
            f"{describe(obj)}. For a plain dataclass use dataclasses.replace."
        )
    fields = [field.name for field in dataclasses.fields(obj)]
    unknown = [name for name in changes if name not in fields]
    if unknown:
        raise AttributeError(
            f"{type(obj).__name__} has no field {', '.join(map(repr, unknown))}. "
            f"Its fields are: {', '.join(fields)}."
        )
    new = object.__new__(type(obj))
    for name in fields:
        if name in changes:
            object.__setattr__(new, name, changes[name])
        elif name in obj.__dict__:
            object.__setattr__(new, name, obj.__dict__[name])
    return new


def owned(tree: PyTree) -> PyTree:
    """Return `tree` with each array as a fresh, strongly typed jax array.

    Fresh, so that donating it never takes a buffer that somebody else still holds; strongly
    typed, so that the second step does not trace again. Anything but an array is left alone.

    >>> import jax.numpy as jnp
    >>> owned({"rate": jnp.asarray(0.1)})["rate"].weak_type
    False
    """
    return jax.tree.map(lambda leaf: _owned_array(leaf) if eqx.is_array(leaf) else leaf, tree)


def _owned_array(leaf: Any) -> Array:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.copy(leaf)
    return jnp.array(leaf, dtype=jax.dtypes.canonicalize_dtype(leaf.dtype), copy=True)


def is_key(value: Any) -> bool:
    """Say whether `value` is one PRNG key, raw or typed.

    >>> is_key(jax.random.key(0)), is_key(jax.random.PRNGKey(0)), is_key(0)
    (True, True, False)
    """
    if not eqx.is_array(value):
        return False
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value.ndim == 0
    return value.dtype == jnp.uint32 and value.ndim == 1


def as_key(key: Any) -> Array:
    """Return `key` as a jax PRNG key: an int seed becomes one, a raw or typed key stays as it is.

    Raises:
        TypeError: `key` is neither a seed nor one single key.

    >>> as_key(0) == jax.random.key(0)
    Array(True, dtype=bool)
    """
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        return jax.random.key(key)
    if is_key(key):
        return jnp.asarray(key)
    raise TypeError(
        f"key is expected to be an int seed or one PRNG key, such as jax.random.key(0); it is "
        f"{describe(key)}."
    )


def depends_on(function: Callable[..., PyTree], argument: PyTree, *rest: PyTree) -> bool:
    """Say whether an output of `function(argument, *rest)` is computed from `argument`.

    The function is traced, never run.

    >>> depends_on(lambda key, x: x + 1, jax.random.key(0), 1.0)
    False
    >>> depends_on(lambda key, x: x + jax.random.normal(key), jax.random.key(0), 1.0)
    True
    """
    return any(used_leaves(function, argument, *rest))


def used_leaves(function: Callable[..., PyTree], argument: PyTree, *rest: PyTree) -> list[bool]:
    """Say of each leaf of `argument` whether an output of `function(argument, *rest)` needs it.

    It looks into scans and jitted functions; what a loop of unknown length, or a function with a
    derivative of its own, takes counts as needed.

    >>> used_leaves(lambda pair: 2 * pair["b"], {"a": 1.0, "b": 2.0})
    [False, True]
    """
    # A function of its own: jax hashes what it traces, which a half-built module cannot do.
    jaxpr = jax.make_jaxpr(lambda *given: function(*given))(argument, *rest).jaxpr  # noqa: PLW0108
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return used[: len(jax.tree.leaves(argument))]


def describe(value: Any) -> str:
    """Say in a few words what `value` is, for an error message: type, shape, dtype or value.

    >>> import numpy as np
    >>> describe(np.zeros((2, 3), np.float32)), describe("adam"), describe(int)
    ('float32[2,3]', "the str 'adam'", "the class 'int'")
    """
    if isinstance(value, type):
        return f"the class {value.__name__!r}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, tuple | list | dict) and len(value) <= 4:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k!r}: {describe(v)}" for k, v in value.items()) + "}"
        inner = ", ".join(map(describe, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    text = repr(value)
    if len(text) > 60:
        return f"a {type(value).__module__}.{type(value).__qualname__}"
    return f"the {type(value).__name__} {text}"


def path_name(path: tuple[Any, ...]) -> str:
    """Return a jax key path as one string of names, joined by slashes.

    >>> path_name(jax.tree_util.tree_leaves_with_path({"dense": [1.0]})[0][0])
    'dense/0'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a tree by the names of their paths, in the tree's order.

    Raises:
        ValueError: Two paths have one name, as "a/b" beside {"a": {"b": ...}} do.

    >>> leaves_by_path({"dense": [1.0, 2.0]})
    {'dense/0': 1.0, 'dense/1': 2.0}
    """
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        if name in leaves:
            raise ValueError(f"Two leaves of the tree are named {name!r}; rename one of them.")
        leaves[name] = leaf
    return leaves


def leaf_names(structure: Any) -> list[str]:
    """Return the names of the leaves' paths in a tree's structure.

    >>> leaf_names(jax.tree.structure({"dense": [1.0, 2.0]}))
    ['dense/0', 'dense/1']
    """
    return list(leaves_by_path(jax.tree.unflatten(structure, range(structure.num_leaves))))


def tree_difference(expected: Any, found: Any) -> str:
    """Say in a few words how two structures differ, for an error message.

    >>> tree_difference(jax.tree.structure({"w": 1, "b": 2}), jax.tree.structure({"w": 1}))
    "they lack 'b'"
    """
    expected_names, found_names = leaf_names(expected), leaf_names(found)
    missing = [repr(name) for name in expected_names if name not in found_names]
    unknown = [repr(name) for name in found_names if name not in expected_names]
    parts = [f"they lack {', '.join(missing[:3])}"] * bool(missing)
    parts += [f"they have {', '.join(unknown[:3])} besides"] * bool(unknown)
    return " and ".join(parts) or f"those were {expected}, these are {found}"
