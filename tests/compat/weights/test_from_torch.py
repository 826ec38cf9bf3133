"""Files that torch wrote, of networks that torch trained: each library gives torch's outputs."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from architectures import FROM_TORCH, LIBRARIES, build
from architectures.common import INPUTS

from solstice import compat

FOLDER = Path(__file__).parents[1] / "from_torch"
EXPECTED = safetensors.numpy.load_file(FOLDER / "expected.safetensors")


def loaded(library, name, source):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"load\(\): .* by order alone")
        return compat.load(build(library, name, 0), source, example=INPUTS[name])


@pytest.mark.parametrize("name", FROM_TORCH)
@pytest.mark.parametrize("library", [name for name in LIBRARIES if name != "Stax"])
def test_a_network_that_torch_trained_gives_torch_s_outputs(library, name):
    model, _ = loaded(library, name, FOLDER / f"{name}.safetensors")
    outputs, _ = model(EXPECTED[f"{name}.inputs"])
    np.testing.assert_allclose(outputs, EXPECTED[f"{name}.outputs"], rtol=1e-5, atol=1e-5)


def test_the_files_are_of_trained_networks():
    """No two outputs of a network are alike, and running statistics have moved."""
    for name in FROM_TORCH:
        outputs = EXPECTED[f"{name}.outputs"]
        assert (outputs.std(0) > 0.1).all(), name
    state = safetensors.numpy.load_file(FOLDER / "resnet.safetensors")
    for name, array in state.items():
        if name.endswith("running_mean"):
            assert (array != 0).all()
        if name.endswith("num_batches_tracked"):
            assert array == 10
