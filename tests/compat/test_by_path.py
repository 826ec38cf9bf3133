"""Parameter groups by path, and parameters that come and go, against loops of Optax by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from jax.example_libraries import optimizers, stax
from optimizer_table import JAX, KERAS, OPTAX, value_fn

import solstice
from solstice import compat
from solstice.compat import JaxOptimizer, KerasOptimizer, OptaxOptimizer, by_path, freeze, unfreeze
from solstice.testing import check_optimizer
from solstice.tree import leaves_by_path

PARAMS = {
    "body": {"kernel": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "bias": jnp.arange(3.0)},
    "head": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2), "hole": None},
}
RULES = {"*/bias": optax.sgd(0.1), "head/*": optax.adam(0.05), "*": optax.adamw(0.01)}


def test_it_equals_multi_transform():
    def labels(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: (
                "*/bias" if path[1].key == "bias" else "head/*" if path[0].key == "head" else "*"
            ),
            params,
        )

    tx = optax.multi_transform(RULES, labels)
    state, expected = tx.init(PARAMS), PARAMS
    params, opt = PARAMS, by_path(RULES).init(PARAMS)

    @jax.jit
    def native(expected, state):
        updates, state = tx.update(jax.grad(value_fn)(expected), state, expected)
        return optax.apply_updates(expected, updates), state

    step = jax.jit(lambda opt, params: opt(jax.grad(value_fn)(params), params))
    for _ in range(5):
        expected, state = native(expected, state)
        params, opt = step(opt, params)
    for path, leaf in leaves_by_path(params).items():
        np.testing.assert_allclose(leaf, leaves_by_path(expected)[path], rtol=1e-6)


def test_it_obeys_the_laws_of_optimizers():
    # Its rules are for names, so that the law about other names does not hold.
    check_optimizer(
        lambda: by_path({"*b*": optax.sgd(0.1), "*": optax.adam(0.1)}),
        {"b": jnp.ones(2), "w": jnp.ones((2, 3))},
        exclude=("names_do_not_matter",),
    )


def test_its_parts_may_be_of_several_libraries():
    rules = {
        "body/kernel": optax.lbfgs(memory_size=2),  # which asks for the loss as a function
        "*/bias": keras.optimizers.SGD(0.1),
        "*": optimizers.momentum(0.1, 0.9),
    }
    opt = by_path(rules).init(PARAMS)
    assert opt.wants == ("value", "grad", "value_fn")
    params = PARAMS

    @jax.jit
    def step(params, opt):
        value, grads = jax.value_and_grad(value_fn)(params)
        return opt(grads, params, value=value, grad=grads, value_fn=value_fn)

    for _ in range(10):
        params, opt = step(params, opt)
    assert value_fn(params) < 0.2 * value_fn(PARAMS)
    assert jax.tree.structure(params) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"*/bias": 0, "head/*": 0}, r"'body/kernel' match none\. Add a rule .*'\*'"),
        ({"haed/*": 0, "*": 0}, r"rule 'haed/\*' .*matches none .* 'body/bias', 'body/kernel'"),
        ({"head/*": 0, "head/bias": 0, "*": 0}, r"'head/bias' .*earlier rules match .*first match"),
        ({"*": 0, "head/*": 0}, r"'head/\*' .*earlier rules match \('head/bias', 'head/kernel'"),
    ],
)
def test_rules_that_do_not_fit_are_told(rules, message):
    with pytest.raises(ValueError, match=message):
        by_path(dict.fromkeys(rules, optax.sgd(0.1))).init(PARAMS)


def test_a_star_may_be_left_without_parameters():
    opt = by_path({"*e*": optax.sgd(0.1), "*i*": optax.sgd(0.1), "*": optax.adam(0.1)}).init(PARAMS)
    new, _ = opt(PARAMS, PARAMS)
    np.testing.assert_allclose(new["head"]["kernel"], 0.9)


def test_a_group_without_parameters_asks_nothing():
    opt = by_path({"*e*": optax.sgd(0.1), "*i*": optax.sgd(0.1), "*": optax.lbfgs()}).init(PARAMS)
    assert opt.wants == ()
    new, after = opt(PARAMS, PARAMS)
    assert opt.eval_params(new) is not None
    assert jax.tree.structure(after) == jax.tree.structure(opt)
    np.testing.assert_allclose(new["head"]["kernel"], 0.9)


def test_brackets_in_a_glob_are_brackets():
    params = {"blk[0]": {"w": jnp.ones(1)}, "blk0": {"w": jnp.ones(1)}}
    opt = by_path({"blk[0]/*": optax.sgd(0.5), "*": optax.sgd(0.1)}).init(params)
    assert opt.groups() == {"blk0/w": "*", "blk[0]/w": "blk[0]/*"}


@pytest.mark.parametrize(
    "rules", [{}, None, [("*", optax.sgd(0.1))], {1: optax.sgd(0.1)}, {"*": 0.1}]
)
def test_what_are_no_rules_is_refused(rules, unchecked):
    with pytest.raises(TypeError):
        by_path(rules)


def test_rates_of_groups_are_told_and_set():
    injected = optax.inject_hyperparams(optax.sgd)
    opt = by_path({"head/*": injected(0.5), "*": injected(0.25)}).init(PARAMS)
    rates = {name: float(rate) for name, rate in opt.learning_rates().items()}
    assert rates == {"learning_rate/head/*": 0.5, "learning_rate/*": 0.25}
    assert opt.learning_rate() is None
    opt = solstice.set_learning_rate(opt, lambda rate: rate / 2)
    assert [float(rate) for rate in opt.learning_rates().values()] == [0.25, 0.125]
    opt = solstice.set_learning_rate(opt, {"*": 0.75})
    assert [float(rate) for rate in opt.learning_rates().values()] == [0.25, 0.75]
    opt = solstice.set_learning_rate(opt, {"head/*": lambda rate: 2 * rate, "*": jnp.ones(())})
    assert [float(rate) for rate in opt.learning_rates().values()] == [0.5, 1.0]


def test_rates_of_nested_groups_are_set_by_nested_mappings():
    injected = optax.inject_hyperparams(optax.sgd)
    inner = by_path({"*/bias": injected(1.0), "*": injected(0.5)})
    opt = by_path({"head/*": inner, "*": injected(0.25)}).init(PARAMS)
    opt = solstice.set_learning_rate(opt, {"head/*": {"*/bias": 3.0}})
    assert {name: float(rate) for name, rate in opt.learning_rates().items()} == {
        "learning_rate/head/*/*/bias": 3.0,
        "learning_rate/head/*/*": 0.5,
        "learning_rate/*": 0.25,
    }


def test_a_rate_of_no_group_says_which_there_are():
    injected = optax.inject_hyperparams(optax.sgd)
    opt = by_path({"head/*": injected(0.5), "*": optax.sgd(0.1)}).init(PARAMS)
    assert solstice.set_learning_rate(opt, {"head/*": 0.1})  # the other one cannot be set
    with pytest.raises(ValueError, match=r"groups of by_path.*'head/\*', '\*'; it names 'body/\*'"):
        solstice.set_learning_rate(opt, {"body/*": 0.1})
    with pytest.raises(ValueError, match=r"without groups\. Give one number"):
        solstice.set_learning_rate(OptaxOptimizer(injected(0.5)).init(PARAMS), {"body/*": 0.1})
    with pytest.raises(TypeError, match="rate is expected to be a number"):
        solstice.set_learning_rate(opt, {"head/*": "fast"})


def test_a_plateau_reduces_no_rate_of_a_frozen_group():
    """Nor does it ask that such a rate can be set."""
    sgd = optax.inject_hyperparams(optax.sgd)
    net = solstice.compat.as_model(network(), X, key=0)
    head = freeze(net, lambda path, leaf: path.startswith("0/"))
    inner = by_path({"*/1": sgd(0.5), "*": optax.sgd(0.1)})
    for body in (sgd(0.1), optax.sgd(0.1), inner):
        exp = solstice.ClassificationExperiment(head, by_path({"0/*": body, "*": sgd(0.2)}))
        before = exp.optimizer.learning_rates()
        reduce = solstice.callbacks.ReduceOnPlateau("f1_macro", min_delta=2.0, patience=1)
        exp = exp.train(3, [(X, Y)], [(X, Y)], [reduce], progress=False)
        after = exp.optimizer.learning_rates()
        changed = {name: float(after[name]) for name in after if after[name] != before[name]}
        assert changed == {"learning_rate/*": pytest.approx(0.002)}


def test_an_error_of_a_group_names_its_rule():
    opt = by_path({"head/*": optax.inject_hyperparams(optax.sgd)(0.5), "*": optax.sgd(0.1)})
    with pytest.raises(ValueError, match="inside the functions") as caught:
        solstice.set_learning_rate(opt.init(PARAMS), 0.1)
    assert caught.value.__notes__ == ["It is the optimizer of the rule '*' of by_path."]
    schedule = optax.constant_schedule(0.1)
    opt = by_path({"*": OptaxOptimizer(optax.sgd(0.1), learning_rate=schedule)})
    with pytest.raises(ValueError, match="has none") as caught:
        opt.init(PARAMS)
    assert caught.value.__notes__ == ["It is the optimizer of the rule '*' of by_path."]


def test_before_init_parameters_are_evaluated_as_they_are():
    assert by_path(RULES).eval_params(PARAMS) is PARAMS


def test_an_optimizer_with_leaves_that_are_no_arrays_is_retargeted():
    class Plain(compat.Optimizer):
        schedule: object
        count: int = 0
        wants: tuple = ()

        def init(self, params):
            return solstice.replace(self, count=0)

        def __call__(self, grads, params, **extras):
            return params, solstice.replace(self, count=self.count + 1)

        def eval_params(self, params):
            return params

        def learning_rate(self):
            return None

    _, opt = Plain(len).init(PARAMS)(PARAMS, PARAMS)
    assert (opt.retarget(BODY).count, opt.retarget(BODY).schedule) == (1, len)


def test_rates_of_groups_within_groups_are_named_from_the_outside():
    injected = optax.inject_hyperparams(optax.sgd)
    inner = by_path({"*/bias": injected(0.5), "*": injected(0.25)})
    opt = by_path({"head/*": inner, "*": injected(1.0)}).init(PARAMS)
    assert list(opt.learning_rates()) == [
        "learning_rate/head/*/*/bias",
        "learning_rate/head/*/*",
        "learning_rate/*",
    ]
    holes = {"kernel": None, "bias": None}
    assert opt.init(PARAMS | {"head": holes}).retarget(PARAMS).groups() == opt.groups()


X = jnp.eye(4)
Y = jnp.array([0, 1, 1, 0])


def network():
    return stax.serial(stax.Dense(5), stax.Relu, stax.Dense(2))


def test_the_summary_says_each_parameters_group():
    opt = by_path({"2/*": optax.sgd(0.1), "*": optax.adam(0.1)})
    exp = solstice.ClassificationExperiment(network(), opt, example_input=X, key=0)
    summary = solstice.summary(exp)
    groups = {row.path: row.group for row in summary.rows}
    assert groups["model/params/0/0"] == "*" and groups["model/params/2/1"] == "2/*"
    assert "trainable  2/*" in str(summary) and "group" in str(summary)
    plain = solstice.ClassificationExperiment(network(), optax.sgd(0.1), example_input=X, key=0)
    assert "group" not in str(solstice.summary(plain))


# Freezing and unfreezing.

PARTS = {
    f"{adapter.__name__} {name}": (lambda adapter=adapter, row=row: adapter(row.make()))
    for adapter, table in ((OptaxOptimizer, OPTAX), (JaxOptimizer, JAX), (KerasOptimizer, KERAS))
    for name, row in table.items()
}
# Of each library those that keep their state in another way; the soak has the others.
FEW = {"Adam", "SGD", "Muon", "accumulating"}  # Keras
FEW |= {"adam", "momentum", "piecewise"}  # jax; of Optax these, and
FEW |= {"adamw", "sgd", "lookahead", "schedule_free", "MultiSteps", "partition"}
FEW |= {"inject_hyperparams"}
BODY = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)}
HEAD = {"b": jnp.arange(3.0)}


def stepped(opt, params, steps=2):
    for _ in range(steps):
        value, grads = jax.value_and_grad(value_fn)(params)
        extras = {
            name: {"value": value, "grad": grads, "value_fn": value_fn}[name] for name in opt.wants
        }
        params, opt = opt(grads, params, **extras)
    return params, opt


TRIED = [
    pytest.param(name, marks=() if name.split()[1] in FEW else pytest.mark.soak)
    for name in PARTS
    if not name.startswith("Optax") or name.split()[1] in FEW
]


@pytest.mark.parametrize("name", TRIED)
def test_the_state_of_what_stays_is_kept_in_every_library(name):
    make = PARTS[name]
    params, opt = stepped(make().init(BODY | HEAD), BODY | HEAD)
    same = opt.retarget(params)
    assert jax.tree.structure(same) == jax.tree.structure(opt)
    for new, old in zip(*map(jax.tree.leaves, (same, opt)), strict=True):
        np.testing.assert_array_equal(new, old)
    # Frozen and unfrozen again, the kept one moves as it would have.
    body = opt.retarget({"w": params["w"], "b": None})
    both = body.retarget(params)
    kept, _ = stepped(both, params, 1)
    expected, _ = stepped(opt, params, 1)
    np.testing.assert_allclose(kept["w"], expected["w"], rtol=1e-6)
    assert jnp.isfinite(kept["b"]).all()


@pytest.mark.slow
def test_unfreezing_equals_optax_by_hand():
    tx = optax.chain(optax.clip(1.0), optax.adam(optax.cosine_decay_schedule(0.1, 20)))
    net = solstice.compat.as_model(network(), X, key=0)
    head = freeze(net, lambda path, leaf: not path.startswith("2/"))
    exp = solstice.ClassificationExperiment(head, tx, ema_decay=0.9)
    exp = exp.train(3, [(X, Y)], progress=False)
    exp = exp.with_model(unfreeze(exp.model)).train(3, [(X, Y)], recompile="error", progress=False)

    def loss(params):
        logits = solstice.replace(net, params=params)(X, train=True)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()

    def part(params, keep):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if keep(path[0].idx) else None, params
        )

    params = ema = net.params
    state = tx.init(part(params, lambda i: i == 2))
    for step in range(6):
        if step == 3:  # Adam's sums of the head are kept, those of the body begin with 0
            zeros = part(tx.init(params)[1][0].mu, lambda i: i == 0)
            clip, (adam, scale) = state[0], state[1]
            mu, nu = (eqx.combine(kept, zeros) for kept in (adam.mu, adam.nu))
            adam = adam._replace(mu=mu, nu=nu)
            state = (clip, (adam, scale))
        grads = jax.grad(loss)(params)
        if step < 3:
            updates, state = tx.update(part(grads, lambda i: i == 2), state)
            params = eqx.combine(
                jax.tree.map(jnp.add, part(params, lambda i: i == 2), updates), params
            )
        else:
            updates, state = tx.update(grads, state)
            params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, ema, params)
    for found, wanted in ((exp.model.params, params), (exp.ema, ema)):
        for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_a_state_in_one_row_is_not_divided():
    opt = OptaxOptimizer(optax.flatten(optax.adam(0.1))).init(BODY | HEAD)
    with pytest.raises(ValueError, match=r"shape \(15,\), for all parameters together"):
        opt.retarget(BODY | {"b": None})
    same = opt.retarget(BODY | HEAD)
    assert jax.tree.structure(same) == jax.tree.structure(opt)


def test_keras_names_that_are_not_their_own_are_told():
    params = {"a": {"b": jnp.ones(1)}, "a_b": jnp.ones(1)}
    opt = KerasOptimizer(keras.optimizers.SGD(0.1, momentum=0.9)).init(params)
    with pytest.raises(ValueError, match="differ in more than slashes"):
        opt.retarget(params)


def test_groups_go_on_when_parameters_come():
    opt = by_path({"head/*": optax.adam(0.1), "*": optax.sgd(0.1, momentum=0.9)})
    head = {"body": {"kernel": None, "bias": None}, "head": PARAMS["head"]}
    _, opt = stepped(opt.init(head), head)
    both = opt.retarget(PARAMS)
    assert both.groups()["body/bias"] == "*"
    kept = both.parts[0].state[0].mu["head"]["kernel"]
    np.testing.assert_array_equal(kept, opt.parts[0].state[0].mu["head"]["kernel"])
    stepped(both, PARAMS)


def test_a_whole_group_comes_later():
    body, head = optax.adam(optax.linear_schedule(0.1, 0.0, 10)), optax.adam(0.2)
    rules = {"body/*": body, "head/*": head}
    frozen = PARAMS | {"body": {"kernel": None, "bias": None}}
    # By hand: the head alone, then both, with a body's state made when it comes.
    state, part = head.init(PARAMS["head"]), PARAMS["head"]
    for _ in range(3):
        grads = jax.grad(value_fn)(frozen | {"head": part})["head"]
        updates, state = head.update(grads, state, part)
        part = optax.apply_updates(part, updates)
    expected = PARAMS | {"head": part}
    states = {"body": body.init(PARAMS["body"]), "head": state}
    for _ in range(3):
        grads = jax.grad(value_fn)(expected)
        for name, tx in {"body": body, "head": head}.items():
            updates, states[name] = tx.update(grads[name], states[name], expected[name])
            expected[name] = optax.apply_updates(expected[name], updates)
    params, opt = stepped(by_path(rules).init(frozen), frozen, 3)
    params = PARAMS | {"head": params["head"]}
    params, opt = stepped(opt.retarget(params), params, 3)
    for path, leaf in leaves_by_path(params).items():
        np.testing.assert_array_equal(leaf, leaves_by_path(expected)[path])
    # Frozen again, and back: its count goes on, its moments begin anew.
    again = opt.retarget(params | {"body": frozen["body"]}).retarget(params).parts[0].state[0]
    assert again.count == 3 and not again.mu["body"]["kernel"].any()
    # Nothing but frozen parameters; and a glob that is misspelt is told all the same.
    holes = jax.tree.map(lambda leaf: None, PARAMS)
    nothing, _ = (everything := opt.retarget(holes))(holes, holes)
    assert nothing == holes == everything.eval_params(holes)
    with pytest.raises(ValueError, match=r"'bdoy/\*' .* none of the parameters.*'body/kernel'"):
        by_path({"bdoy/*": body, "*": head}).init(frozen)


@pytest.mark.parametrize("first", ["frozen", "whole"])
def test_a_head_is_trained_first_and_its_body_later(first):
    sgd = optax.inject_hyperparams(optax.sgd)
    rules = by_path({"0/*": sgd(0.1, momentum=0.9), "*": sgd(0.2, momentum=0.9)})
    net = solstice.compat.as_model(network(), X, key=0)
    head = freeze(net, lambda path, leaf: path.startswith("0/"))
    exp = solstice.ClassificationExperiment(head if first == "frozen" else net, rules)
    if first == "whole":
        exp = exp.with_model(head)
    exp = exp.train(2, [(X, Y)], progress=False)
    exp = solstice.set_learning_rate(exp, lambda rate: rate / 2)
    trace = exp.optimizer.parts[1].state
    exp = exp.with_model(unfreeze(exp.model))
    for new, old in zip(*map(jax.tree.leaves, (exp.optimizer.parts[1].state, trace)), strict=True):
        np.testing.assert_array_equal(new, old)
    assert exp.optimizer.groups() == {"0/0": "0/*", "0/1": "0/*", "2/0": "*", "2/1": "*"}
    after = exp.train(1, [(X, Y)], progress=False)
    assert (after.model.params[0][0] != exp.model.params[0][0]).any()
    rates = [float(rate) for rate in after.optimizer.learning_rates().values()]
    np.testing.assert_allclose(rates, [0.05, 0.1])
