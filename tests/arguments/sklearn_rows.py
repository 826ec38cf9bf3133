"""Calls of `solstice.sklearn`, whose arguments are looked at when an estimator is fitted."""

import functools

import jax.numpy as jnp
from arguments_table import row
from compat_rows import SGD, X
from kinds import count, given, only, optional
from loop_rows import CALLBACKS, EPOCHS, PROGRESS

from solstice import compat
from solstice.sklearn import Classifier

Y = [0, 1, 0, 1, 0, 1, 0]


def network(outputs):
    """Return a network that is cheap to make."""

    def apply(params, x):
        return jnp.ones((len(x), outputs)) * params["w"]

    return compat.FunctionModel(lambda key, x: {"w": jnp.ones(())}, apply, X, key=0)


# Told what it wants, it need not be traced for it.
OPTIMIZER = compat.OptaxOptimizer(SGD, wants=())
MADE = "is not supported: the NoneType None"
ARGUMENTS = {
    "net": only(network).called("net", "network").telling(MADE),
    "optimizer": only(OPTIMIZER).telling(MADE),
    "epochs": EPOCHS,
    "batch_size": count(2, most=2**31 - 1),
    "random_state": optional(count(0, least=0, most=2**32 - 1)),
    "validation_fraction": optional(only(0.5, "numpy float")),
    "callbacks": CALLBACKS.also("function"),
    "experiment_options": only(None, "None", "empty dict").called("experiment_options", "abc"),
    "progress": PROGRESS,
}
row("sklearn.Classifier", finish=lambda one: one.fit(X, Y), **ARGUMENTS)
# Both look at their arguments in the same lines, and a fit takes a while.
SHARED = {name: given(one.value) for name, one in ARGUMENTS.items()}
SHARED |= {"net": ARGUMENTS["net"], "experiment_options": ARGUMENTS["experiment_options"]}
row("sklearn.Regressor", finish=lambda one: one.fit(X, Y), **SHARED)
row(
    "sklearn.Classifier.partial_fit",
    on=functools.partial(Classifier, network, OPTIMIZER, batch_size=7),
    X=given(X),
    y=given(Y),
    classes=only([0, 1], "seven bools", "seven floats").telling("in the first call"),
)
