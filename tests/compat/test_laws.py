"""Every law of a Model on every network, and of an Optimizer on every kind of optimizer."""

import jax
import law_table
import pytest
from law_table import EXCLUDED, EXCLUDED_OPTIMIZERS, OPTIMIZERS
from networks import LIBRARIES
from networks.common import COMMON, INPUTS
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


def marks(library, kind):
    """The smallest network is checked always, the others in the whole run, the largest in the soak.

    These are attention and recurrent networks, which compile for long, but for Flax's.
    """
    if kind == "mlp":
        return ()
    large = kind in ("attention", "recurrent") and library not in ("linen", "nnx")
    return (pytest.mark.slow, pytest.mark.soak) if large else pytest.mark.slow


ROWS = [
    pytest.param(library, kind, marks=marks(library, kind))
    for library, subjects in LIBRARIES.items()
    for kind in subjects
]


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_library_lacks_a_network(library):
    assert set(COMMON) <= set(LIBRARIES[library]) <= set(INPUTS)


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


QUICK = {("optax", "sgd"), ("jax", "momentum"), ("keras", "SGD")}
OPTIMIZER_ROWS = [
    pytest.param(library, name, marks=() if (library, name) in QUICK else pytest.mark.slow)
    for library, names in OPTIMIZERS.items()
    for name in names.split(", ")
]


def test_the_table_has_only_what_is_checked():
    law_table.check_columns()


@pytest.mark.parametrize("page", law_table.PAGES, ids=lambda page: page.name)
def test_the_pages_say_what_the_laws_say(page):
    assert page.read_text() == law_table.written(page), "run tests/compat/law_table.py"


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
