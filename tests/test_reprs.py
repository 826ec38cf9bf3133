"""What an object prints as: short, true, without insides, whatever became of its arrays."""

import inspect
import re
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from jax.example_libraries import stax
from jax.sharding import PartitionSpec
from kinds import Made
from law_table import OPTIMIZERS, split
from metrics_table import TABLE
from networks import LIBRARIES
from optimizer_table import TABLES
from sink_table import SINKS
from test_arguments import ROWS, public_callables

import solstice
from solstice.loggers import CSV, Console, JSONLines
from solstice.sharding import DataParallel, FullySharded, Rules
from solstice.tree.reprs import Shown, ShownAsMade
from solstice.triggers import At, Every, First

X, Y = jnp.eye(4), jnp.array([0, 1, 1, 0])
INSIDES = re.compile(r" at 0x|\bStatic\(|\bAside\(|(?<![\w.'])_\w+=|tracer|Traced|\n\s*\n", re.I)


def faults(one):
    """Return what is wrong with what an object prints as."""
    text = repr(one)
    lines = text.splitlines()
    return [
        said
        for wrong, said in [
            (len(lines) > 12, f"{len(lines)} lines"),
            (max(map(len, lines)) > 100, "a long line"),
            (INSIDES.search(text), "its insides"),
            (type(one).__name__ not in text and "|" not in text, "it does not name its class"),
        ]
        if wrong
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Told(one=<function at 0x7f>)", "its insides"),
        ("Told(one=Static(3))", "its insides"),
        ("Told(_one=3)", "its insides"),
        ("Told(one=Traced<float32[]>)", "its insides"),
        ("Told(\n" + "  one,\n" * 12 + ")", "14 lines"),
        (f"Told({'one' * 40})", "a long line"),
        ("Other()", "it does not name its class"),
    ],
    ids=["address", "box", "private", "tracer", "lines", "line", "class"],
)
def test_a_bad_repr_is_caught(text, fault):
    class Told:
        def __repr__(self):
            return text

    assert faults(Told()) == [fault]


def network():
    return stax.serial(stax.Dense(2))


def classification(**options):
    return solstice.ClassificationExperiment(
        network(), optax.adam(0.1), **{"example_input": X, "key": 0} | options
    )


def member(key, rate):
    adam = optax.inject_hyperparams(optax.adam)(rate)
    return solstice.ClassificationExperiment(network(), adam, example_input=X, key=key)


def ensemble():
    return solstice.Ensemble.init(member, jax.random.split(jax.random.key(0), 3), rate=[0.1] * 3)


class Own(solstice.Experiment):
    """An experiment of a user, with all sorts of fields."""

    network: eqx.nn.MLP
    opt_state: tuple
    step: jax.Array
    names: dict = eqx.field(static=True)
    loss: object = eqx.field(static=True)
    _hidden: object = eqx.field(static=True)

    def __init__(self):
        self.network = eqx.nn.MLP(4, 2, 8, 20, key=jax.random.key(0))
        self.opt_state = optax.adam(0.1).init(eqx.filter(self.network, eqx.is_array))
        self.step = jnp.zeros((), jnp.int32)
        self.names = dict.fromkeys(range(100), "name" * 20)
        self.loss = lambda outputs, y: 0.0
        self._hidden = object()

    def train_step(self, batch):
        return self, None


MANY = solstice.metrics.MetricsDict(
    **{f"metric_{i}": solstice.metrics.Mean(1.0) for i in range(40)}
)
EXPERIMENTS = {
    "classification": classification,
    "all options": lambda: classification(
        ema_decay=0.9, compute_dtype="bfloat16", accumulate_steps=2
    ),
    "regression": lambda: solstice.RegressionExperiment(
        network(), keras.optimizers.Adam(0.1), example_input=X, key=0
    ),
    "binary": lambda: solstice.BinaryClassificationExperiment(
        stax.serial(stax.Dense(1)), optax.adam(0.1), example_input=X, key=0, ignore_index=-1
    ),
    "multi-label": lambda: solstice.MultiLabelExperiment(
        network(), optax.adam(0.1), example_input=X, key=0, metrics=lambda *batch: MANY
    ),
    "own": Own,
    "ensemble": ensemble,
}
KINDS = "cnn", "attention", "parameterless"
# What is a pytree, by name: how it is made.
TREES = EXPERIMENTS | {f"metrics: {name}": lambda r=r: r.make(r.batch) for name, r in TABLE.items()}
TREES |= {"forty metrics": lambda: MANY}
TREES |= {
    f"{library}: {kind}": lambda s=subjects[kind]: s.make_model(jax.random.key(0))
    for library, subjects in LIBRARIES.items()
    for kind in KINDS
}
TREES |= {
    "wrapped": lambda: solstice.compat.lora(
        solstice.compat.quantize(LIBRARIES["linen"]["cnn"].make_model(jax.random.key(0))),
        rank=1,
        key=0,
    )
}
TREES |= {
    f"{library}: {name}": lambda row=TABLES[library][name]: solstice.compat.as_optimizer(
        row.make()
    ).init(row.pair(row.params))
    for library, names in OPTIMIZERS.items()
    for name in split(names)[:6]
}


@pytest.mark.parametrize("make", TREES.values(), ids=TREES)
def test_a_tree_prints_short_and_the_same_wherever_its_arrays_are(make):
    one = make()
    text = repr(one)
    assert not faults(one), text
    arrays, rest = eqx.partition(one, lambda leaf: isinstance(leaf, jax.Array | np.ndarray))
    shapes = jax.eval_shape(lambda: arrays)
    assert repr(eqx.combine(shapes, rest)) == text
    seen = []
    jax.jit(lambda arrays: seen.append(repr(eqx.combine(arrays, rest)))).lower(arrays)
    assert seen == [text]
    gone = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), arrays)
    jax.tree.map(lambda leaf: leaf.delete(), gone)
    assert repr(eqx.combine(gone, rest)) == text


def shown_classes():
    bases = Shown, ShownAsMade
    return {
        name: one
        for name, one in public_callables().items()
        if isinstance(one, type) and issubclass(one, bases) and not inspect.isabstract(one)
    }


def made(row):
    values = {
        name: argument.value.make() if isinstance(argument.value, Made) else argument.value
        for name, argument in row.arguments.items()
    }
    bound = inspect.BoundArguments(row.signature, values)
    with warnings.catch_warnings(action="ignore"):
        return row.function()(*bound.args, **bound.kwargs)


CALLS = [row for row in ROWS if row.name in shown_classes()]


@pytest.mark.parametrize("row", CALLS, ids=lambda row: row.name)
def test_what_a_user_makes_prints_short(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not faults(one := made(row)), repr(one)


def test_every_class_that_users_make_is_among_these():
    elsewhere = {type(make()).__name__ for make in EXPERIMENTS.values()}
    # A base class of a user's own, and what an evaluation of TensorBoard's needs.
    elsewhere |= {"Callback", "AnyOf", "TriggeredCallback"}
    elsewhere |= {"WrappedModel", "Exported"}  # `compat.lora` and `load_exported` make them
    tried = {row.name for row in CALLS}
    missing = {name for name in shown_classes() if name.split(".")[-1] not in elsewhere} - tried
    assert not missing


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_prints_short(name, tmp_path):
    sink = SINKS[name].make(tmp_path)
    if isinstance(sink, solstice.loggers.Sink):
        assert not faults(sink), repr(sink)


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (Every(steps=100), "Every(steps=100)"),
        (Every(seconds=0.5) | At(1), "Every(seconds=0.5) | At(steps=(1,))"),
        (Every(epochs=1) | At(2) | First(3), "Every(epochs=1) | At(steps=(2,)) | First(n=3)"),
        (First(2, of_process=True), "First(n=2, of_process=True)"),
        (At(range(1, 99)), "At(steps=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, ... 86 more))"),
        (Console(["loss"]), "Console(['loss'])"),
        (JSONLines("log.jsonl", append=True), "JSONLines('log.jsonl', append=True)"),
        (
            solstice.LoggingCallback(10, [CSV("log.csv"), print], when=None),
            "LoggingCallback(10, [CSV('log.csv'), print], when=None)",
        ),
        (
            solstice.EarlyStoppingCallback.no_improvement("loss", patience=3),
            "NoImprovement(\n  'loss',\n  mode=None,\n  patience=3,\n  min_delta=0.0,\n"
            "  watch='val',\n  restore_best=False,\n)",
        ),
        (
            solstice.EvaluationCallback(
                lambda exp, batch, key: None, {"test": [(X, Y)]}, when=Every(epochs=1)
            ),
            "EvaluationCallback(<lambda>, {'test': [(float32[4,4], int32[4])]}, "
            "when=Every(epochs=1))",
        ),
        (solstice.metrics.Mean(1.0), "Mean(total=float32[2], count=int32[])"),
        (
            solstice.metrics.MetricsDict(solstice.metrics.Max(1.0), loss=solstice.metrics.Sum(1.0)),
            "MetricsDict(Max(greatest=float32[], count=int32[]), loss=Sum(total=float32[2]))",
        ),
    ],
    ids=lambda one: "" if isinstance(one, str) else type(one).__name__,
)
def test_what_it_prints_is(one, text):
    assert repr(one) == text


def test_a_model_inside_of_an_experiment_says_what_it_holds():
    text = repr(classification())
    assert "model=StaxModel(params=10 numbers in 2 arrays" in text, text


def test_a_placement_prints_its_devices():
    devices = len(jax.devices())
    mesh = f"mesh=Mesh(data={devices}), batch_spec=P('data')"
    assert repr(DataParallel()) == f"DataParallel({mesh})"
    assert repr(FullySharded(min_size=8)) == f"FullySharded({mesh}, min_size=8)"
    rules = repr(Rules([("kernel", PartitionSpec(None, "data"))]))
    assert rules == f"Rules({mesh}, rules=(('kernel', P(None, 'data')),))"


def test_a_trained_keras_network_prints_none_of_the_values_that_keras_still_holds():
    built = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2, name="head")])
    exp = solstice.ClassificationExperiment(built, keras.optimizers.Adam(0.5), example_input=X)
    exp = exp.train(3, [(X, Y)], progress=False)
    assert repr(exp.model) == (
        "KerasModel(\n"
        "  params=10 numbers in 2 arrays,\n"
        "  network=Sequential(...),\n"
        "  flags=(('training', True),),\n"
        ")"
    )
    assert repr(exp.optimizer) == (
        "KerasOptimizer(optimizer=Adam, learning_rate=0.5, state=22 numbers in 6 arrays)"
    )


class Keeps(solstice.Callback):
    """A callback of a user, made by its own words."""

    def __init__(self, what, *, times=1):
        self.text = repr(self)
        super().__init__()


class Odd:
    """What fails whatever it is asked."""

    def __repr__(self):
        raise RuntimeError("no repr")

    def __getattr__(self, name):
        raise RuntimeError(name)

    def __iter__(self):
        raise RuntimeError("no iter")


def test_a_callback_of_a_user_prints_the_call_and_keeps_nothing_alive():
    callback = Keeps(Odd(), times=[Odd(), 10**5000, np.ones((2, 3)), jnp.ones, print])
    assert callback.text == repr(callback)
    assert (
        repr(callback) == "Keeps(Odd(...), times=[Odd(...), int(...), float64[2,3], ones, print])"
    )
    assert not [one for one in vars(callback).values() if not isinstance(one, str | tuple)]
    loop = []
    loop.append(loop)
    assert repr(Keeps(loop)) == "Keeps([[[[list(...)]]]])"
    assert repr(Keeps("https://me:word@host/run")) == "Keeps('https://...@host/run')"


def test_what_raises_whatever_it_is_asked_prints_its_class():
    class Silent(Odd):
        @property
        def __dict__(self):
            raise RuntimeError("no fields")

        @property
        def __class__(self):
            raise RuntimeError("no class")

    assert repr(Keeps(Silent())) == "Keeps(Silent(...))"


def test_a_constructor_keeps_its_signature():
    assert str(inspect.signature(Keeps)) == "(what, *, times=1)"
    assert next(iter(inspect.signature(CSV).parameters)) == "path"


def test_a_half_made_object_prints_what_there_is():
    assert repr(object.__new__(Keeps)) == "Keeps()"
    assert repr(object.__new__(Own)) == "Own()"
    for cls in shown_classes().values():
        assert repr(object.__new__(cls)).partition("(")[0] in (cls.__name__, ""), cls


def test_a_run_prints_nothing(monkeypatch):
    def refuse(self):
        raise AssertionError("a loop has no time for it")

    exp, batch = classification(), (X, Y)
    monkeypatch.setattr(Shown, "__repr__", refuse)
    monkeypatch.setattr(ShownAsMade, "__repr__", refuse)
    callbacks = [solstice.HistoryCallback(1), solstice.EarlyStoppingCallback(lambda outs: False)]
    exp.train(2, [batch, batch], [batch], callbacks, progress=False)
