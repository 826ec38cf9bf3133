"""Every law of a Model on every network, and of an Optimizer on every kind of optimizer."""

import jax
import law_table
import pytest
from law_table import (
    EXCLUDED,
    EXCLUDED_OPTIMIZERS,
    MODEL_COLUMNS,
    OPTIMIZERS,
    WHOLE,
    WHOLE_OPTIMIZERS,
)
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

# The smallest network, for the quick profile.
QUICK = {("linen", "mlp")}


def marks(library, kind):
    """Each library's network with everything, and each kind where its adapter could break it.

    What a kind has of its own, a library's adapter passes on in the same lines as for the others,
    and `test_parity.py` trains every kind of every library bit for bit; so all 60 pairs are for the
    soak.
    """
    if kind not in law_table.split(WHOLE[library]):
        return (pytest.mark.slow, pytest.mark.soak)
    return () if (library, kind) in QUICK else pytest.mark.slow


ROWS = [
    pytest.param(library, kind, marks=marks(library, kind))
    for library, subjects in LIBRARIES.items()
    for kind in subjects
]


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_claim_of_the_table_is_checked_without_the_soak(library):
    checked = set(law_table.split(WHOLE[library]))
    assert "cnn" in checked <= set(LIBRARIES[library])
    assert all(checked & set(law_table.split(kinds)) for _, kinds in MODEL_COLUMNS.values())
    assert set(INPUTS) == {kind for kinds in WHOLE.values() for kind in law_table.split(kinds)}


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


QUICK_OPTIMIZERS = {("optax", "sgd"), ("jax", "momentum"), ("keras", "SGD")}


def optimizer_marks(library, name):
    """Of what an adapter treats alike, one is enough: `test_optimizers.py` has every optimizer."""
    if name not in law_table.split(WHOLE_OPTIMIZERS[library]):
        return (pytest.mark.slow, pytest.mark.soak)
    return () if (library, name) in QUICK_OPTIMIZERS else pytest.mark.slow


OPTIMIZER_ROWS = [
    pytest.param(library, name, marks=optimizer_marks(library, name))
    for library, names in OPTIMIZERS.items()
    for name in law_table.split(names)
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
