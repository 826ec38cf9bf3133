"""Every law of a Model on every network of every library."""

import pytest
from networks import LIBRARIES
from networks.common import INPUTS

from solstice.testing import MODEL_LAWS, LawError, ModelSubject, check_model

# Facts of a library that no adapter can mend.
EXCLUDED = {
    # Stax has no running statistics: its batch norm normalises by the batch in evaluation too.
    ("stax", "cnn"): ("eval_is_per_example",),
}

# The network with everything in it is checked always, the others in the whole run.
ROWS = [
    pytest.param(library, kind, marks=() if kind == "cnn" else pytest.mark.slow)
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
