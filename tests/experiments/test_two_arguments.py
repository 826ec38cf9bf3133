"""What an experiment is not told it reads: from an example, or else from the first batch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.example_libraries import stax
from networks import LIBRARIES
from networks.common import CLASSES, TX

import solstice

KEY = jax.random.key(0)
LABELS = np.arange(4) % CLASSES


def leaves_equal(one, other):
    return eqx.tree_equal(jax.tree.leaves(one), jax.tree.leaves(other))


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_model_and_an_optimizer_are_enough(library):
    subject = LIBRARIES[library]["mlp"]
    model, ds = subject.make_model(KEY), [(subject.inputs[0], LABELS)]
    exp = solstice.ClassificationExperiment(model, TX)
    assert exp.num_classes in (CLASSES, None)
    assert (exp.num_classes is None) == (model.example is None)
    told = solstice.ClassificationExperiment(model, TX, CLASSES)
    trained = exp.train(num_epochs=2, train_ds=ds, val_ds=ds, progress=False)
    assert leaves_equal(trained, told.train(2, ds, progress=False))
    assert trained.test(ds, progress=False) == told.train(2, ds, progress=False).test(
        ds, progress=False
    )
    for label in (CLASSES, -1):
        with pytest.raises(ValueError, match=r"classes from 0 to 2.*4 of 4 are not"):
            exp.train(1, [(subject.inputs[0], np.full(4, label))], progress=False)


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_was_read_and_what_was_told_share_a_compilation(library):
    subject = LIBRARIES[library]["mlp"]
    x, model = subject.inputs[0], subject.make_model(KEY)

    def make(*arguments, **options):
        return solstice.ClassificationExperiment(model, TX, *arguments, **options)

    told = [make(CLASSES), make(CLASSES, example_input=x), make(example_input=x[:1])]
    untold = [make(), make()]
    for same in (told, untold):
        assert {jax.tree.structure(exp) for exp in same} == {jax.tree.structure(same[0])}
        same[0].train_step((x, LABELS))
        step = type(same[0]).train_step
        traces = step.traces
        for exp in same:
            exp.train_step((x, LABELS))
        assert step.traces == traces


def test_an_experiment_that_was_told_the_number_equals_one_that_read_it():
    x, net = jnp.ones((4, 4)), stax.serial(stax.Dense(2))
    told = solstice.ClassificationExperiment(net, TX, 2, example_input=x, key=0)
    read = solstice.ClassificationExperiment(net, TX, example_input=x[:2], key=0)
    assert told.task == read.task and jax.tree.structure(told) == jax.tree.structure(read)
    assert read.num_classes == 2
    with pytest.raises(AttributeError):
        read.task.num_classes = 3


def test_what_depends_on_the_number_of_classes_waits_for_it():
    x, net = jnp.ones((4, 4)), eqx.nn.Linear(4, 3, key=KEY)
    weighted = solstice.ClassificationExperiment(net, TX, class_weights=[1, 2])
    with pytest.raises(ValueError, match="one for each of the 3 classes; there are 2"):
        weighted.train(1, [(x, LABELS)], progress=False)
    exp = solstice.ClassificationExperiment(net, TX, class_weights=[1, 2, 3], top_k=2)
    assert exp.num_classes is None
    assert "top_2_accuracy" in exp.test([(x, LABELS)], progress=False)
    assert exp.predict(x).shape == (4,)
    ensemble = solstice.Ensemble.init(
        lambda key: solstice.ClassificationExperiment(eqx.nn.Linear(4, 3, key=key), TX), [0, 1]
    )
    ensemble = ensemble.train(1, [(x, LABELS)], progress=False)
    results = ensemble.test([(x, LABELS)], progress=False)
    wanted = float((ensemble.member(1).predict(x) == LABELS).mean())
    assert results["accuracy_member_1"] == pytest.approx(wanted)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_regression_takes_two_arguments_too(library):
    subject = LIBRARIES[library]["shared"]
    x, model = subject.inputs[0], subject.make_model(KEY)
    exp = solstice.RegressionExperiment(model, TX)
    trained = exp.train(1, [(x, x)], progress=False)
    wanted = float(((trained(x) - x) ** 2).mean())
    assert trained.test([(x, x)], progress=False)["mse"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("precision", "compute_dtype"), ("seed", "key"), ("loss_fn", "loss"), ("net", "model")],
)
def test_what_others_call_an_argument_is_answered(wrong, right):
    for make in (solstice.ClassificationExperiment, solstice.RegressionExperiment):
        said = rf"{make.__name__}\(\) has no argument '{wrong}'; did you mean '{right}'"
        with pytest.raises(solstice.SolsticeError, match=said):
            make(**{wrong: None})


def test_numbers_to_leave_out_are_masked():
    with pytest.raises(TypeError, match=r"'ignore_index'; did you mean 'a mask: batches \(x, y, m"):
        solstice.RegressionExperiment(None, TX, ignore_index=-1)
