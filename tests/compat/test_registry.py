"""as_model and as_optimizer pick by type, and say what they do not know."""

import subprocess
import sys
import textwrap

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.example_libraries import stax

from solstice import compat
from solstice.compat import as_model, as_optimizer

X = jnp.ones((2, 3))


@pytest.mark.parametrize(
    ("network", "adapter"),
    [
        (nn.Dense(2), "FlaxModel"),
        (hk.transform(lambda x: hk.Linear(2)(x)), "HaikuModel"),
        (hk.transform_with_state(lambda x: hk.Linear(2)(x)), "HaikuModel"),
        (hk.without_apply_rng(hk.transform(lambda x: hk.Linear(2)(x))), "HaikuModel"),
        (eqx.nn.Linear(3, 2, key=jax.random.key(0)), "EquinoxModel"),
        (eqx.nn.make_with_state(eqx.nn.Linear)(3, 2, key=jax.random.key(0)), "EquinoxModel"),
        (stax.Dense(2), "StaxModel"),
    ],
)
def test_networks_are_recognised(network, adapter):
    model = as_model(network, X, key=0)
    assert type(model) is getattr(compat, adapter)
    assert model(X)[0].shape == (2, 2)
    assert as_model(model) is model


def test_an_optimizer_is_recognised_and_adapting_twice_changes_nothing():
    optimizer = as_optimizer(optax.adam(1e-3))
    assert type(optimizer) is compat.OptaxOptimizer
    assert as_optimizer(optimizer) is optimizer


@pytest.mark.parametrize("thing", ["a network", 3, {"w": X}, lambda x: x, (1, 2), None])
def test_an_unknown_network_lists_what_is_known(thing):
    with pytest.raises(TypeError, match=r"(?s)of no known kind.*Flax Linen.*Haiku.*Equinox.*Stax"):
        as_model(thing, X, key=0)


def test_an_optax_transform_is_no_network():
    with pytest.raises(TypeError, match="of no known kind"):
        as_model(optax.adam(1e-3), X, key=0)


def test_an_unknown_optimizer_lists_what_is_known():
    with pytest.raises(TypeError, match=r"(?s)of no known kind.*Call it first.*optax"):
        as_optimizer(optax.adam)
    with pytest.raises(TypeError, match=r"(?s)of no known kind: the float 0\.1"):
        as_optimizer(0.1)


def test_a_class_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"instance of a network.*class 'Dense'.*Dense\(\.\.\.\)"):
        as_model(nn.Dense, X, key=0)
    with pytest.raises(TypeError, match="instance of an optimizer"):
        as_optimizer(dict)


def test_what_initialisation_needs_is_asked_for():
    with pytest.raises(ValueError, match=r"FlaxModel .* takes example_input.* and key"):
        as_model(nn.Dense(2))
    with pytest.raises(ValueError, match=r"StaxModel .* takes key, a seed or PRNG key; pass it"):
        as_model(stax.Dense(2), X)


@pytest.mark.parametrize(
    ("name", "package"),
    [("FlaxModel", "flax"), ("HaikuModel", "haiku"), ("OptaxOptimizer", "optax")],
)
def test_a_missing_library_names_feature_and_command(name, package):
    # A finder that refuses the package stands for an environment without it.
    code = f"""
        import sys

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == {package!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Absent())
        from solstice import compat

        try:
            compat.{name}
        except ImportError as error:
            assert isinstance(error.__cause__, ModuleNotFoundError)
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert f"compat.{name} needs the package {package!r}" in done.stdout
    assert f"pip install 'solstice[{package}]'" in done.stdout


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'TorchModel'"):
        compat.TorchModel  # noqa: B018
    assert set(dir(compat)) == set(compat.__all__)
