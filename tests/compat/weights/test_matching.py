"""Uses of a target are paired with uses of a source, wherever either come from."""

import numpy as np
import pytest

from solstice.compat.weights.matching import candidates
from solstice.compat.weights.pairs import ClashError, values
from solstice.compat.weights.turned import turnings
from solstice.compat.weights.uses import Use


def use(leaf, role, *shape):
    return Use(leaf, role, np.arange(np.prod(shape)).reshape(shape))


def matched(pairs):
    return {pair.target.leaf: pair.sources[0].leaf for pair in pairs}


TARGET = [use("a", "matrix", 2, 2), use("ab", "bias", 2), use("c", "matrix", 2, 2)]
SOURCE = [use("w1", "matrix", 2, 2), use("b1", "bias", 2), use("w2", "matrix", 2, 2)]


def test_layers_go_by_order():
    first = next(candidates(TARGET, SOURCE))
    assert matched(first) == {"a": "w1", "ab": "b1", "c": "w2"}
    assert {pair.how for pair in first} == {"order of use"}


def test_alternatives_follow_the_first():
    found = [matched(pairs) for pairs in candidates(TARGET, SOURCE)]
    assert {"a": "w2", "ab": "b1", "c": "w1"} in found[1:]


def test_a_layer_is_found_by_its_sizes_among_branches_in_another_order():
    """A shortcut's norm has the sizes of the others', and goes with its own convolution."""
    main = [use("conv", "conv", 3, 3, 2, 4), use("scale", "scale", 4)]
    shortcut = [use("short", "matrix", 2, 4), use("short_scale", "scale", 4)]
    found = matched(next(candidates([*main, *shortcut], [*shortcut, *main])))
    assert found == {one: one for one in ("conv", "scale", "short", "short_scale")}


def test_two_biases_of_a_cell_are_added_up():
    def cell(*biases):
        matrices = [
            Use("wi", "matrix", np.arange(12).reshape(3, 4), 0, "input"),
            Use("wh", "matrix", np.arange(4).reshape(1, 4), 0, "carry"),
        ]
        return matrices + [Use(name, "bias", np.arange(4), 0, of) for name, of in biases]

    target, source = cell(("b", "carry")), cell(("b_ih", "input"), ("b_hh", "carry"))
    arrays = {"wi": np.zeros((3, 4)), "wh": np.zeros((1, 4))}
    two = arrays | {"b_ih": np.arange(4.0), "b_hh": np.full(4, 10.0)}
    found = values(next(candidates(target, source)), two, arrays | {"b": np.zeros(4)})
    np.testing.assert_array_equal(found["b"], [10, 11, 12, 13])
    one = arrays | {"b": np.arange(4.0)}
    zeros = arrays | {"b_ih": np.ones(4), "b_hh": np.ones(4)}
    found = values(next(candidates(source, target)), one, zeros)
    np.testing.assert_array_equal(found["b_ih"] + found["b_hh"], np.arange(4))


def test_a_tied_leaf_takes_one_value():
    tied = [use("table", "table", 3, 3), use("table", "matrix", 3, 3)]
    apart = [use("emb", "table", 3, 3), use("out", "matrix", 3, 3)]
    pairs = next(candidates(tied, apart))
    one, two = np.arange(9.0).reshape(3, 3), np.ones((3, 3))
    kept = {"table": np.zeros((3, 3))}
    np.testing.assert_array_equal(values(pairs, {"emb": one, "out": one}, kept)["table"], one)
    with pytest.raises(ClashError, match="would get emb and out, whose values differ"):
        values(pairs, {"emb": one, "out": two}, kept)


def test_an_epsilon_is_no_part_of_a_variance():
    ours, its = (
        Use("var", "variance", np.arange(2), shift=1e-3),
        Use("v", "variance", np.arange(2), shift=1e-5),
    )
    found = values(next(candidates([ours], [its])), {"v": np.ones(2)}, {"var": np.zeros(2)})
    np.testing.assert_array_equal(found["var"], [1, 1])


def test_how_a_leaf_was_turned_is_said():
    def said(target, source):
        (pair,) = next(candidates([target], [source]))
        return turnings(pair, shapes, shapes)[0]

    base = np.arange(108).reshape(3, 3, 3, 4)
    shapes = {"k": (3, 3, 3, 4), "w": (4, 3, 3, 3), "d": (2, 6), "h": (2, 3, 2), "f": (2, 12)}
    turned = np.arange(108).reshape(4, 3, 3, 3).transpose(2, 3, 1, 0)
    conv = Use("k", "conv", base)
    assert said(conv, conv) == "as it is"
    assert said(conv, Use("w", "conv", turned)) == "transposed (2, 3, 1, 0)"
    flipped = np.flip(turned, (0, 1))
    assert said(conv, Use("w", "conv", flipped)) == "transposed (2, 3, 1, 0), flipped (3, 2)"
    dense = use("d", "matrix", 2, 6)
    assert said(dense, use("h", "matrix", 2, 6)) == "reshaped (2, 3, 2) to (2, 6)"
    part = Use("f", "matrix", np.arange(24).reshape(2, 12)[:, :6])
    assert said(dense, part) == "12 of 24 elements"
