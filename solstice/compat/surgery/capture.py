"""What a network's sub-modules return in a forward pass: captured, or changed on the way."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.model import Keys, Model
from solstice.compat.surgery.interpreter import Site, TaggedProgram
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.names import matches
from solstice.tree.pytree import PyTree


def capture(
    model: Model,
    *inputs: PyTree,
    where: str | Callable[[str], Any] = "*",
    key: Keys = None,
    train: bool = False,
    **kwargs: PyTree,
) -> OrderedDict[str, PyTree]:
    """Return what sub-modules return in a forward pass, by their paths, in order of execution.

    A sub-module comes before the one that calls it; the network itself is not among them. What is
    called several times has a path for each call: "dense#0", "dense#1". The values in a scan are
    stacked along a leading axis; those in a vmap have the mapped axis first.

    Args:
        model: An adapted network. Those of Flax, Haiku, Equinox and Keras have the library's own
            paths; others return what was named by `compat.tag`.
        *inputs: Batched inputs, as the model's call takes them.
        where: A glob for paths, such as "*/attention*", whose `*` stands for slashes too, or a
            function that says of a path whether to return its value. "dense" stands for all its
            calls.
        key: As the model's call takes it.
        train: Whether the pass is one of training; the model stays as it is anyway.
        **kwargs: As the model's call takes them.

    Raises:
        ValueError: No path matches; or a value is in a loop of unknown length, or in a branch.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from solstice import compat
    >>> x = jnp.ones((4, 3))
    >>> model = compat.as_model(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), x, key=0)
    >>> {path: value.shape for path, value in compat.capture(model, x).items()}
    {'layers_0': (4, 8), 'layers_2': (4, 2)}

    It goes into a compiled function as any other call:

    >>> @jax.jit
    ... def dead(model, x):
    ...     hidden = compat.capture(model, x, where="layers_0")["layers_0"]
    ...     return (hidden <= 0).mean()
    >>> dead(model, x).shape
    ()
    """
    program = _traced(model, inputs, key, train, kwargs)
    chosen = _chosen(model, program, where)
    _, found = program.run(chosen, {}, {})
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
    """Return a network's outputs in a pass in which what sub-modules return is changed.

    Args:
        model: An adapted network, as for `compat.capture`.
        *inputs: Batched inputs, as the model's call takes them.
        edits: By path, or glob for paths, what the network goes on with: a value, such as one of
            `compat.capture`; or a function of what the sub-module returned, which in a scan is
            called in each step. The first that matches wins. Shapes and dtypes must stay.
        key: As the model's call takes it.
        train: Whether the pass is one of training; the model stays as it is anyway.
        **kwargs: As the model's call takes them.

    Raises:
        ValueError: A path or glob matches nothing that is still to be changed; a value has another
            structure, shape or dtype; or it is where nothing can be exchanged.

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
        chosen = _chosen(model, program, glob, f"edits[{glob!r}]")
        fresh = [number for number in chosen if number not in taken]
        if not fresh:
            raise InvalidValueError(
                f"edits[{glob!r}] matches only what earlier edits change. The first match wins: "
                f"put it before them."
            )
        taken |= dict.fromkeys(fresh, glob)
    values, changes = {}, {}
    for number, glob in taken.items():
        site, edit = program.sites[number], edits[glob]
        if site.name in program.differentiated:
            raise InvalidValueError(
                f"edits[{glob!r}] would change the value at {site.path!r}, through which the "
                f"network itself takes a derivative, which would not be that of the changed one. "
                f"Leave it as it is."
            )
        if callable(edit):
            changes[number] = edit
        else:
            values[number] = site.arrays(edit, f"edits[{glob!r}]")
    return program.run((), values, changes)[0]


def sub_modules(model: Model, *inputs: PyTree) -> list[str]:
    """Return the paths of all that can be captured and changed in an evaluation; traced, not run.

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


def _chosen(
    model: Model,
    program: TaggedProgram,
    where: str | Callable[[str], Any],
    name: str = "where",
) -> list[int]:
    """Return the numbers of the tags that `where` chooses."""
    if isinstance(where, str):
        glob = where
        chooses: Any = lambda site: matches(site.path, glob) or matches(site.name, glob)  # noqa: E731
    elif not callable(where):
        raise InvalidTypeError(
            f"{name} is expected to be a glob for paths, such as '*/attention', or a function of "
            f"(path); it is {describe(where)}."
        )
    else:
        where = arguments.function(where, name, "path")
        chooses = lambda site: where(site.path)  # noqa: E731
    chosen = [number for number, site in enumerate(program.sites) if chooses(site)]
    if not chosen:
        raise InvalidValueError(_nothing(model, program.sites, where, name))
    for number in chosen:
        site = program.sites[number]
        if site.within is not None:
            raise InvalidValueError(
                f"{name} chooses the value at {site.path!r}, which is in a {site.within!r} of jax: "
                f"how often it is computed is known only when the network runs, so there is no "
                f"one value. Choose others, such as the module around it."
            )
    return chosen


def _nothing(model: Model, sites: list[Site], where: Any, name: str) -> str:
    """Say why nothing was chosen."""
    if not sites:
        return (
            f"{type(model).__name__}: this network called no sub-modules in this pass, so there is "
            f"nothing to capture or to change. Name values inside of its functions with "
            f"compat.tag(name, value), and layers of Stax before they are joined."
        )
    paths = [site.path for site in sites]
    near = get_close_matches(where, paths, 5, 0.5) if isinstance(where, str) else []
    which = repr(where) if isinstance(where, str) else "the function"
    listed = ", ".join(map(repr, near or paths[:8]))
    more = "" if near or len(paths) <= 8 else f" and {len(paths) - 8} more"
    said = "Near it are" if near else "The paths are"
    return (
        f"{name} is expected to choose sub-modules, and {which} chooses none. {said} "
        f"{listed}{more}."
    )
