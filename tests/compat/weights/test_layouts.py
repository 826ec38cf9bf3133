"""Arrays whose shape fits in several layouts: each is certain, or told and settled by outputs."""

import contextlib

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx

from solstice import compat
from solstice.errors import InvalidValueError, UnequalOutputsError

RNG = np.random.default_rng(0)
ORDER = "ignore:load\\(\\). .* by order alone"
GUESSES = "load.*the layouts of . leaves are guesses"


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def relu(x):
    return np.maximum(x, 0)


def conv(x, weight):
    """Return a padded 3 by 3 convolution, OIHW, of (batch, height, width, in)."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return np.einsum("bhwikl,oikl->bhwo", windows, weight)


class Upsampling(nn.Module):
    """Two convolutions and a transposed one, all with 4 channels, then one to 6."""

    strides: int
    name_of: str | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(nn.Conv(4, (3, 3))(x)))
        x = nn.relu(self.up(4, self.name_of)(x))
        return self.up(6, None)(x)

    def up(self, features, name):
        pads, strides = ((1, 1), (1, 1)), (self.strides, self.strides)
        return nn.ConvTranspose(features, (3, 3), strides, padding=pads, name=name)


def transposed(x, weight, strides):
    """As torch's of padding 1: each position adds the kernel (in, out, 3, 3), times its values."""
    batch, height, width, _ = x.shape
    full = np.zeros((batch, strides * height + 2, strides * width + 2, weight.shape[1]))
    for i, j in np.ndindex(3, 3):
        to = np.s_[:, i : i + strides * height : strides, j : j + strides * width : strides]
        full[to] += x @ weight[:, :, i, j]
    return full[:, 1 : 2 + strides * (height - 1), 1 : 2 + strides * (width - 1)]


def upsampled(strides, name=None):
    """The report of a load into `Upsampling`, with images and the outputs to expect."""
    images = normal(2, 5, 5, 4)
    shapes = (4, 4), (4, 4), (4, 4), (4, 6)
    state = {f"{i}.weight": normal(*shape, 3, 3) / 3 for i, shape in enumerate(shapes)}
    biases = [normal(4), normal(4), normal(4), normal(6)]
    state = {name: array for i, weight in enumerate(state) for name, array in (
        (weight, state[weight]), (f"{i}.bias", biases[i]))}  # fmt: skip
    x = conv(images, state["0.weight"]) + biases[0]
    x = relu(conv(x, state["1.weight"]) + biases[1])
    x = relu(transposed(x, state["2.weight"], strides) + biases[2])
    x = transposed(x, state["3.weight"], strides) + biases[3]
    model = compat.as_model(Upsampling(strides, name), images, key=0)
    with pytest.warns(UserWarning, match="by order alone"):
        return images, x, compat.load(model, state)[1]


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("name", [None, "up"])
def test_a_square_kernel_of_a_transposed_convolution_is_turned(strides, name):
    images, expected, report = upsampled(strides, name)
    assert report.check(images, expected) < 1e-5


class NNXLayer(nnx.Module):
    def __init__(self, layer):
        self.up = layer

    def __call__(self, x):
        return self.up(x)


class First(eqx.Module):
    """A layer of Equinox on images with channels last."""

    up: eqx.Module

    def __call__(self, x):
        return jnp.moveaxis(self.up(jnp.moveaxis(x, -1, 0)), 0, -1)


IMAGES = normal(2, 5, 5, 4)


def keras_model(*layers):
    return compat.KerasModel(keras.Sequential([keras.layers.Input(IMAGES.shape[1:]), *layers]))


def haiku_model(make):
    return compat.as_model(hk.transform(lambda x: make()(x)), IMAGES, key=0)


# Stride 1 and padding 1, of names that say nothing.
STRIDE_1 = {
    "Linen": lambda k: compat.as_model(
        nn.Sequential([nn.ConvTranspose(4, (k, k), name="up")]), IMAGES, key=0
    ),
    "NNX": lambda k: compat.as_model(
        NNXLayer(nnx.ConvTranspose(4, 4, (k, k), rngs=nnx.Rngs(0)))
    ),
    "Haiku": lambda k: haiku_model(lambda: hk.Conv2DTranspose(4, k, name="up")),
    "Equinox": lambda k: compat.as_model(
        First(eqx.nn.ConvTranspose2d(4, 4, k, padding=k // 2, key=jax.random.key(0)))
    ),
    "Keras": lambda k: keras_model(
        keras.layers.Conv2DTranspose(4, k, padding="same", name="up")
    ),
}  # fmt: skip


@pytest.mark.parametrize("library", STRIDE_1)
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_transposed_convolution_of_stride_1_is_known_by_the_code_that_calls_it(library, kernel):
    state = {"0.weight": normal(4, 4, kernel, kernel), "0.bias": normal(4)}
    weight = state["0.weight"]
    product = transposed(IMAGES, weight, 1) if kernel == 3 else IMAGES @ weight[:, :, 0, 0]
    _, report = compat.load(STRIDE_1[library](kernel), state, example=IMAGES)
    assert report.check(IMAGES, product + state["0.bias"]) < 1e-5
    assert not report.notes
    assert not report.ambiguous


@pytest.mark.parametrize("library", STRIDE_1)
def test_keras_s_files_say_the_class_of_a_layer_with_a_user_s_name(library, tmp_path):
    source = STRIDE_1["Keras"](3)
    source._network.value.save_weights(path := tmp_path / "model.weights.h5")
    # NNX has the file's own name and shape for its leaf, in another layout.
    _, report = compat.load(STRIDE_1[library](3), path, example=IMAGES)
    assert report.check(IMAGES, source(IMAGES)[0]) < 1e-5
    assert not report.ambiguous


@pytest.mark.parametrize("library", sorted(set(STRIDE_1) - {"Haiku"}))
def test_linen_s_transposed_kernels_are_told_and_settled(library, tmp_path):
    up = nn.ConvTranspose(4, (3, 3), transpose_kernel=True, name="up")
    source = compat.as_model(nn.Sequential([up]), IMAGES, key=0)
    compat.save(source, path := tmp_path / "up.safetensors", names={"^params": "net"})
    model, expected = STRIDE_1[library](3), source(IMAGES)[0]
    with pytest.warns(UserWarning, match=GUESSES):
        _, report = compat.load(model, path, example=IMAGES)
    assert len(report.ambiguous) == 1
    assert "* another array has this form, or another layout fits" in str(report)
    with pytest.raises(UnequalOutputsError, match="another layout"):
        report.check(IMAGES, expected)
    _, settled = compat.load(model, path, example=IMAGES, outputs=expected)
    assert settled.check(IMAGES, expected) < 1e-5
    assert not settled.ambiguous
    assert "The given outputs decided between layouts, at try 2." in settled.notes


def function(x, weights):
    kernel = weights["kernel"]
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(2, 2), (2, 2)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_padding_in_full_by_one_s_own_code_hints_at_a_transposed_convolution():
    state, kernel = {"0.weight": normal(4, 4, 3, 3)}, np.zeros((3, 3, 4, 4), np.float32)
    model = compat.FunctionModel(
        lambda _, x: {"kernel": kernel}, lambda params, x: function(x, params), IMAGES, key=0
    )
    with pytest.warns(UserWarning, match="read as of a plain one"):
        compat.load(model, state, example=IMAGES)
    turned = np.flip(state["0.weight"], (2, 3)).transpose(2, 3, 0, 1)
    expected = function(IMAGES, {"kernel": turned})
    _, settled = compat.load(model, state, example=IMAGES, outputs=expected)
    assert settled.check(IMAGES, expected) < 1e-5


X = normal(4, 3)
DENSE = {
    "Linen": lambda: compat.as_model(nn.Dense(3), X, key=0),
    "NNX": lambda: compat.as_model(nnx.Linear(3, 3, rngs=nnx.Rngs(0))),
    "Haiku": lambda: compat.as_model(hk.transform(lambda x: hk.Linear(3)(x)), X, key=0),
    "Equinox": lambda: compat.as_model(eqx.nn.Linear(3, 3, key=jax.random.key(0))),
    "Keras": lambda: compat.KerasModel(
        keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(3)])
    ),
}


@pytest.mark.parametrize("library", DENSE)
@pytest.mark.parametrize("out_in", [False, True])
@pytest.mark.parametrize("form", ["mapping", "npz"])
def test_a_square_matrix_of_an_unknown_convention_is_told_and_settled(
    library, out_in, form, tmp_path
):
    source = arrays = {"fc/mixing": normal(3, 3), "fc/bias": normal(3)}
    if form == "npz":
        np.savez(source := tmp_path / "weights.npz", **arrays)
    matrix = arrays["fc/mixing"].T if out_in else arrays["fc/mixing"]
    expected, rename = X @ matrix + arrays["fc/bias"], {"fc/mixing": "fc/mixing"}
    with pytest.warns(UserWarning, match="'fc/mixing' says no layout"):
        compat.load(DENSE[library](), source, example=X, rename=rename)
    _, settled = compat.load(DENSE[library](), source, example=X, outputs=expected)
    assert settled.check(X, expected) < 1e-6
    assert not settled.ambiguous


class Dense(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(3 * self.features)(x)
        return nn.Dense(self.features)(jnp.tanh(h[..., : self.features]))


def test_square_matrices_lie_as_the_others_of_their_source():
    # As GPT-2's, (in, out) under torch's name.
    state = {"c_attn.weight": normal(3, 9), "c_attn.bias": normal(9)}
    state |= {"c_proj.weight": normal(3, 3), "c_proj.bias": normal(3)}
    model = compat.as_model(Dense(3), X, key=0)
    with pytest.warns(UserWarning, match=r"'c_proj.weight' is square, and 1 matrices"):
        _, report = compat.load(model, state)
    h = np.tanh((X @ state["c_attn.weight"] + state["c_attn.bias"])[:, :3])
    expected = h @ state["c_proj.weight"] + state["c_proj.bias"]
    assert report.check(X, expected) < 1e-5
    expected = h @ state["c_proj.weight"].T + state["c_proj.bias"]
    _, settled = compat.load(model, state, example=X, outputs=expected)
    assert settled.check(X, expected) < 1e-5


PICTURES = normal(2, 5, 5, 3)
CONVS = {
    "Linen": lambda: compat.as_model(nn.Conv(3, (3, 3)), PICTURES, key=0),
    "NNX": lambda: compat.as_model(nnx.Conv(3, 3, (3, 3), rngs=nnx.Rngs(0))),
    "Haiku": lambda: compat.as_model(hk.transform(lambda x: hk.Conv2D(3, 3)(x)), PICTURES, key=0),
    "Equinox": lambda: compat.as_model(
        First(eqx.nn.Conv2d(3, 3, 3, padding=1, key=jax.random.key(0)))
    ),
    "Keras": lambda: compat.KerasModel(
        keras.Sequential([keras.layers.Input((5, 5, 3)), keras.layers.Conv2D(3, 3, padding="same")])
    ),
}


@pytest.mark.parametrize("library", CONVS)
@pytest.mark.parametrize("channels_first", [False, True])
def test_a_kernel_of_equal_axes_and_an_unknown_convention_is_told_and_settled(
    library, channels_first
):
    state = {"filters": normal(3, 3, 3, 3)}
    weight = state["filters"] if channels_first else state["filters"].transpose(3, 2, 0, 1)
    state["filters/bias"] = normal(3)
    expected = conv(PICTURES, weight) + state["filters/bias"]
    with pytest.warns(UserWarning, match="'filters' says no layout"):
        compat.load(CONVS[library](), state, example=PICTURES)
    _, settled = compat.load(CONVS[library](), state, example=PICTURES, outputs=expected)
    assert settled.check(PICTURES, expected) < 1e-5


@pytest.mark.parametrize("library", CONVS)
def test_a_plain_square_kernel_with_a_known_name_is_certain(library):
    state = {"0.weight": normal(3, 3, 3, 3), "0.bias": normal(3)}
    _, report = compat.load(CONVS[library](), state, example=PICTURES)
    assert report.check(PICTURES, conv(PICTURES, state["0.weight"]) + state["0.bias"]) < 1e-5
    assert not report.notes


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("saved", ["h5", "safetensors"])
def test_keras_s_depthwise_and_separable_kernels_are_loaded(multiplier, saved, tmp_path):
    depthwise = keras.layers.DepthwiseConv2D(3, depth_multiplier=multiplier, name="each")
    source = keras_model(depthwise, keras.layers.SeparableConv2D(5, 3, name="both"))
    path = tmp_path / ("model.weights.h5" if saved == "h5" else "model.safetensors")
    if saved == "h5":
        source._network.value.save_weights(path)
    else:
        compat.save(source, path)
    many = 4 * multiplier
    twin = nn.Sequential([
        nn.Conv(many, (3, 3), padding="VALID", feature_group_count=4),
        nn.Conv(many, (3, 3), padding="VALID", feature_group_count=many, use_bias=False),
        nn.Conv(5, (1, 1)),
    ])  # fmt: skip
    _, report = compat.load(compat.as_model(twin, IMAGES, key=0), path)
    assert report.check(IMAGES, source(IMAGES)[0]) < 1e-5


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("outputs", [4, 8])
def test_grouped_transposed_kernels_are_turned(groups, outputs):
    state = {"up.weight": normal(4, outputs // groups, 3, 3), "up.bias": normal(outputs)}
    parts = zip(np.split(IMAGES, groups, -1), np.split(state["up.weight"], groups), strict=True)
    expected = np.concatenate([transposed(x, weight, 2) for x, weight in parts], -1)
    up = eqx.nn.ConvTranspose2d(4, outputs, 3, 2, padding=1, groups=groups, key=jax.random.key(0))
    _, report = compat.load(compat.as_model(First(up)), state, example=IMAGES)
    assert report.check(IMAGES, expected + state["up.bias"]) < 1e-5
    assert not report.ambiguous


def test_grouped_kernels_for_a_network_without_groups_are_refused_with_the_reason():
    state = {"up.weight": normal(4, 3, 3, 3), "up.bias": normal(6)}
    model = compat.as_model(nn.ConvTranspose(6, (3, 3), (2, 2)), IMAGES, key=0)
    with pytest.raises(
        InvalidValueError, match=r"'up.weight' fits .* in 2 groups, and the model's"
    ):
        compat.load(model, state)


class Swapped(nn.Module):
    """A network that flattens (width, height, channels), as those ported from MATLAB do."""

    order: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3))(x)).transpose(0, *self.order)
        return nn.Dense(2)(x.reshape(len(x), -1))


@pytest.mark.parametrize("order", [(2, 1, 3), (3, 1, 2), (1, 2, 3)])
def test_another_order_of_flattened_axes_is_settled(order):
    x = normal(2, 4, 5, 3)
    state = {"conv.weight": normal(6, 3, 3, 3), "conv.bias": normal(6)}
    state |= {"fc.weight": normal(2, 120), "fc.bias": normal(2)}
    features = relu(conv(x, state["conv.weight"]) + state["conv.bias"])
    flat = features.transpose(0, 2, 1, 3).reshape(2, -1)
    expected = flat @ state["fc.weight"].T + state["fc.bias"]
    model = compat.as_model(Swapped(order), x, key=0)
    _, report = compat.load(model, state)
    with pytest.raises(UnequalOutputsError):
        report.check(x, expected)
    _, settled = compat.load(model, state, example=x, outputs=expected)
    assert settled.check(x, expected) < 1e-5
    assert "decided between layouts" in " ".join(settled.notes)


def test_flattened_axes_that_look_alike_are_told_and_settled():
    x = normal(2, 6, 6, 3)
    state = {"conv.weight": normal(6, 3, 3, 3), "conv.bias": normal(6)}
    state |= {"fc.weight": normal(2, 216), "fc.bias": normal(2)}
    features = relu(conv(x, state["conv.weight"]) + state["conv.bias"])
    flat = features.transpose(0, 3, 1, 2).reshape(2, -1)
    expected = flat @ state["fc.weight"].T + state["fc.bias"]
    model = compat.as_model(Swapped((1, 2, 3)), x, key=0)
    with pytest.warns(UserWarning, match="cannot be told apart"):
        compat.load(model, state)
    _, settled = compat.load(model, state, example=x, outputs=expected)
    assert settled.check(x, expected) < 1e-5


def test_torch_s_square_kernels_do_not_go_into_equinox_by_name_alone():
    model = STRIDE_1["Equinox"](3)
    state = {"up.weight": normal(4, 4, 3, 3), "up.bias": normal(4, 1, 1)}
    with pytest.raises(InvalidValueError, match="example is expected"):
        compat.load(model, state)
    alone = compat.as_model(eqx.nn.ConvTranspose2d(4, 4, 3, padding=1, key=jax.random.key(0)))
    state = {"weight": normal(4, 4, 3, 3), "bias": normal(4)}
    first = np.moveaxis(IMAGES, -1, 1).copy()
    _, report = compat.load(alone, state, example=first)
    expected = transposed(IMAGES, state["weight"], 1) + state["bias"]
    assert report.check(first, np.moveaxis(expected, -1, 1)) < 1e-5


class Up(eqx.Module):
    up: eqx.nn.ConvTranspose2d

    def __init__(self, **options):
        self.up = eqx.nn.ConvTranspose2d(4, 4, 3, **options, key=jax.random.key(0))

    def __call__(self, x):
        return jnp.moveaxis(self.up(jnp.moveaxis(x, -1, 0)), 0, -1)


def keras_up(x):
    up = keras.layers.Conv2DTranspose(4, 3, strides=2)
    return compat.KerasModel(keras.Sequential([keras.layers.Input(x.shape[1:]), up]))


def haiku_up(x):
    pads = ((2, 2), (2, 2))
    return compat.as_model(
        hk.transform(lambda x: hk.Conv2DTranspose(4, 3, 2, padding=pads)(x)), x, key=0
    )


UPSAMPLING = {
    "Equinox": lambda _: compat.as_model(Up(stride=2)),
    "Equinox, no bias": lambda _: compat.as_model(Up(stride=2, use_bias=False)),
    "Haiku": haiku_up,
    "Keras": keras_up,
}


@pytest.mark.parametrize("library", UPSAMPLING)
def test_a_square_transposed_kernel_lies_as_its_library_has_it(tmp_path, library):
    x = normal(2, 5, 5, 4)
    source = UPSAMPLING[library](x)
    compat.save(source, path := tmp_path / "up.safetensors")
    up = nn.ConvTranspose(4, (3, 3), (2, 2), ((2, 2), (2, 2)), use_bias="bias" not in library)
    model, told = compat.as_model(up, x, key=0), library in ("Equinox, no bias", "Keras")
    with pytest.warns(UserWarning, match="guesses") if told else contextlib.nullcontext():
        _, report = compat.load(model, path)
    assert report.check(x, source(x)[0]) < 1e-5
    assert bool(report.notes) == bool(report.ambiguous) == told
    _, settled = compat.load(model, path, example=x, outputs=source(x)[0])
    assert not settled.ambiguous


def test_a_depthwise_transposed_kernel_is_turned():
    x, state = normal(2, 5, 5, 4), {"up.weight": normal(4, 1, 3, 3), "up.bias": normal(4)}
    alone = [transposed(x[..., [c]], state["up.weight"][[c]], 2) for c in range(4)]
    model = compat.as_model(Up(stride=2, padding=1, groups=4))
    _, report = compat.load(model, state, example=x)
    assert report.check(x, np.concatenate(alone, -1) + state["up.bias"]) < 1e-5


class PReLU(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.where(x >= 0, x, self.param("slopes", nn.initializers.zeros, (4,)) * x)


PRELUS = {
    "Linen": lambda: compat.as_model(nn.Sequential([nn.Dense(4), PReLU()]), X, key=0),
    "Keras": lambda: compat.KerasModel(
        keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4), keras.layers.PReLU()])
    ),
}


@pytest.mark.parametrize("library", PRELUS)
@pytest.mark.parametrize("batch", [1, 4])
def test_slopes_of_a_prelu_are_loaded(library, batch):
    state = {"fc.weight": normal(4, 3), "fc.bias": normal(4), "act.weight": normal(4)}
    x = X[:batch]
    h = x @ state["fc.weight"].T + state["fc.bias"]
    _, report = compat.load(PRELUS[library](), state, example=x)
    assert report.check(x, np.where(h >= 0, h, state["act.weight"] * h)) < 1e-6
