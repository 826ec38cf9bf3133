"""Sample: every set of examples equally likely, however they were batched and merged."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

import solstice
from solstice.metrics import Sample

KEYS = jax.random.split(jax.random.key(7), 30)


def sample(examples, mask=None, max_size=4):
    """Of some of 30 examples, each with a key of its own."""
    examples = np.asarray(examples, int)
    return Sample(examples, key=KEYS[examples], max_size=max_size, mask=mask)


@pytest.mark.slow
@given(data=st.data())
def test_batches_order_and_merge_tree_do_not_matter(data):
    order = np.array(data.draw(st.permutations(range(30))))
    cuts = sorted(data.draw(st.lists(st.sampled_from([5, 10, 20]), max_size=3)))
    parts = [sample(part) for part in np.split(order, cuts)]
    while len(parts) > 1:
        left = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        right = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts.append(left.merge(right))
    expected = sample(range(30)).compute()["sample"]
    np.testing.assert_array_equal(parts[0].compute()["sample"], expected)


@pytest.mark.slow
def test_every_example_is_as_likely_wherever_it_was():
    """Batches of 1, 2 and 7 examples, some masked, merged in two trees; 4000 draws of 3 of 8."""

    def draw(key):
        keys = jax.random.split(key, 3)
        one = Sample(jnp.arange(1), key=keys[0], max_size=3)
        two = Sample(jnp.arange(1, 3), key=keys[1], max_size=3)
        mask = jnp.array([1, 1, 0, 1, 0, 1, 1])
        many = Sample(jnp.array([3, 4, 99, 5, 99, 6, 7]), key=keys[2], max_size=3, mask=mask)
        return one.merge(two).merge(many).values, many.merge(one.merge(two)).values

    for drawn in jax.vmap(draw)(jax.random.split(jax.random.key(0), 4000)):
        counts = np.bincount(np.ravel(drawn), minlength=8)
        assert len(counts) == 8
        # Draws of one sample exclude each other, so that counts vary less than chi-square says.
        assert chisquare(counts).pvalue > 0.01
        sets = np.unique(np.sort(drawn, axis=1), axis=0, return_counts=True)[1]
        assert len(sets) == 56 and chisquare(sets).pvalue > 0.01


def test_it_keeps_trees_of_arrays_together():
    x = np.arange(20).reshape(10, 2)
    values = {"x": x, "name": (x[:, 0] + 1).astype("uint8")}
    computed = Sample(values, key=0, max_size=4).compute()
    assert set(computed) == {"x", "name"} and computed["x"].shape == (4, 2)
    np.testing.assert_array_equal(computed["x"][:, 0] + 1, computed["name"])


@pytest.mark.parametrize("size", [0, 1, 3, 4, 9])
def test_there_may_be_fewer(size):
    one = sample(range(size))
    drawn = one.compute()["sample"].tolist()
    assert len(drawn) == min(4, size) == len(set(drawn)) and set(drawn) <= set(range(size))
    merged = one.merge(sample(range(10, 12)))
    assert len(merged.compute()["sample"]) == min(4, size + 2)
    assert len(set(merged.compute()["sample"].tolist())) == min(4, size + 2)


def test_masked_examples_are_never_seen():
    mask = np.arange(30) % 3 == 0
    drawn = sample(range(30), mask=mask, max_size=20)
    assert sorted(drawn.compute()["sample"].tolist()) == list(range(0, 30, 3))
    nan = Sample(np.array([1.0, np.nan]), key=0, max_size=2, mask=[1, 0])
    assert np.isfinite(np.asarray(nan.values)).all()


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey, int, np.int64])
def test_any_kind_of_key(make):
    one = Sample(np.arange(9), key=make(3), max_size=2)
    np.testing.assert_array_equal(one.values, Sample(np.arange(9), key=3, max_size=2).values)


@pytest.mark.slow
def test_memory_is_of_one_size():
    seen = solstice.metrics.Accumulator()
    for key in jax.random.split(jax.random.key(0), 100):
        seen.add(Sample(jnp.arange(64), key=key, max_size=3))
    assert seen.pop().values.shape == (3,)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(max_size=0), ValueError, "max_size is expected to be at least 1; it is 0"),
        (dict(max_size=True), TypeError, "max_size is expected to be an int; it is the bool"),
        (dict(key=KEYS[:3]), TypeError, "one PRNG key or 5, one for each example; it is key"),
        (dict(key=None), TypeError, "key is expected to be an int seed or one PRNG key"),
        (dict(values=1.0), ValueError, "values are expected to be arrays with the same examples"),
        (dict(mask=np.ones(4)), ValueError, "mask is expected to have the shape of the examples"),
    ],
)
def test_bad_arguments_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        Sample(**{"values": np.ones(5), "key": 0, "max_size": 2} | changes)


@pytest.mark.parametrize(
    "other",
    [
        Sample(np.ones((2, 3), int), key=0, max_size=4),
        Sample({"x": np.ones(2, int)}, key=0, max_size=4),
        Sample(["a", "b"], key=0, max_size=4),
        solstice.metrics.Mean(np.ones(2)),
    ],
    ids=["other shapes", "other names", "texts", "another metric"],
)
def test_samples_of_other_things_do_not_merge(other):
    with pytest.raises(
        solstice.UsageError, match=r"Sample\(.*merges only with metrics of the same kind; it got"
    ):
        sample([1, 2]).merge(other)


SIZES = [3, 7, 5, 3]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_samples_of_several_sizes_are_one_of_the_smallest_whatever_the_merges(order):
    parts = [sample(range(6 * i, 6 * i + 6), max_size=SIZES[i]) for i in range(4)]
    expected = sample(range(24), max_size=3).compute()["sample"]
    one, two, three, four = (parts[i] for i in order)
    for merged in (
        one.merge(two).merge(three).merge(four),
        one.merge(two.merge(three.merge(four))),
    ):
        np.testing.assert_array_equal(merged.compute()["sample"], expected)


@pytest.mark.slow
def test_a_merge_of_two_sizes_is_a_uniform_sample():
    """2 of 4 and 3 of 5 examples, so that a larger result would prefer the second ones."""

    def draw(key):
        keys = jax.random.split(key)
        one = Sample(jnp.arange(4), key=keys[0], max_size=2)
        two = Sample(jnp.arange(4, 9), key=keys[1], max_size=3)
        return one.merge(two).values, two.merge(one).values

    for drawn in jax.vmap(draw)(jax.random.split(jax.random.key(0), 4000)):
        assert drawn.shape == (4000, 2)
        sets = np.unique(np.sort(drawn, axis=1), axis=0, return_counts=True)[1]
        assert len(sets) == 36 and chisquare(sets).pvalue > 0.01


@pytest.mark.slow
def test_samples_side_by_side_merge_with_those_of_another_size():
    def draw(size):
        return jax.vmap(lambda x: Sample(x, key=0, max_size=size))(jnp.arange(12).reshape(2, 6))

    merged = draw(4).merge(draw(2))
    assert merged.values.shape == (2, 2)
    for i in range(2):
        one, two = (jax.tree.map(lambda array: array[i], draw(size)) for size in (4, 2))  # noqa: B023
        np.testing.assert_array_equal(merged.values[i], one.merge(two).values)


TEXTS = ["", "the cat", "a\0b\0", "naïve 猫 🐈", "x" * 100, "two\nlines\r", "\ud800"]


@pytest.mark.parametrize("make", [list, tuple, np.array, lambda texts: np.array(texts, object)])
def test_texts_come_back_whatever_they_are(make):
    texts = [text for text in TEXTS if make is not np.array or not text.endswith("\0")]
    drawn = Sample(make(texts), key=0, max_size=9).compute()["sample"]
    assert sorted(drawn) == sorted(texts) and all(type(text) is str for text in drawn)


@pytest.mark.slow
@given(data=st.data())
def test_texts_stay_with_their_numbers_through_any_merges(data):
    texts = data.draw(st.lists(st.text(max_size=40), min_size=8, max_size=8))
    keys = KEYS[:8]
    values = {"text": texts, "length": np.array(list(map(len, texts)))}
    whole = Sample(values, key=keys, max_size=3).compute()
    cut = data.draw(st.integers(1, 7))
    halves = [
        Sample({"text": texts[part], "length": values["length"][part]}, key=keys[part], max_size=3)
        for part in (slice(0, cut), slice(cut, None))
    ]
    merged = solstice.metrics.Accumulator()
    for half in halves:
        merged.add(half)
    drawn = merged.pop().compute()
    assert drawn["text"].tolist() == whole["text"].tolist()
    assert [len(text) for text in drawn["text"]] == drawn["length"].tolist()


def test_masked_texts_leave_no_trace():
    drawn = Sample(["secret", "a"], key=0, max_size=2, mask=[0, 1])
    assert drawn.compute()["sample"].tolist() == ["a"]
    assert not np.asarray(drawn.values.codes)[1:].any()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad", ["one text", np.array([["a"]]), np.array([b"a"]), np.array([None])])
def test_other_things_than_texts_are_refused(bad):
    with pytest.raises(
        TypeError, match="Texts among values are expected to be a list of str, one per example"
    ):
        Sample({"text": bad}, key=0, max_size=2)
