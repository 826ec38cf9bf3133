"""Every law of a Model on every network, and of an Optimizer on every kind of optimizer."""

import jax
import pytest
from networks import LIBRARIES
from networks.common import INPUTS
from optimizer_table import ADAPTERS, LOOPS, TABLES

from solstice.testing import (
    MODEL_LAWS,
    OPTIMIZER_LAWS,
    LawError,
    ModelSubject,
    OptimizerSubject,
    check_model,
    check_optimizer,
)

# Facts of a library that no adapter can mend.
EXCLUDED = {
    # Stax has no running statistics: its batch norm normalises by the batch in evaluation too.
    ("stax", "cnn"): ("eval_is_per_example",),
}

# The smallest network is checked always, the others in the whole run.
ROWS = [
    pytest.param(library, kind, marks=() if kind == "mlp" else pytest.mark.slow)
    for library, subjects in LIBRARIES.items()
    for kind in subjects
]


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_library_lacks_a_network(library):
    assert set(LIBRARIES[library]) == set(INPUTS)


@pytest.mark.parametrize(("library", "kind"), ROWS)
def test_every_law_holds(library, kind):
    subject = LIBRARIES[library][kind]
    check_model(
        subject.make_model,
        subject.inputs,
        exclude=EXCLUDED.get((library, kind), ()),
        native=subject.call,
        examples=2,
    )


@pytest.mark.parametrize(("row", "laws"), EXCLUDED.items(), ids=str)
def test_what_is_excluded_is_still_so(row, laws):
    library, kind = row
    subject = LIBRARIES[library][kind]
    for law in MODEL_LAWS:
        if law.name in laws:
            with pytest.raises(LawError):
                law.check(ModelSubject(subject.make_model, subject.inputs), examples=2)


# Of optimizers that differ only in their formula, a few; of what wraps, searches or wants, most.
OPTIMIZERS = {
    "optax": (
        "adam, sgd, muon, adafactor, noisy_sgd, sm3, chain, scheduled, masked decay, partition, "
        "lbfgs, polyak_sgd, momo, reduce_on_plateau, sophia, sam, opaque sam, lookahead, "
        "schedule_free, mechanize, MultiSteps, apply_if_finite, injected schedule, flatten, "
        "split_real_and_imaginary"
    ),
    "jax": "sgd, momentum, adam, piecewise",
    "keras": "Adam, SGD, Muon, decaying weights, accumulating",
}
QUICK = {("optax", "sgd"), ("jax", "momentum"), ("keras", "SGD")}
OPTIMIZER_ROWS = [
    pytest.param(library, name, marks=() if (library, name) in QUICK else pytest.mark.slow)
    for library, names in OPTIMIZERS.items()
    for name in names.split(", ")
]
# Facts of an optimizer, not of its adapter.
EXCLUDED_OPTIMIZERS = {
    # It was told by name what not to decay.
    ("keras", "decaying weights"): ("names_do_not_matter",),
}


def native_loop(library, row):
    def run(params, value_fn, steps):
        carry, step, params_of = LOOPS[library](row, params, value_fn)
        step = jax.jit(step)
        for _ in range(steps):
            carry = step(carry)
        return params_of(carry)

    return run


@pytest.mark.parametrize(("library", "name"), OPTIMIZER_ROWS)
def test_every_optimizer_law_holds(library, name):
    row = TABLES[library][name]
    optimizer = row.make()
    check_optimizer(
        lambda: ADAPTERS[library](optimizer),
        row.params,
        exclude=EXCLUDED_OPTIMIZERS.get((library, name), ()),
        native=native_loop(library, row),
        examples=2,
    )


@pytest.mark.parametrize(("row", "laws"), EXCLUDED_OPTIMIZERS.items(), ids=str)
def test_what_is_excluded_of_optimizers_is_still_so(row, laws):
    library, name = row
    row = TABLES[library][name]
    optimizer = row.make()
    for law in OPTIMIZER_LAWS:
        if law.name in laws:
            with pytest.raises(LawError):
                law.check(OptimizerSubject(lambda: ADAPTERS[library](optimizer), row.params))
