"""Tags: an identity operation that gives a value a name in a traced program.

A tag exists only while `capture` or `intervene` traces a network; in any other call `tag` returns
its argument, so networks with tags compute, compile and train exactly like those without.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.static import Static
from solstice.tree.pytree import PyTree, PyTreeDef

_T = TypeVar("_T")

# jax caches traces in this context separately, so a function that is jitted inside the network is
# traced again, with its tags.
tagging: Any = jax.make_user_context(False)


class Form(NamedTuple):
    """The structure of a tagged value: `parts` has None for each of its arrays."""

    structure: PyTreeDef
    parts: tuple[Any, ...]

    def join(self, arrays: list[Any]) -> PyTree:
        """Return the value with these arrays."""
        left = iter(arrays)
        leaves = [next(left) if part is None else part for part in self.parts]
        return jax.tree.unflatten(self.structure, leaves)


def tag(name: str, value: _T) -> _T:
    """Name a value inside a network, for `compat.capture` and `compat.intervene`.

    The sub-modules of Flax, Haiku, Equinox and Keras need no tag: they have paths. In a plain
    function, tag values; in a Stax network, tag layers before they are joined.

    Args:
        name: Its path, such as "block/attention". A name that is used several times in a pass gets
            a number for each use: "block/attention#0", "block/attention#1".
        value: An array or a tree of them, which is returned; or a function, or a Stax
            (init, apply) pair, which is returned with its outputs tagged.

    Raises:
        TypeError: The value is a module, or a class.
        ValueError: The name is empty or has a "#".

    >>> import jax, jax.numpy as jnp
    >>> from jax.example_libraries import stax
    >>> from solstice import compat
    >>> x = jnp.ones((4, 3))
    >>> network = stax.serial(compat.tag("hidden", stax.Dense(8)), stax.Relu, stax.Dense(2))
    >>> model = compat.as_model(network, x, key=0)
    >>> compat.capture(model, x)["hidden"].shape
    (4, 8)

    >>> def apply(params, x):
    ...     hidden = compat.tag("hidden", jnp.tanh(x @ params["w"]))
    ...     return hidden.sum(axis=-1)
    >>> def init(key, x):
    ...     return {"w": jax.random.normal(key, (3, 8))}
    >>> model = compat.FunctionModel(init, apply, x, key=0)
    >>> compat.capture(model, x)["hidden"].shape
    (4, 8)
    """
    name = arguments.text(name, "name")
    if "#" in name:
        raise InvalidValueError(
            f"name is expected to have no '#', which numbers the uses of a name; it is {name!r}."
        )
    given: Any = value
    if type(given) is tuple and len(given) == 2 and all(map(callable, given)):
        init, apply = given
        return (init, tagged_call(name, apply))  # pyright: ignore[reportReturnType]
    if not callable(given):
        new: Any = tagged(name, given)
        return new
    if not _is_function(given):
        raise InvalidTypeError(
            "value is expected to be an array, a tree of them, a function or a Stax layer; it is "
            f"{describe(given)}. Inside a function, its parameters would be hidden from the "
            f"network that it is part of, and not trained. Tag its output: compat.tag({name!r}, "
            "layer(x))."
        )
    return tagged_call(name, given)  # pyright: ignore[reportReturnType]


def tagged(path: str, value: PyTree) -> PyTree:
    """Return a value with a tag on its arrays; outside of `tagging`, the value itself."""
    if not tagging.value:
        return value
    leaves, structure = jax.tree.flatten(value)
    parts = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
    form = Form(structure, parts)
    return form.join(tag_p.bind(*filter(_is_array, leaves), path=path, form=Static(form)))


def tagged_call(path: str, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return a function that tags its outputs."""

    @functools.wraps(function)
    def call(*args: PyTree, **kwargs: PyTree) -> PyTree:
        return tagged(path, function(*args, **kwargs))

    return call


@functools.cache
def tagged_class(cls: type[_T], path: str) -> type[_T]:
    """Return a subclass that tags the outputs of its `__call__`; the same one each time for a path.

    For every class, jax keeps a compiled program, and Flax and Equinox a registration.
    """

    def __call__(self: Any, *args: PyTree, **kwargs: PyTree) -> PyTree:  # noqa: N807
        return tagged(path, cls.__call__(self, *args, **kwargs))

    functools.update_wrapper(__call__, cls.__call__)
    about = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls)(cls.__name__, (cls,), {"__call__": __call__, **about})


def tag_calls(path_of: Callable[[Any], str]) -> Callable[..., PyTree]:
    """Return a method interceptor that tags the outputs of each module's `__call__`.

    Args:
        path_of: Returns a module's path; empty for the network itself, which gets no tag.
    """
    active: list[Any] = []

    def intercept(
        method: Callable[..., PyTree], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any
    ) -> PyTree:
        module = context.module
        inherited = any(one is module for one in active)  # called by super().__call__
        if context.method_name != "__call__" or inherited:
            return method(*args, **kwargs)
        active.append(module)
        try:
            outputs = method(*args, **kwargs)
        finally:
            active.pop()
        path = path_of(module)
        return tagged(path, outputs) if path else outputs

    return intercept


def _is_function(value: Callable[..., Any]) -> bool:
    """Return whether a callable is a function, also one made by jax or functools."""
    if isinstance(value, functools.partial):
        return _is_function(value.func)
    made_by = type(value).__module__.partition(".")[0]
    return inspect.isroutine(value) or made_by in ("functools", "jax", "jaxlib", "numpy")


def _is_array(leaf: object) -> bool:
    return isinstance(leaf, jax.Array)


tag_p = Primitive("solstice_tag")
tag_p.multiple_results = True
tag_p.def_impl(lambda *arrays, **_: list(arrays))
tag_p.def_abstract_eval(lambda *avals, **_: list(avals))
mlir.register_lowering(tag_p, lambda context, *arrays, **_: list(arrays))

# A tag in a derivative that the network takes itself: no value can be replaced there.
derivative_p = Primitive("solstice_tag_derivative")
derivative_p.def_impl(lambda array, **_: array)
derivative_p.def_abstract_eval(lambda aval, **_: aval)
mlir.register_lowering(derivative_p, lambda context, array, **_: [array])
ad.deflinear2(derivative_p, lambda tangent, _, **about: [derivative_p.bind(tangent, **about)])


def _differentiate(arrays: Any, tangents: Any, *, path: str, form: Static[Form]) -> Any:
    moved = [
        one
        if isinstance(one, ad.Zero) or one.dtype == jax.dtypes.float0
        else derivative_p.bind(one, path=path)
        for one in tangents
    ]
    return tag_p.bind(*arrays, path=path, form=form), moved


def _batch(arrays: Any, axes: Any, **about: Any) -> Any:
    """Values stacked by vmap have the batch axis first."""
    moved = [
        array if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, axes, strict=True)
    ]
    return tag_p.bind(*moved, **about), [None if axis is None else 0 for axis in axes]


def _batch_derivative(arrays: Any, axes: Any, **about: Any) -> Any:
    return derivative_p.bind(*arrays, **about), axes[0]


ad.primitive_jvps[tag_p] = _differentiate
batching.primitive_batchers[tag_p] = _batch
batching.primitive_batchers[derivative_p] = _batch_derivative
