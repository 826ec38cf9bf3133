"""Capture the outputs of a network's sub-modules in a forward pass, or change them."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from solstice import arguments
from solstice.compat.model import Keys, Model
from solstice.compat.surgery.interpreter import TaggedProgram
from solstice.compat.surgery.where import Where, chosen
from solstice.errors import InvalidValueError
from solstice.tree.pytree import PyTree


def capture(
    model: Model,
    *inputs: PyTree,
    where: Where = "*",
    key: Keys = None,
    train: bool = False,
    **kwargs: PyTree,
) -> OrderedDict[str, PyTree]:
    """Return the outputs of sub-modules in a forward pass, by path, in order of execution.

    A sub-module comes before the one that calls it; the network itself is not included. One that is
    called several times has a path for each call: "dense#0", "dense#1". Values in a scan are
    stacked along a leading axis; in a vmap, the mapped axis comes first.

    Args:
        model: An adapted network. Those of Flax, Haiku, Equinox and Keras have the library's own
            paths; in others, name values with `compat.tag`.
        *inputs: Batched inputs, as the model's call takes them.
        where: A glob over paths, such as `"*/attention*"`, whose `*` also matches `/`; or a
            function of a path that returns whether to capture it. "dense" selects all its calls.
        key: As the model's call takes it.
        train: Whether the pass is in training mode; the model does not change in any case.
        **kwargs: As the model's call takes them.

    Raises:
        ValueError: No path matches; or a value is in a loop of unknown length, or in a branch.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from solstice import compat
    >>> x = jnp.ones((4, 3))
    >>> model = compat.as_model(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), x, key=0)
    >>> {path: value.shape for path, value in compat.capture(model, x).items()}
    {'layers_0': (4, 8), 'layers_2': (4, 2)}

    It works in compiled functions too:

    >>> @jax.jit
    ... def dead(model, x):
    ...     hidden = compat.capture(model, x, where="layers_0")["layers_0"]
    ...     return (hidden <= 0).mean()
    >>> dead(model, x).shape
    ()
    """
    program = _traced(model, inputs, key, train, kwargs)
    _, found = program.run(_sites(model, program, where), {}, {})
    # Ordered, since jax sorts the keys of a plain dict where it comes out of a compiled function.
    return OrderedDict((program.sites[number].path, value) for number, value in found.items())


def intervene(
    model: Model,
    *inputs: PyTree,
    edits: Mapping[str, PyTree | Callable[[PyTree], PyTree]],
    key: Keys = None,
    train: bool = False,
    **kwargs: PyTree,
) -> PyTree:
    """Return a network's outputs in a pass with some outputs of sub-modules changed.

    Args:
        model: An adapted network, as for `compat.capture`.
        *inputs: Batched inputs, as the model's call takes them.
        edits: From paths, or globs over paths, to a value that replaces the output, such as one
            from `compat.capture`, or to a function of the output, which in a scan is called in each
            step. The first that matches wins. Shapes and dtypes must not change.
        key: As the model's call takes it.
        train: Whether the pass is in training mode; the model does not change in any case.
        **kwargs: As the model's call takes them.

    Raises:
        ValueError: A path or glob matches nothing that is not edited already; a value has another
            structure, shape or dtype; or values there cannot be changed.

    >>> import equinox as eqx, jax, jax.numpy as jnp
    >>> from solstice import compat
    >>> x = jnp.ones((4, 3))
    >>> model = compat.as_model(eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0)))
    >>> without_hidden = compat.intervene(model, x, edits={"layers/0": jnp.zeros_like})
    >>> bool((without_hidden == model.params["layers/1/bias"]).all())
    True
    """
    edits = arguments.mapping(edits, "edits")
    program = _traced(model, inputs, key, train, kwargs)
    taken: dict[int, str] = {}
    for glob in edits:
        found = _sites(model, program, glob, f"edits[{glob!r}]")
        fresh = [number for number in found if number not in taken]
        if not fresh:
            raise InvalidValueError(
                f"edits[{glob!r}] matches only values that earlier edits change. The first match "
                "wins: put it before them."
            )
        taken |= dict.fromkeys(fresh, glob)
    values, changes = {}, {}
    for number, glob in taken.items():
        site, edit = program.sites[number], edits[glob]
        if site.name in program.differentiated:
            raise InvalidValueError(
                f"edits[{glob!r}] would change the value at {site.path!r}, but the "
                f"network itself differentiates through it, and would use the wrong derivative. "
                f"Do not edit it."
            )
        if callable(edit):
            changes[number] = edit
        else:
            values[number] = site.arrays(edit, f"edits[{glob!r}]")
    return program.run((), values, changes)[0]


def sub_modules(model: Model, *inputs: PyTree) -> list[str]:
    """Return the paths of all values that can be captured in an evaluation; traced, not run.

    >>> import jax, jax.numpy as jnp
    >>> from jax.example_libraries import stax
    >>> from solstice import compat
    >>> network = stax.serial(compat.tag("hidden", stax.Dense(8)), stax.Relu)
    >>> sub_modules(compat.as_model(network, jnp.ones((4, 3)), key=0), jnp.ones((4, 3)))
    ['hidden']
    """
    program = _traced(model, inputs, None, False, {})
    return [
        site.path
        for site in program.sites
        if site.within is None and site.name not in program.differentiated and site.is_of_arrays
    ]


def _traced(
    model: Model, inputs: tuple[PyTree, ...], key: Keys, train: bool, kwargs: dict[str, PyTree]
) -> TaggedProgram:
    what = "a compat.Model, such as as_model(network, example, key=key)"
    arguments.instance(model, "model", Model, what)

    def forward(model: Model, inputs: Any, key: Any, kwargs: Any) -> PyTree:
        return model.tagged(*inputs, key=key, train=train, **kwargs)[0]

    return TaggedProgram(forward, model, inputs, key, kwargs)


def _sites(model: Model, program: TaggedProgram, where: Where, name: str = "where") -> list[int]:
    """Return the numbers of the tags that `where` selects."""
    if not program.sites:
        raise InvalidValueError(
            f"{type(model).__name__}: this network called no sub-modules in this pass, so there is "
            f"nothing to capture or change. Name values in its functions with "
            f"compat.tag(name, value), and Stax layers before they are joined."
        )
    paths, names = [site.path for site in program.sites], [site.name for site in program.sites]
    found = chosen(paths, where, name, what="sub-modules", groups=names)
    for number in found:
        site = program.sites[number]
        if site.within is not None:
            raise InvalidValueError(
                f"{name} selects the value at {site.path!r}, which is inside a {site.within!r} of "
                "jax: the number of times it is computed is not known in advance, so there is no "
                "single value. Select another one, such as the module around it."
            )
    return found
