"""A metric's values by name, and finding a user's name among them."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import equinox as eqx

from solstice.arguments import describe
from solstice.errors import InvalidTypeError
from solstice.metrics.directions import Direction, better
from solstice.tree.pytree import PyTree

# What `compute()` returns by name: numbers, arrays, and other values of a user's metric.
Values = dict[str, Any]

# Names in other libraries.
_ALSO = {
    "acc": ("accuracy",),
    "auc": ("roc_auc", "auroc_macro"),
    "auroc": ("roc_auc",),
    "roc_auc": ("auroc_macro",),
    "recall": ("tpr_macro",),
    "precision": ("ppv_macro",),
}


def named_values(metrics: PyTree) -> Values:
    """Return the values of `metrics.compute()`, by name.

    A mapping is returned unchanged. A number or an array gets the name of the metric's class, in
    lowercase.

    Raises:
        TypeError: `compute()` returned something else.

    >>> import solstice
    >>> class Steps(solstice.Metrics):
    ...     steps: int
    ...
    ...     def merge(self, other):
    ...         return Steps(self.steps + other.steps)
    ...
    ...     def compute(self):
    ...         return self.steps
    >>> named_values(Steps(3))
    {'steps': 3}
    """
    if isinstance(metrics, type) or not callable(getattr(metrics, "compute", None)):
        raise InvalidTypeError(
            f"metrics are expected to have a method `compute`; they are {describe(metrics)}."
        )
    computed = metrics.compute()
    if isinstance(computed, Mapping):
        return dict(computed)
    if computed is None or isinstance(computed, list | tuple | set):
        raise InvalidTypeError(
            f"compute() is expected to return a mapping of names to values, a number or an array; "
            f"that of {type(metrics).__name__} returned {describe(computed)}. Return a dict, or "
            f"jnp.stack of a list."
        )
    return {type(metrics).__name__.lower(): computed}


def reported(outs: Any) -> dict[str, Direction | None] | None:
    """Return the names of a step's metrics and their directions, uncomputed; None if unknown.

    Args:
        outs: What the step returned, or the shapes of it.

    >>> import solstice
    >>> metrics = solstice.RegressionMetrics([1.0], [2.0], loss=1.0)
    >>> reported(metrics)["mae"], reported("no metrics")
    ('min', None)
    """
    if not callable(getattr(type(outs), "compute", None)):
        return None
    found: dict[str, Direction | None] = {}

    def ask(metrics: PyTree) -> None:
        found.update((name, better(metrics, name)) for name in named_values(metrics))

    try:
        eqx.filter_eval_shape(ask, outs)
    except Exception:  # noqa: BLE001 - some compute from values only; what is wrong shows in its turn
        return None
    return found


def reported_name(name: str, names: Iterable[str]) -> str | None:
    """Return the reported name that a user's name means; None for none.

    An average is found without `average_`: `loss` is `average_loss`.

    >>> reported_name("loss", ["average_loss", "accuracy"])
    'average_loss'
    >>> reported_name("inner/loss", ["inner/average_loss"])
    'inner/average_loss'
    """
    names = set(names)
    part, slash, last = name.rpartition("/")
    for one in (name, f"{part}{slash}average_{last}"):
        if one in names:
            return one
    return None


def meant_name(name: str, names: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: which name may be meant.

    >>> meant_name("val_loss", ["average_loss"])
    " Did you mean 'loss'? Names do not include the pass: watch= or the dataset does."
    >>> meant_name("acuracy", ["accuracy", "f1_macro"])
    " Did you mean 'accuracy'?"
    >>> meant_name("f1", ["accuracy", "f1_macro"]), meant_name("auroc", ["roc_auc"])
    (" Did you mean 'f1_macro'?", " Did you mean 'roc_auc'?")
    >>> meant_name("agreement", ["accuracy"])
    ''
    """
    names = list(names)
    for start in ("val", "valid", "validation", "train", "test", "eval"):
        rest = name.removeprefix(start)[1:]
        if name.startswith((f"{start}_", f"{start}/")) and reported_name(rest, names):
            return (
                f" Did you mean {rest!r}? Names do not include the pass: watch= or the dataset "
                f"does."
            )
    close = [
        *get_close_matches(name, names, 1, 0.8),
        *(one for one in names if one in _ALSO.get(name, ()) or one.startswith(f"{name}_")),
    ]
    return f" Did you mean {close[0]!r}?" if close else ""
