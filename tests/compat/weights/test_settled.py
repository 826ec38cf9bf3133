"""Running averages that are corrected for few steps are put as they stand after long training."""

import jax
import numpy as np
import pytest
from architectures import LIBRARIES
from architectures.common import INPUTS


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_settling_keeps_the_form_and_is_done_once(library):
    model, x = LIBRARIES[library]["cnn"](INPUTS["cnn"]), INPUTS["cnn"]
    for scale in (1, 3):
        _, model = model(scale * x + 1, train=True)
    settled = model.settle_averages()
    form = [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(model)]
    assert form == [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(settled)]
    assert jax.tree.structure(model) == jax.tree.structure(settled)
    again = settled.settle_averages()
    jax.tree.map(np.testing.assert_array_equal, _data(again), _data(settled))
    corrects = library in ("Equinox", "Haiku")
    assert (settled is model) is not corrects
    np.testing.assert_allclose(settled(x)[0], model(x)[0], rtol=1e-5, atol=1e-5)


def _data(model):
    return [
        jax.random.key_data(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
        for leaf in jax.tree.leaves(model)
    ]
