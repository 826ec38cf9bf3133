"""Parameter groups: a separate optimizer for each part of the parameters, chosen by path.

The parts may use optimizers of different libraries.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from solstice.arguments import describe
from solstice.compat.optimizer import (
    Optimizer,
    Signature,
    check_extras,
    check_params,
    check_trees,
    signature,
)
from solstice.compat.registry import as_optimizer
from solstice.errors import InvalidTypeError, InvalidValueError, SolsticeError
from solstice.static import Static
from solstice.tree.fields import replace
from solstice.tree.names import matches
from solstice.tree.naming import leaves_by_path
from solstice.tree.overwritten import is_box, overwrite, set_apart, trained
from solstice.tree.pytree import PyTree

_NAME = "by_path"


def by_path(rules: Mapping[str, Any]) -> "PathOptimizer":
    """Return an optimizer of groups: each parameter follows the first rule that matches its path.

    Paths are those that `tree.paths(model.params)` lists, such as "Dense_0/kernel"; in a glob, `*`
    is any text, slashes included, `?` one character. Each part is initialised and updated
    separately: a transformation of all parameters, such as clipping by the global norm, sees only
    its part. `summary` shows the rule of each parameter.

    A group may be frozen as a whole (`compat.freeze`, None in `params`). Its optimizer then takes
    no steps: its count and schedule start or continue when it has parameters.

    Args:
        rules: A mapping from globs to optimizers: transformations, optimizers of any library, or
            `compat.Optimizer`s. A rule "*" at the end applies to the rest, if any.

    Raises:
        TypeError: It is not such a mapping.
        ValueError: In `init`: a parameter matches no glob; or a glob other than "*" matches no
            parameter, frozen ones included, or only those that earlier ones have taken.

    >>> import jax.numpy as jnp, optax
    >>> from solstice import compat
    >>> rates = {"*/bias": 0.1, "head/*": 0.5, "*": 1.0}
    >>> opt = compat.by_path({glob: optax.sgd(rate) for glob, rate in rates.items()})
    >>> params = {part: {"bias": jnp.ones(1), "kernel": jnp.ones(1)} for part in ("body", "head")}
    >>> opt = opt.init(params)
    >>> opt.groups()
    {'body/bias': '*/bias', 'body/kernel': '*', 'head/bias': '*/bias', 'head/kernel': 'head/*'}
    >>> new, opt = opt(params, params)
    >>> float(new["body"]["kernel"][0]), float(new["head"]["kernel"][0])
    (0.0, 0.5)
    """
    if not isinstance(rules, Mapping) or not rules:
        raise InvalidTypeError(
            f"rules of by_path are expected to be a mapping from globs to optimizers, such as "
            f'{{"*/bias": optax.sgd(0.1), "*": optax.adam(1e-3)}}; they are {describe(rules)}.'
        )
    for glob in rules:
        if not isinstance(glob, str) or not glob:
            raise InvalidTypeError(
                f"A rule of by_path is expected to have a glob, such as 'head/*'; one has "
                f"{describe(glob)}."
            )
    parts = []
    for glob, optimizer in rules.items():
        with _naming(glob):
            parts.append(as_optimizer(optimizer))
    return PathOptimizer(tuple(rules), tuple(parts))


class PathOptimizer(Optimizer):
    """The result of `by_path`: an optimizer for each group of parameters.

    Attributes:
        parts: The groups' optimizers, in the order of the rules.
        globs: The rules' globs.

    >>> import jax.numpy as jnp, optax
    >>> from solstice import compat
    >>> opt = compat.by_path({"b": optax.sgd(0.1), "*": optax.adam(0.1)})
    >>> opt.init({"b": jnp.ones(1), "w": jnp.ones(2)}).globs
    ('b', '*')
    """

    parts: tuple[Optimizer, ...]
    globs: tuple[str, ...] = eqx.field(static=True)
    wants: tuple[str, ...] = eqx.field(static=True)
    # Which part each leaf of the trained parameters belongs to, in their order.
    _places: tuple[int, ...] = eqx.field(static=True)
    _signature: Static[Signature] | None = eqx.field(static=True)

    def __init__(self, globs: tuple[str, ...], parts: tuple[Optimizer, ...]) -> None:
        self.parts, self.globs = parts, globs
        self.wants, self._places = _wants(parts), ()
        self._signature = None

    def init(self, params: PyTree) -> Self:
        return self._made(params, lambda part, own: part.init(own))

    def retarget(self, params: PyTree) -> Self:
        return self._made(params, lambda part, own: part.retarget(own))

    def _made(self, params: PyTree, make: Callable[[Optimizer, PyTree], Optimizer]) -> Self:
        check_params(params)
        own = trained(params)
        nodes = leaves_by_path(params, is_leaf=lambda node: node is None or is_box(node))
        holes = [path for path, node in nodes.items() if node is None]
        places = _places(list(leaves_by_path(own)), holes, self.globs)
        divided = _divided(own, places, len(self.parts))
        for i, part in enumerate(self.parts):
            if i not in places and not isinstance(part, PathOptimizer):
                # Line searches cannot be initialised without a parameter.
                divided[i] = {"stand_in": jnp.zeros(())}
        parts = []
        for glob, part, some in zip(self.globs, self.parts, divided, strict=True):
            with _naming(glob):
                parts.append(make(part, some))
        return replace(
            self,
            parts=tuple(parts),
            wants=_wants(tuple(part for i, part in enumerate(parts) if i in places)),
            _places=places,
            _signature=signature(params),
        )

    def __call__(self, grads: PyTree, params: PyTree, **extras: PyTree) -> tuple[PyTree, Self]:
        check_trees(_NAME, self._signature, gradients=grads, parameters=params)
        extras = check_extras(_NAME, self.wants, extras)
        grads, params, extras, finish = set_apart(grads, params, extras)
        count = len(self.parts)
        split = [_divided(tree, self._places, count) for tree in (grads, params)]
        grad = extras.get("grad")
        gradients = [None] * count if grad is None else _divided(grad, self._places, count)
        news, parts = [], list(self.parts)
        for i in sorted(set(self._places)):
            own_grads, own, own_grad = split[0][i], split[1][i], gradients[i]
            theirs = dict(extras)
            if grad is not None:
                theirs["grad"] = own_grad
            if "value_fn" in extras:  # a function of the part's parameters, with the others fixed
                theirs["value_fn"] = _of_a_part(extras["value_fn"], params)
            new, parts[i] = parts[i](own_grads, own, **theirs)
            news.append(new)
        return finish(eqx.combine(*news, params)), replace(self, parts=tuple(parts))

    def eval_params(self, params: PyTree) -> PyTree:
        if self._signature is None:
            return params
        own = trained(params)
        divided = _divided(own, self._places, len(self.parts))
        each = [self.parts[i].eval_params(divided[i]) for i in sorted(set(self._places))]
        return overwrite(eqx.combine(*each, own), params)

    def learning_rate(self) -> Array | None:
        """Return the rate of a single rule; None if there are several, which may differ."""
        rates = self.learning_rates()
        return next(iter(rates.values())) if len(self.parts) == len(rates) == 1 else None

    def learning_rates(self) -> dict[str, Array]:
        """Return the known rates of the groups, as `learning_rate/{glob}`.

        Rates of nested groups are `learning_rate/{glob}/{inner glob}`.
        """
        return {
            "/".join(filter(None, (kind, glob, inner))): rate
            for glob, part in zip(self.globs, self.parts, strict=True)
            for name, rate in part.learning_rates().items()
            for kind, _, inner in [name.partition("/")]
        }

    def for_trained(self, rate: object) -> object:
        return {self.globs[i]: self.parts[i].for_trained(rate) for i in set(self._places)}

    def with_learning_rate(self, rate: object) -> Self:
        """Return the optimizer with this rate in every group; a function gets each group's rate.

        A mapping from globs gives the rates of these groups alone.
        """
        check_trees(_NAME, self._signature)
        rates = rate if isinstance(rate, Mapping) else dict.fromkeys(self.globs, rate)
        for glob in rates:
            if glob not in self.globs:
                raise InvalidValueError(
                    f"rate is expected to name groups of by_path, which are "
                    f"{', '.join(map(repr, self.globs))}; it names {glob!r}."
                )
        parts = list(self.parts)
        for i, glob in enumerate(self.globs):
            if glob in rates:
                with _naming(glob):
                    parts[i] = parts[i].with_learning_rate(rates[glob])
        return replace(self, parts=tuple(parts))

    def groups(self) -> dict[str, str]:
        if self._signature is None:
            return {}
        structure = self._signature.value.structure
        paths = leaves_by_path(trained(jax.tree.unflatten(structure, self._signature.value.leaves)))
        return {path: self.globs[i] for path, i in zip(paths, self._places, strict=True)}


@contextlib.contextmanager
def _naming(glob: str) -> Iterator[None]:
    """Add to an error the rule of the optimizer that raised it."""
    try:
        yield
    except SolsticeError as error:
        error.add_note(f"It is the optimizer of the rule {glob!r} of by_path.")
        raise


def _wants(parts: tuple[Optimizer, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part.wants))


def _places(paths: list[str], holes: list[str], globs: tuple[str, ...]) -> tuple[int, ...]:
    """Return which glob each path matches first.

    Args:
        paths: The parameters' paths.
        holes: The paths of frozen leaves, which may become parameters.
        globs: The globs.
    """
    first = {
        path: next((i for i, glob in enumerate(globs) if matches(path, glob)), None)
        for path in (*paths, *holes)
    }
    places = [place for path in paths if (place := first[path]) is not None]
    if len(places) < len(paths):
        lost = ", ".join(repr(path) for path in paths if first[path] is None)
        raise InvalidValueError(
            f"Each parameter is expected to match a glob of by_path ({', '.join(globs)}); {lost} "
            f"match none. Add a rule for them, or a rule '*' at the end for the rest."
        )
    for i, glob in enumerate(globs):
        if i in first.values() or glob == "*":
            continue
        taken = [path for path in first if matches(path, glob)]
        if taken:
            raise InvalidValueError(
                f"The rule {glob!r} of by_path matches only parameters that earlier rules match "
                f"({', '.join(map(repr, taken))}). The first match wins: put it before them."
            )
        raise InvalidValueError(
            f"The rule {glob!r} of by_path matches none of the parameters, whose paths are "
            f"{', '.join(map(repr, first))}. Correct or remove it."
        )
    return tuple(places)


def _divided(tree: PyTree, places: tuple[int, ...], count: int) -> list[PyTree]:
    """Return a tree for each part, with None for the others' leaves."""
    leaves, structure = jax.tree.flatten(tree)
    return [
        jax.tree.unflatten(
            structure, [leaf if i == at else None for leaf, at in zip(leaves, places, strict=True)]
        )
        for i in range(count)
    ]


def _of_a_part(value_fn: Callable[[PyTree], Array], params: PyTree) -> Callable[[PyTree], Array]:
    return lambda some: value_fn(eqx.combine(some, params))
