"""Ensemble: each member goes the way it would go alone, in one compiled step for all."""

import equinox as eqx
import flax.linen
import flax.nnx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.example_libraries import stax
from networks import keras, nnx
from networks.equinox import CNN as EquinoxCNN
from networks.function import cnn, cnn_init
from networks.haiku import cnn as haiku_cnn
from networks.linen import CNN as LinenCNN
from networks.stax import cnn as stax_cnn

import solstice
from solstice.experiments import MemberStopping
from solstice.metrics import EnsembleMetrics

CLASSES = 3
RNG = np.random.default_rng(0)
Y = RNG.integers(0, CLASSES, 32).astype("int32")
X = (RNG.normal(size=(32, 4, 4, 1)) + Y[:, None, None, None]).astype("float32")
DS = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 32, 8)]
KEYS = jax.random.split(jax.random.key(7), 3)
RATES = jnp.array([0.003, 0.02, 0.05])

NETWORKS = {
    "linen": lambda key: LinenCNN(),
    "nnx": lambda key: nnx.CNN(flax.nnx.Rngs(key)),
    "haiku": lambda key: hk.transform_with_state(haiku_cnn),
    "equinox": lambda key: eqx.nn.make_with_state(EquinoxCNN)(key),
    "stax": lambda key: solstice.compat.StaxModel(
        stax_cnn("train"), X[:1], key=key, eval_apply=stax_cnn("test")[1]
    ),
    "keras": lambda key: keras.cnn(),
    "function": lambda key: solstice.compat.FunctionModel(cnn_init, cnn, X[:1], key=key),
}


def sgd(rate):
    return optax.inject_hyperparams(optax.sgd)(learning_rate=rate, momentum=0.9)


def cnn_of(library):
    def make(key, rate):
        net_key, key = jax.random.split(key)
        return solstice.ClassificationExperiment(
            NETWORKS[library](net_key), sgd(rate), example_input=X[:1], key=key
        )

    return make


def mlp(key, rate=0.1):
    return solstice.ClassificationExperiment(
        eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), eqx.nn.MLP(16, CLASSES, 8, 1, key=key)]),
        sgd(rate),
        num_classes=CLASSES,
    )


def assert_close(one, two, rtol=1e-5):
    one, two = (solstice.tree.leaves_by_path(eqx.filter(tree, eqx.is_array)) for tree in (one, two))
    assert one.keys() == two.keys()
    for name, leaf in one.items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            assert (leaf == two[name]).all(), name
        else:
            np.testing.assert_allclose(leaf, two[name], rtol=rtol, atol=rtol, err_msg=name)


# The members are stacked arrays, whatever library they came from, and the laws train a stack of
# each; so of networks that are flags, streams and variables, one each.
MARKS = {
    "equinox": (),
    "nnx": pytest.mark.slow,
    "keras": pytest.mark.slow,
}


@pytest.mark.parametrize(
    "library",
    [
        pytest.param(name, marks=MARKS.get(name, (pytest.mark.slow, pytest.mark.soak)))
        for name in NETWORKS
    ],
)
def test_a_member_goes_the_way_it_goes_alone(library):
    make = cnn_of(library)
    start = solstice.Ensemble.init(make, KEYS[:2], rate=RATES[:2])
    traces = type(start).train_step.traces
    ensemble = start.train(None, DS, num_steps=60, progress=False, recompile="error")
    assert type(start).train_step.traces == traces + 1
    outs = ensemble.eval_step(DS[0])[1]
    for i in range(2):
        # A Keras network draws its initial values itself, once for all members.
        alone = start.member(i) if library == "keras" else make(KEYS[i], RATES[i])
        alone = alone.train(None, DS, num_steps=60, progress=False)
        assert_close(ensemble.member(i), alone)
        assert_close(outs.member(i), alone.eval_step(DS[0])[1])


def test_members_differ_in_what_is_stacked():
    ensemble = solstice.Ensemble.init(mlp, [0, 0, 1], rate=[0.1, 0.2, 0.1]).train(
        1, DS, progress=False
    )
    rates = [float(ensemble.member(i).optimizer.learning_rate()) for i in range(3)]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.1])
    logits = [np.asarray(ensemble.member(i)(X)) for i in range(3)]
    assert not np.allclose(logits[0], logits[1]) and not np.allclose(logits[0], logits[2])


@pytest.mark.slow
def test_weight_decays_are_stacked_and_the_experiment_is_made_once():
    made = []

    def make(key, decay):
        made.append(key)
        tx = optax.inject_hyperparams(optax.adamw)(0.01, weight_decay=decay)
        net = eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), eqx.nn.MLP(16, CLASSES, 8, 1, key=key)])
        return solstice.ClassificationExperiment(net, tx, num_classes=CLASSES)

    decays = jnp.array([0.0, 0.1, 1.0])
    ensemble = solstice.Ensemble.init(make, [0, 0, 0], decay=decays).train(20, DS, progress=False)
    assert len(made) == 1
    norms = []
    for i in range(3):
        alone = make(jax.random.key(0), decays[i]).train(20, DS, progress=False)
        assert_close(ensemble.member(i), alone)
        norms.append(float(optax.global_norm(alone.model.params)))
    assert norms[0] > norms[1] > norms[2]


@pytest.mark.slow
def test_each_member_can_have_batches_of_its_own():
    orders = [np.random.default_rng(i).permutation(32).reshape(4, 8) for i in range(3)]
    own = [[(X[part], Y[part]) for part in order] for order in orders]
    stacked = [
        jax.tree.map(lambda *each: np.stack(each), *batches) for batches in zip(*own, strict=True)
    ]
    ensemble = solstice.Ensemble.init(mlp, KEYS, own_batches=True, rate=RATES)
    ensemble = ensemble.train(20, stacked, progress=False)
    for i in range(3):
        assert_close(ensemble.member(i), mlp(KEYS[i], RATES[i]).train(20, own[i], progress=False))
    with pytest.raises(ValueError, match="first axis of 3 members"):
        ensemble.train(1, DS, progress=False)


def test_metrics_are_those_of_each_member_and_their_spread():
    ensemble = solstice.Ensemble.init(mlp, KEYS, rate=RATES).train(3, DS, progress=False)
    results = ensemble.test(DS, progress=False)
    alone = [ensemble.member(i).test(DS, progress=False) for i in range(3)]
    assert set(results) == {
        f"{name}{end}"
        for name in alone[0]
        for end in ("", "_std", "_member_0", "_member_1", "_member_2")
    }
    for name in alone[0]:
        each = [one[name] for one in alone]
        np.testing.assert_allclose([results[f"{name}_member_{i}"] for i in range(3)], each, 1e-5)
        np.testing.assert_allclose(results[name], np.mean(each), rtol=1e-5)
        np.testing.assert_allclose(results[f"{name}_std"], np.std(each), rtol=1e-4, atol=1e-6)


def test_metrics_merge_member_by_member(mean):
    stacked = [
        EnsembleMetrics(jax.vmap(mean)(jnp.full((2, 4), i) * jnp.ones((2, 1)))) for i in (1, 2)
    ]
    merged = solstice.reduce(stacked)
    assert merged.per_member()["mean"].tolist() == [1.5, 1.5]
    assert merged.per_member()["count"].tolist() == [8, 8]
    with pytest.raises(solstice.UsageError, match="2 members"):
        merged.merge(merged.member(0))
    with pytest.raises(IndexError, match="one of 2 members"):
        merged.member(2)


class OnHost(solstice.Metrics):
    """Reads its values where a compiled call has none."""

    total: jax.Array

    def merge(self, other):
        return OnHost(jnp.asarray(float(self.total) + float(other.total)))

    def compute(self):
        return {"total": float(self.total)}


def test_metrics_that_read_values_on_the_host_merge_too():
    metrics = EnsembleMetrics(OnHost(jnp.array([1.0, 2.0])))
    merged = solstice.reduce([metrics, metrics])
    assert merged.per_member()["total"].tolist() == [2.0, 4.0]


def test_outs_that_are_no_metrics_are_stacked():
    class Bare(solstice.Experiment):
        weight: jax.Array

        def train_step(self, batch):
            return solstice.replace(self, weight=self.weight + batch), {"was": self.weight}

        eval_step = train_step

    seen = []
    record = solstice.Callback()
    record.on_step_end = lambda outs, *rest: seen.append(outs)
    ensemble = solstice.Ensemble.init(lambda key, w: Bare(w), [0, 0], w=[1.0, 2.0])
    ensemble = solstice.train(ensemble, 1, [1.0, 1.0], callbacks=[record], progress=False)
    assert seen[1]["was"].tolist() == [2.0, 3.0]
    assert ensemble.members.weight.tolist() == [3.0, 4.0]
    with pytest.raises(TypeError, match="a method `predict`; Bare has none"):
        ensemble.predict(X)


@pytest.mark.slow
def test_a_member_that_stopped_stays_as_it_is():
    # The first never improves; the second does.
    make = lambda key, rate: mlp(KEYS[0], rate)  # noqa: E731
    rule = MemberStopping("average_loss", patience=2, min_delta=1e-6)
    ensemble = solstice.Ensemble.init(make, KEYS[:2], stopping=rule, rate=[0.0, 0.05])
    start = ensemble.member(1)
    ensemble = ensemble.train(6, DS, DS, progress=False)
    assert ensemble.active.tolist() == [False, True]
    assert not np.allclose(ensemble.member(1)(X), start(X))
    assert_close(ensemble.member(1).model, make(None, 0.05).train(6, DS, progress=False).model)
    # Its momentum would go on, were it not for the mask: it took 3 epochs of 6.
    assert int(ensemble.member(0).optimizer.state.count) == 12
    assert int(ensemble.member(1).optimizer.state.count) == 24
    assert_close(ensemble.best("average_loss"), ensemble.member(1))


def test_stopping_says_what_it_misses():
    ensemble = solstice.Ensemble.init(mlp, KEYS, stopping=MemberStopping("aucroc"))
    with pytest.raises(solstice.UsageError, match=r"'aucroc'.*accuracy"):
        ensemble.train(1, DS, DS, progress=False)
    with pytest.raises(ValueError, match="patience"):
        MemberStopping("accuracy", patience=0)
    with pytest.raises(ValueError, match="'min' or 'max'"):
        MemberStopping("accuracy", mode="most")  # pyright: ignore[reportArgumentType]


def test_the_best_member_is_the_one_with_the_best_metric():
    ensemble = solstice.Ensemble.init(mlp, KEYS, rate=[0.0, 0.05, 1e-4]).train(
        20, DS, progress=False
    )
    for metric in ("accuracy", "average_loss"):
        assert_close(ensemble.best(metric, DS), ensemble.member(1), rtol=0)
    assert_close(
        ensemble.best("average_loss", DS, mode="max"),
        max(
            (ensemble.member(i) for i in range(3)),
            key=lambda one: one.test(DS, progress=False)["average_loss"],
        ),
        rtol=0,
    )
    assert_close(ensemble.best("loss", DS), ensemble.best("average_loss", DS), rtol=0)
    with pytest.raises(ValueError, match=r"'los' is not one of .*average_loss, accuracy"):
        ensemble.best("los", DS)
    with pytest.raises(ValueError, match="pass a dataset"):
        ensemble.best("accuracy")
    with pytest.raises(IndexError, match="one of 3 members; it is 3"):
        ensemble.member(3)


class Told(solstice.Metrics):
    """Says the value it is told under the names of `says`, each with a direction or None."""

    value: jax.Array
    says: tuple = eqx.field(static=True)

    def merge(self, other):
        return solstice.replace(self, value=self.value + other.value)

    def compute(self):
        return {name: self.value for name, _ in self.says} | {"array": jnp.ones(2)}

    def better(self, name):
        return dict(self.says)[name] or super().better(name)


class Valued(solstice.Experiment):
    """A member with a value, to which training adds the batch."""

    value: jax.Array
    says: tuple = eqx.field(static=True)

    def train_step(self, batch):
        return solstice.replace(self, value=self.value + batch * jnp.sign(self.value)), None

    def eval_step(self, batch):
        return self, Told(self.value, self.says)


def valued(values, *says, **options):
    return solstice.Ensemble.init(
        lambda key, value: Valued(value, says), [0] * len(values), value=values, **options
    )


NAN = float("nan")


@pytest.mark.parametrize(
    ("metric", "says", "larger"),
    [
        *[(name, (name, None), True) for name in ("r2", "f1_macro", "auroc", "top_5_accuracy")],
        *[(name, (name, None), False) for name in ("mse", "mae", "perplexity", "ece", "loss")],
        ("loss", ("average_loss", None), False),
        ("mine", ("mine", "max"), True),
        ("mine", ("mine", "min"), False),
        ("accuracy", ("accuracy", "min"), False),  # the metric knows better
    ],
)
def test_the_metric_knows_which_member_is_the_best(metric, says, larger):
    ensemble = valued([2.0, NAN, 3.0, 1.0], says)
    assert ensemble.best(metric, [0.0]).value == (3 if larger else 1)
    for mode, best in (("min", 1), ("max", 3)):
        assert ensemble.best(metric, [0.0], mode=mode).value == best
    # By the best pass so far: the second and third member go up, then all do.
    rule = MemberStopping(metric, patience=9)
    ensemble = valued([2.0, -3.0, NAN, 1.0], says, stopping=rule)
    ensemble = solstice.train(ensemble, 3, [1.0], [0.0], progress=False)
    assert ensemble.best(metric).value == (5 if larger else -6)


def test_a_direction_that_nobody_knows_is_asked_for():
    ensemble = valued([1.0, 2.0], ("mine", None))
    with pytest.raises(ValueError, match="which are mine"):
        ensemble.best("array", [0.0])
    with pytest.raises(ValueError, match=r"larger 'mine' is better .* mode='min' or mode='max'"):
        ensemble.best("mine", [0.0])
    ensemble = valued([1.0, 2.0], ("mine", None), stopping=MemberStopping("mine"))
    with pytest.raises(solstice.UsageError, match=r"MemberStopping\('mine', mode='min'\)"):
        solstice.train(ensemble, 1, [1.0], [0.0], progress=False)


def test_there_is_no_best_of_members_without_a_value():
    ensemble = valued([NAN, NAN], ("loss", None), stopping=MemberStopping("loss"))
    for arguments in ([[0.0]], []):  # all diverged; none was validated
        with pytest.raises(ValueError, match="No member has a finite value of 'loss'"):
            ensemble.best("loss", *arguments)


@pytest.mark.parametrize("mode", ["min", "max", None])
def test_a_value_that_is_no_number_is_no_improvement_and_hides_none(mode):
    says = ("mine", "max") if mode is None else ("mine", None)
    rule = MemberStopping("mine", mode=mode, patience=3)
    sign = -1.0 if mode == "min" else 1.0

    class Late(Valued):
        def eval_step(self, batch):
            value = jnp.where(jnp.abs(self.value) < 3, jnp.nan, sign * jnp.abs(self.value))
            return self, Told(value, self.says)

    ensemble = solstice.Ensemble.init(
        lambda key, value: Late(value, (says,)), [0, 0], value=[1.0, 0.0], stopping=rule
    )
    ensemble = solstice.train(ensemble, 6, [1.0], [0.0], progress=False)
    # The first has its values from the second pass on; the second never has one.
    assert ensemble.active.tolist() == [True, False]
    assert ensemble.best("mine").value == 7


def test_predictions_are_of_the_mean_probabilities():
    ensemble = solstice.Ensemble.init(mlp, KEYS, rate=RATES).train(5, DS, progress=False)
    probabilities = np.mean([jax.nn.softmax(ensemble.member(i)(X)) for i in range(3)], axis=0)
    np.testing.assert_allclose(np.exp(ensemble(X)), probabilities, rtol=1e-5)
    predicted = solstice.predict(ensemble, DS, progress=False)
    assert (predicted == probabilities.argmax(-1)).all()


@pytest.mark.slow
def test_an_ensemble_of_ensembles_averages_probabilities_too():
    def pair(key):
        return solstice.Ensemble.init(lambda key: mlp(key), jax.random.split(key))

    outer = solstice.Ensemble.init(pair, KEYS).train(5, DS, progress=False)
    every = [outer.member(i).member(j)(X) for i in range(3) for j in range(2)]
    probabilities = np.mean([jax.nn.softmax(one) for one in every], axis=0)
    np.testing.assert_allclose(np.exp(outer(X)), probabilities, rtol=1e-5)
    assert (outer.predict(X) == probabilities.argmax(-1)).all()
    computed = outer.test(DS, progress=False)
    for i in range(3):
        inner = outer.member(i).test(DS, progress=False)
        assert computed[f"average_loss_member_{i}"] == pytest.approx(inner["average_loss"])
        assert computed[f"average_loss_std_member_{i}"] == pytest.approx(inner["average_loss_std"])
        for j in range(2):
            found = computed[f"average_loss_member_{i}_member_{j}"]
            assert found == pytest.approx(inner[f"average_loss_member_{j}"])
    losses = [computed[f"average_loss_member_{i}"] for i in range(3)]
    assert computed["average_loss"] == pytest.approx(np.mean(losses))
    assert computed["average_loss_std"] == pytest.approx(np.std(losses), rel=1e-4)
    metrics = outer.eval_step(DS[0])[1]
    assert metrics.better("average_loss_member_2_member_1") == "min"
    assert metrics.better("accuracy_member_2") == "max"


class Trained(solstice.experiments.Runnable):
    """An experiment that is only trained."""

    weight: jax.Array

    def train_step(self, batch):
        return solstice.replace(self, weight=self.weight + 1), solstice.metrics.Mean(self.weight)


def test_members_that_are_only_trained_cannot_be_evaluated():
    ensemble = solstice.Ensemble.init(lambda key: Trained(jnp.zeros(())), [0, 1])
    several = solstice.Ensemble.init(
        lambda key: solstice.Ensemble.init(lambda key: Trained(jnp.zeros(())), [0, 1]), [0, 1]
    )
    for exp in (Trained(jnp.zeros(())), ensemble, several):
        assert exp.train(1, [np.ones(2)], progress=False) is not None
        needs = r", which needs an experiment with a method `eval_step`; Trained has none\. Define"
        with pytest.raises(TypeError, match=f"test\\(\\) is called{needs}"):
            exp.test([np.ones(2)], progress=False)
        with pytest.raises(TypeError, match=f"val_ds is given{needs}"):
            exp.train(1, [np.ones(2)], [np.ones(2)], progress=False)


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda key, rate: mlp_with(optax.sgd(rate)), "step_size"),
        (lambda key, rate: mlp_with(optax.chain(optax.clip(1.0), optax.adam(rate))), "optimizer"),
        (lambda key, rate: Static(rate), "Static: rate holds one"),
        (lambda key, rate: Static({"deep": [lambda x: x * rate]}), r"rate\['deep'\]\[0\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:A JAX array is being set as static:UserWarning")
def test_a_value_of_one_member_in_a_static_field_is_an_error(make, where):
    with pytest.raises(TypeError, match=f"(?s)tracer.*{where}.*inject_hyperparams"):
        solstice.Ensemble.init(make, KEYS, rate=RATES)


def test_a_hidden_value_of_one_member_is_an_error_in_the_step():
    hidden = []

    class Hiding(solstice.Experiment):
        weight: jax.Array

        def train_step(self, batch):
            return solstice.replace(self, weight=self.weight * hidden[0]), None

        eval_step = train_step

    def make(key, rate):
        hidden.append(rate)
        return Hiding(rate)

    ensemble = solstice.Ensemble.init(make, KEYS, rate=RATES)
    with pytest.raises(TypeError, match=r"Hiding\.train_step met one"):
        solstice.train(ensemble, 1, DS, progress=False)


def mlp_with(optimizer):
    return solstice.ClassificationExperiment(
        eqx.nn.Linear(4, CLASSES, key=jax.random.key(0)), optimizer, CLASSES
    )


class Static(solstice.Experiment):
    rate: object = eqx.field(static=True)

    def train_step(self, batch):
        return self, None

    eval_step = train_step


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((mlp, []), {}, "a PRNG key for each member"),
        ((mlp, KEYS[0]), {}, "a PRNG key for each member"),
        ((mlp, KEYS), {"rate": [0.1, 0.2]}, "rate is expected to have a value for each of the 3"),
        ((mlp, KEYS), {"rate": 0.1}, "rate is expected to have a value for each of the 3"),
    ],
)
def test_wrong_arguments_say_what_to_do(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        solstice.Ensemble.init(*arguments, **options)


def test_a_member_refuses_bad_batches():
    with pytest.raises(ValueError, match="classes from 0 to 2"):
        solstice.Ensemble.init(mlp, KEYS).train(1, [(X, Y + 5)], progress=False)


class KilledError(Exception):
    pass


@pytest.mark.slow
def test_a_saved_ensemble_goes_on_to_the_same_bits(tmp_path):
    rule = MemberStopping("average_loss", patience=2)

    def make():
        return solstice.Ensemble.init(cnn_of("linen"), KEYS, stopping=rule, rate=RATES)

    def saving(name):
        return solstice.CheckpointingCallback(tmp_path / name)

    kill = solstice.Callback()

    def raise_killed(exp, global_step, mode, batch):
        if mode == "train" and global_step == 10:
            raise KilledError

    kill.on_step_start = raise_killed
    whole = make().train(5, DS, DS, [saving("whole")], progress=False)
    with pytest.raises(KilledError):
        make().train(5, DS, DS, [saving("killed"), kill], progress=False)
    again = saving("killed")
    resumed = make().train(5, DS, DS, [again], resume_from=again, progress=False)
    assert_close(whole, resumed, rtol=0)
    assert_close(solstice.restore(tmp_path / "whole", make()), whole, rtol=0)


def test_several_steps_in_one_call_are_the_same():
    ensemble = solstice.Ensemble.init(mlp, KEYS, rate=RATES)
    one = ensemble.train(5, DS, progress=False)
    many = ensemble.train(5, DS, steps_per_call=4, progress=False)
    assert_close(one, many)


def with_depth(depth, key):
    layers = [eqx.nn.Linear(16, 16, key=key) for _ in range(depth)]
    return eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), *layers, eqx.nn.Linear(16, 3, key=key)])


# Networks that differ in shape or in their program, by what makes them.
BUILT = {
    "linen": lambda width, key: flax.linen.Dense(features=width),
    "nnx": lambda width, key: flax.nnx.Linear(16, width, rngs=flax.nnx.Rngs(key)),
    "haiku": lambda width, key: hk.transform(lambda x: hk.Linear(width)(x)),
    "equinox": lambda width, key: eqx.nn.MLP(16, 3, width, 1, key=key),
    "stax": lambda width, key: stax.serial(stax.Dense(width), stax.Dense(3)),
    "loop": with_depth,
    "condition": lambda width, key: eqx.nn.Linear(16, 3, use_bias=bool(width > 4), key=key),
    "array": lambda width, key: eqx.nn.Linear(16, len(np.zeros(int(width))), key=key),
}


@pytest.mark.parametrize("library", BUILT)
def test_an_ensemble_of_networks_built_otherwise_is_refused_by_name(library):
    def make(key, rate, width):
        return solstice.ClassificationExperiment(
            BUILT[library](width, key), sgd(rate), example_input=X.reshape(32, 16), key=0
        )

    with pytest.raises(TypeError, match=r"builds them with 'width', on which shapes") as raised:
        solstice.Ensemble.init(make, KEYS, rate=RATES, width=[3, 5, 8])
    assert raised.value.__cause__ is not None
    assert "functools.partial(make_experiment, width=value)" in str(raised.value)


@pytest.mark.parametrize("rates", [["relu", "tanh", "relu"], [jnp.tanh] * 3, [[1], [1, 2], [3]]])
def test_hyperparameters_that_are_no_numbers_are_refused(rates):
    with pytest.raises(TypeError, match=r"rate is expected to be an array or a list of numbers, o"):
        solstice.Ensemble.init(mlp, KEYS, rate=rates)


def test_an_error_of_the_users_own_stays_that_error():
    def make(key, rate):
        raise LookupError("no such file")

    with pytest.raises(LookupError, match="no such file"):
        solstice.Ensemble.init(make, KEYS, rate=RATES)
    with pytest.raises(ZeroDivisionError):
        solstice.Ensemble.init(lambda key: 1 / 0, KEYS)
