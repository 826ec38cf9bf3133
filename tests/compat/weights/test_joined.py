"""Weights that torch keeps in parts, of weight norm, spectral norm and pruning, are joined."""

import equinox as eqx
import flax.linen as nn
import jax
import numpy as np
import pytest

from solstice import compat
from solstice.errors import InvalidValueError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3)).astype(np.float32)
IMAGES = RNG.normal(size=(2, 5, 5, 4)).astype(np.float32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def unit(vector):
    return vector / np.linalg.norm(vector)


G, V, BIAS = normal(5, 1) ** 2 + 0.5, normal(5, 3), normal(5)
U, W = unit(normal(5)), unit(normal(3))
MASK = (RNG.random((5, 3)) > 0.5).astype(np.float32)
SCALE = normal(1, 3)
# The parts, and the weight that they make, by formulas written out.
ROWS = np.stack([g * unit(v) for g, v in zip(G, V, strict=True)])
COLUMNS = np.stack([g * unit(v) for g, v in zip(SCALE[0], V.T, strict=True)], 1)
PARTS = {
    "weight norm": ({"weight_g": G, "weight_v": V}, ROWS),
    "weight norm, parametrized": (
        {"parametrizations.weight.original0": G, "parametrizations.weight.original1": V},
        ROWS,
    ),
    "weight norm of columns": ({"weight_g": SCALE, "weight_v": V}, COLUMNS),
    "weight norm of all": (
        {"weight_g": np.float32(2), "weight_v": V},
        2 * V / np.sqrt((V**2).sum()),
    ),
    "spectral norm": ({"weight_orig": V, "weight_u": U, "weight_v": W}, V / (U @ V @ W)),
    "spectral norm, parametrized": (
        {
            "parametrizations.weight.original": V,
            "parametrizations.weight.0._u": U,
            "parametrizations.weight.0._v": W,
        },
        V / (U @ V @ W),
    ),
    "pruning": ({"weight_orig": V, "weight_mask": MASK}, V * MASK),
}


@pytest.mark.parametrize("case", PARTS)
@pytest.mark.parametrize("name", ["", "fc."])
def test_the_parts_of_a_weight_are_joined(case, name):
    parts, weight = PARTS[case]
    source = {f"{name}{part}": array for part, array in {"bias": BIAS, **parts}.items()}
    _, report = compat.load(compat.as_model(nn.Dense(5), X, key=0), source)
    assert report.check(X, X @ weight.T + BIAS) < 1e-6
    kind = case.split(",")[0].split(" of ")[0].capitalize()
    assert f"{kind} joined: '{name}weight'." in str(report)
    assert {row.sources for row in report.rows} == {(f"{name}weight",), (f"{name}bias",)}


ODD = {
    "a lone half": ({"fc.weight_g": G}, "part of a weight norm, of which .*remove_weight_norm"),
    "a g along two axes": (
        {"fc.weight_g": normal(5, 3), "fc.weight_v": V},
        r"weight norm: the shapes \(5, 3\) and \(5, 3\) do not say .* In torch, before",
    ),
    "a u of another size": (
        {"fc.weight_orig": V, "fc.weight_u": unit(normal(4)), "fc.weight_v": W},
        "spectral norm: .* do not say along which axis.*remove_spectral_norm",
    ),
    "a mask of another shape": (
        {"fc.weight_orig": V, "fc.weight_mask": MASK[:4]}, r"mask has the shape \(4, 3\)",
    ),
    "another parametrization": (
        {"fc.parametrizations.weight.original": V}, "not computed here.*remove_parametrizations",
    ),
}  # fmt: skip


SQUARE = normal(3, 3)
HALVES = {
    "the v of a weight norm": ("weight_v", "weight norm"),
    "the g of a weight norm": ("weight_g", "weight norm"),
    "a direction, parametrized": ("parametrizations.weight.original1", "weight norm"),
    "a length, parametrized": ("parametrizations.weight.original0", "weight norm"),
    "an original": ("weight_orig", "spectral norm"),
    "an original, parametrized": ("parametrizations.weight.original", "parametrization of torch"),
    "a vector": ("weight_u", "spectral norm"),
    "a mask": ("weight_mask", "pruning"),
}


@pytest.mark.parametrize("case", HALVES)
def test_a_half_is_never_taken_for_the_weight(case):
    name, kind = HALVES[case]
    model = compat.as_model(nn.Dense(3), X, key=0)
    source = {"fc.bias": BIAS[:3], f"fc.{name}": SQUARE}
    with pytest.raises(InvalidValueError, match=f"fc.{name}.* a(?: part of a)? {kind}") as told:
        compat.load(model, source)
    assert "rename=" not in str(told.value)
    loaded, report = compat.load(model, source, strict=False)
    assert "params/kernel" in report.missing
    assert f"fc.{name}" in report.unused
    assert kind in str(report)
    np.testing.assert_array_equal(loaded.params["kernel"], model.params["kernel"])


def test_a_half_of_a_convolution_leaves_its_kernel_missing():
    model = compat.as_model(nn.Conv(4, (3, 3)), IMAGES, key=0)
    source = {"c1.weight_v": normal(4, 4, 3, 3), "c1.bias": BIAS[:4]}
    with pytest.raises(InvalidValueError, match=r"params/kernel .* part of a weight norm"):
        compat.load(model, source)


@pytest.mark.parametrize("bias", [BIAS, None])
def test_a_pruned_bias_is_joined_and_its_half_is_no_bias(bias):
    model, mask = compat.as_model(nn.Dense(5), X, key=0), np.float32([1, 0, 1, 1, 0])
    source = {"fc.weight": V, "fc.bias_orig": BIAS}
    if bias is None:
        with pytest.raises(InvalidValueError, match=r"for params/bias .* other parts"):
            compat.load(model, source)
        return
    _, report = compat.load(model, source | {"fc.bias_mask": mask})
    assert report.check(X, X @ V.T + bias * mask) < 1e-6


@pytest.mark.parametrize("name", ["params/weight_v", "params.weight_v"])
def test_a_half_whose_name_is_the_model_s_own_is_a_weight(name):
    def init(key, x):
        return {"weight_v": np.zeros((3, 5), np.float32)}

    model = compat.FunctionModel(init, lambda p, x: x @ p["weight_v"], X, key=0)
    _, report = compat.load(model, {name: V.T})
    assert report.check(X, X @ V.T) < 1e-6


@pytest.mark.parametrize("case", ODD)
def test_parts_that_are_not_certain_are_an_error_that_says_what_to_do(case):
    parts, says = ODD[case]
    with pytest.raises(InvalidValueError, match=says):
        compat.load(compat.as_model(nn.Dense(5), X, key=0), {"fc.bias": BIAS, **parts})


@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize("last", ["u", "v"])  # torch's older form computes u last, the newer v
def test_a_square_spectral_norm_is_along_the_axis_that_its_vectors_show(along, last):
    weight, v = normal(3, 3), unit(normal(3))
    rows = weight if along == 0 else weight.T
    u = unit(rows @ v)
    if last == "v":
        v = unit(rows.T @ u)
    parts = {"fc.weight_orig": weight, "fc.weight_u": u, "fc.weight_v": v, "fc.bias": BIAS[:3]}
    _, report = compat.load(compat.as_model(nn.Dense(3), X, key=0), parts)
    expected = weight / (u @ rows @ v)
    assert report.check(X, X @ expected.T + BIAS[:3]) < 1e-5
    parts["fc.weight_u"], parts["fc.weight_v"] = unit(normal(3)), unit(normal(3))
    with pytest.raises(InvalidValueError, match="do not say along which axis"):
        compat.load(compat.as_model(nn.Dense(3), X, key=0), parts)


class Normed(nn.Module):
    """A network with parts of its own, of torch's names."""

    @nn.compact
    def __call__(self, x):
        g = self.param("weight_g", nn.initializers.ones, (5, 1))
        v = self.param("weight_v", nn.initializers.ones, (5, 3))
        return x @ (g * v).T


def test_a_model_s_own_parts_stay_parts():
    model = compat.as_model(Normed(), X, key=0)
    source = {"params/weight_g": G, "params/weight_v": V}
    _, report = compat.load(model, source)
    assert report.check(X, X @ (G * V).T) < 1e-6


def norms(torch):
    """Torch's layers with norms, old and new, and twins of Equinox or Flax."""
    old, new = torch.nn.utils, torch.nn.utils.parametrizations
    linear, up = torch.nn.Linear(3, 5), torch.nn.ConvTranspose2d(4, 4, 3, stride=2)

    def dense():
        return compat.as_model(nn.Dense(5), X, key=0), X, X

    def twin():
        layer = eqx.nn.ConvTranspose2d(4, 4, 3, stride=2, key=jax.random.key(0))
        first = np.moveaxis(IMAGES, -1, 1).copy()
        return compat.as_model(layer), first, first

    def conv():
        layer = eqx.nn.Conv2d(4, 4, 3, key=jax.random.key(0))
        first = np.moveaxis(IMAGES, -1, 1).copy()
        return compat.as_model(layer), first, first

    return {
        "old weight norm": (lambda: old.weight_norm(linear), dense),
        "old weight norm of all": (lambda: old.weight_norm(torch.nn.Linear(3, 5), dim=None), dense),
        "old spectral norm": (lambda: old.spectral_norm(torch.nn.Linear(3, 5)), dense),
        "new weight norm": (lambda: new.weight_norm(torch.nn.Linear(3, 5)), dense),
        "new weight norm, a square kernel": (
            lambda: new.weight_norm(torch.nn.Conv2d(4, 4, 3)), conv
        ),
        "new spectral norm": (lambda: new.spectral_norm(torch.nn.Linear(3, 5)), dense),
        "spectral norm, transposed": (
            lambda: new.spectral_norm(up, n_power_iterations=9), twin
        ),
        "old spectral norm, a square kernel": (
            lambda: old.spectral_norm(torch.nn.Conv2d(4, 4, 3), n_power_iterations=9), conv
        ),
        "pruned": (
            lambda: old.prune.l1_unstructured(torch.nn.Linear(3, 5), "weight", amount=0.5), dense
        ),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "case",
    [
        "old weight norm", "old weight norm of all", "old spectral norm", "new weight norm",
        "new weight norm, a square kernel", "new spectral norm", "spectral norm, transposed",
        "old spectral norm, a square kernel", "pruned",
    ],
)  # fmt: skip
def test_real_norms_of_torch_give_its_outputs(case):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch.nn.utils.prune")

    torch.manual_seed(0)
    make, twin = norms(torch)[case]
    layer = make()
    model, x, inputs = twin()
    with torch.no_grad():
        layer(torch.tensor(inputs))  # a step of the power iteration
        expected = layer.eval()(torch.tensor(inputs)).numpy()
    _, report = compat.load(model, layer.state_dict(), example=x)
    assert report.check(x, expected) < 1e-5
