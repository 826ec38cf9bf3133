"""An export that tests call."""

import pytest
from exports import exported, linear


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return exported(linear(), tmp_path_factory.mktemp("loaded"))
