"""as_model and as_optimizer pick by type, and say what they do not know."""

import os
import subprocess
import sys
import textwrap

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import optax
import pytest
from flax import nnx
from jax.example_libraries import optimizers as jax_optimizers
from jax.example_libraries import stax

import solstice
from solstice import compat
from solstice.compat import adapters, as_model, as_optimizer
from solstice.compat.adapters import ADAPTERS, Adapter

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
    with pytest.raises(TypeError, match=r"(?s)is not supported.*Flax Linen.*Haiku.*Equinox.*Stax"):
        as_model(thing, X, key=0)


@pytest.mark.parametrize("tx", [optax.adam(1e-3), compat.OptaxOptimizer(optax.adam(1e-3))])
def test_a_network_and_an_optimizer_in_the_other_order_are_told(tx):
    network = nn.Dense(2)
    for model in (network, as_model(network, X, key=0)):
        with pytest.raises(TypeError, match=r"(?s)is not supported.*It is an? .*: the netw"):
            solstice.ClassificationExperiment(tx, model, example_input=X, key=0)
        with pytest.raises(TypeError, match=r"(?s)optimizer is not .*It is a network: the netw"):
            as_optimizer(model)


def test_an_unknown_optimizer_lists_what_is_known():
    with pytest.raises(TypeError, match=r"(?s)is not supported.*Call it first.*optax"):
        as_optimizer(optax.adam)
    with pytest.raises(TypeError, match=r"(?s)is not supported: the float 0\.1"):
        as_optimizer(0.1)


def test_a_class_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"instance of a network.*class 'Dense'.*Dense\(\.\.\.\)"):
        as_model(nn.Dense, X, key=0)
    with pytest.raises(TypeError, match="instance of an optimizer"):
        as_optimizer(dict)


def test_what_initialisation_needs_is_asked_for():
    with pytest.raises(ValueError, match=r"FlaxModel .* takes example.* and key"):
        as_model(nn.Dense(2))
    with pytest.raises(ValueError, match=r"StaxModel .* takes key, a seed or PRNG key; pass it"):
        as_model(stax.Dense(2), X)


@pytest.mark.slow  # starts a process
def test_a_missing_library_names_feature_and_command():
    # A finder that refuses the packages stands for an environment without them.
    code = """
        import sys

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("flax", "haiku", "keras", "optax"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Absent())
        from solstice import compat

        for name in ("FlaxModel", "NNXModel", "HaikuModel", "KerasModel", "KerasOptimizer",
                     "OptaxOptimizer"):
            try:
                getattr(compat, name)
            except ImportError as error:
                assert isinstance(error.__cause__, ModuleNotFoundError)
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    packages = ("flax", "flax", "haiku", "keras", "keras", "optax")
    for line, package in zip(done.stdout.splitlines(), packages, strict=True):
        assert f"needs the package {package!r}" in line
        assert f"pip install 'jax-solstice[{package}]'" in line


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'TorchModel'"):
        compat.TorchModel  # noqa: B018
    assert set(dir(compat)) == set(compat.__all__)


@pytest.mark.parametrize(
    ("make", "adapter"),
    [
        (lambda: optax.MultiSteps(optax.sgd(0.1), 2), "OptaxOptimizer"),
        (lambda: jax_optimizers.adam(1e-3), "JaxOptimizer"),
        (lambda: keras.optimizers.SGD(0.1), "KerasOptimizer"),
        (
            lambda: nnx.Optimizer(
                nnx.Linear(2, 2, rngs=nnx.Rngs(0)), optax.sgd(0.1), wrt=nnx.Param
            ),
            "OptaxOptimizer",
        ),
    ],
)
def test_other_optimizers_are_recognised(make, adapter):
    assert type(as_optimizer(make())) is getattr(compat, adapter)


def test_other_networks_are_recognised():
    network = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    assert type(as_model(network)) is compat.KerasModel
    assert type(as_model(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))) is compat.NNXModel


@pytest.fixture
def registry():
    from solstice.compat import registry

    before = {what: list(kinds) for what, kinds in registry._REGISTERED.items()}
    yield registry
    for what, kinds in before.items():
        registry._REGISTERED[what][:] = kinds


class Affine:
    def init(self, key, x):
        return {"w": jax.random.normal(key, (x.shape[-1], 2))}

    def apply(self, params, x):
        return x @ params["w"]


def adapt_affine(network, example, key):
    return compat.FunctionModel(network.init, network.apply, example, key=key)


def test_a_third_partys_network_is_registered_by_class_or_path(registry):
    with pytest.raises(TypeError, match="is not supported"):
        as_model(Affine(), X, key=0)
    compat.register(Affine, adapt_affine)
    assert as_model(Affine(), X, key=0)(X)[0].shape == (2, 2)
    compat.register(f"{__name__}.Affine", lambda *arguments: None)
    with pytest.raises(
        TypeError, match=r"Affine \(registered\) is expected to return a compat.Model"
    ):
        as_model(Affine(), X, key=0)
    compat.register(f"{__name__}.Affine", adapt_affine)
    assert as_model(Affine(), X, key=0)(X)[0].shape == (2, 2)
    with pytest.raises(TypeError, match=r"Supported are:\n  - .*Affine \(registered\)"):
        as_model(3)


def test_an_adapter_that_fails_on_a_missing_example_is_told_so(registry):
    def adapt(network, example, key):
        return compat.FunctionModel(network.init, network.apply, jnp.ones(example.shape), key=key)

    compat.register(Affine, adapt)
    with pytest.raises(
        TypeError, match=r"raised AttributeError.* no example \(example_input=x"
    ) as e:
        as_model(Affine(), key=0)
    assert "key=0" not in str(e.value) and isinstance(e.value.__cause__, AttributeError)

    def fails(network, example, key):
        raise ValueError("another fault")

    compat.register(Affine, fails)
    with pytest.raises(ValueError, match=r"^another fault$"):
        as_model(Affine(), key=0)


def test_a_registered_class_goes_before_what_is_known(registry):
    class Own(eqx.nn.Linear):
        pass

    network = Own(3, 2, key=jax.random.key(0))
    assert type(as_model(network)) is compat.EquinoxModel
    compat.register(Own, lambda network, example, key: compat.EquinoxModel(network, call=one))
    assert (as_model(network)(X)[0] == 1).all()


def one(module, x):
    return jnp.ones_like(x)


def test_a_third_partys_optimizer_is_registered(registry):
    class Descent(float):
        pass

    compat.register(
        Descent, lambda rate: compat.OptaxOptimizer(optax.sgd(float(rate))), what="optimizer"
    )
    assert type(as_optimizer(Descent(0.1))) is compat.OptaxOptimizer


def test_registering_nonsense_is_refused(registry):
    with pytest.raises(TypeError, match=r"a class or its dotted path.*it is the str 'Network'"):
        compat.register("Network", adapt_affine)
    with pytest.raises(TypeError, match="adapt is expected to be a function"):
        compat.register(Affine, "adapt")
    with pytest.raises(ValueError, match="'model' or 'optimizer'"):
        compat.register(Affine, adapt_affine, what="metric")


@pytest.mark.slow  # starts a process
def test_an_installed_package_registers_through_an_entry_point(tmp_path):
    # What pip leaves behind: the package, and its metadata with the entry point.
    (tmp_path / "pebbles.py").write_text("class Pebble:\n    pass\n")
    (tmp_path / "pebbles_solstice.py").write_text(
        textwrap.dedent("""
            from solstice import compat

            def adapt(network, example, key):
                double = lambda params, x: 2 * x
                return compat.FunctionModel(lambda key, x: {}, double, example, key=key)
        """)
    )
    info = tmp_path / "pebbles-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pebbles\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[solstice.models]\npebbles.Pebble = pebbles_solstice:adapt\n"
    )
    code = """
        import sys
        import jax.numpy as jnp
        import numpy as np
        from solstice import compat
        from jax.example_libraries import stax

        compat.as_model(stax.Dense(2), jnp.ones((1, 3)), key=0)
        assert "pebbles" not in sys.modules and "pebbles_solstice" not in sys.modules
        import pebbles

        print(compat.as_model(pebbles.Pebble(), jnp.ones((1, 3)), key=0)(jnp.ones((2, 3)))[0].sum())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.strip() == "12.0", done.stderr


def test_a_mapped_module_is_told_to_come_by_itself():
    network = jax.vmap(eqx.nn.Linear(2, 3, key=jax.random.key(0)))
    with pytest.raises(TypeError, match=r"Instead of jax\.vmap\(module\), pass the module"):
        as_model(network, jnp.ones((1, 2)))


def test_a_framework_is_a_file_and_a_line(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text("class Network:\n    width = 2\n")
    (tmp_path / "toy_adapter.py").write_text(
        textwrap.dedent("""
            import jax
            import toy

            from solstice import compat

            class ToyModel(compat.Model):
                params: dict
                frozen: None
                state: dict

                def __init__(self, network, example, *, key):
                    assert isinstance(network, toy.Network)
                    weights = jax.random.normal(key, (example.shape[-1], network.width))
                    self.params, self.frozen, self.state = {"w": weights}, None, {}

                def __call__(self, x, *, key=None, train=False):
                    compat.check_train(train, "ToyModel")
                    return x @ compat.join_params(self)["w"], self

                def unwrap(self):
                    return compat.join_params(self)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    line = Adapter(
        "ToyModel",
        "toy_adapter",
        "model",
        takes={"toy.Network": "a toy"},
        package="toy",
        initialises=True,
    )
    monkeypatch.setattr(adapters, "ADAPTERS", [*ADAPTERS, line])
    monkeypatch.setattr("solstice.compat.registry.ADAPTERS", adapters.ADAPTERS)
    import toy

    network = toy.Network()
    model = as_model(network, X, key=jax.random.key(0))
    assert type(model) is compat.ToyModel and model(X)[0].shape == (2, 2)
    with pytest.raises(ValueError, match="ToyModel initialises the network"):
        as_model(network)
    with pytest.raises(TypeError, match="- a toy"):
        as_model("text")
    report = solstice.testing.check_model(lambda key: compat.ToyModel(network, X, key=key), X)
    said = {one.law.name for one in report.outcomes if one.error is None and one.skipped is None}
    assert {"a_converted_network_goes_on", "exports_give_the_same_bits"} < said
    assert len(report.outcomes) > 20 and not report.failures
    for name in ("toy", "toy_adapter"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "toy", None)
    with pytest.raises(
        ImportError, match=r"compat\.ToyModel needs the package 'toy'.*jax-solstice\[toy"
    ):
        compat.ToyModel  # noqa: B018 - it is loaded when it is looked up


def test_every_adapter_is_listed_where_users_look():
    assert {one.name for one in ADAPTERS} <= set(compat.__all__)
    assert not [one.name for one in ADAPTERS if one.load().__name__ != one.name]
