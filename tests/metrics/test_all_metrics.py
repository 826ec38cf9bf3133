"""What holds of every ready-made metric: its laws, and one signature under every transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics_table import FIXED, SIZE, TABLE

import solstice
from solstice.metrics import Accumulator, Collect, Last, Mean, Sample
from solstice.testing import METRICS_LAWS, MetricsSubject, check_metrics
from solstice.testing.compare import assert_close, assert_same_signature

# The quick profile takes two kinds: counts, and sums that lose no digits.
QUICK = ("classification", "mean")


def rows(names):
    long = (pytest.mark.slow, pytest.mark.soak)
    return [name if name in QUICK else pytest.param(name, marks=long) for name in names]


every = pytest.mark.parametrize("name", rows(TABLE))
every_fixed = pytest.mark.parametrize("name", rows(FIXED))


def part(name, examples):
    return jax.tree.map(lambda array: array[examples], TABLE[name].batch)


def made(name, examples, mask=None):
    return TABLE[name].make(part(name, examples), mask=mask)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_the_laws_hold(name):
    row = TABLE[name]
    # Each split is of shapes of its own, which compile, as they are made by operations in every one
    # of these: so they are made by one program, but for the law that compares the two.
    (made_both_ways,) = (law for law in METRICS_LAWS if law.name == "jit_equals_eager")
    exclude = {*row.exclude, made_both_ways.name}
    examples = 5 if name in QUICK else 2
    report = check_metrics(jax.jit(row.make), row.batch, exclude=exclude, examples=examples)
    assert not report.failures
    if made_both_ways.name not in row.exclude:
        made_both_ways.check(MetricsSubject(row.make, row.batch), examples=1)


@every
@given(data=st.data())
def test_any_batches_masks_and_merge_trees_are_the_same(name, data):
    """Batches of 4 places: real examples, in any order, anywhere among masked ones."""
    order = data.draw(st.permutations(range(SIZE)))
    number = data.draw(st.integers(3, 5))
    places = data.draw(st.permutations([*order, *[None] * (4 * number - SIZE)]))
    parts = []
    for batch in np.reshape(np.array(places, dtype=object), (number, 4)):
        real = np.array([example is not None for example in batch])
        examples = np.array([0 if example is None else example for example in batch])
        parts.append(jitted(name)(part(name, examples), real))
    while len(parts) > 1:  # any tree: any two merge next
        left = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        right = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts.append(left.merge(right))
    whole = made(name, slice(None))
    assert_close(whole.compute(), parts[0].compute(), "all at once, and in masked batches")


MADE = {}


def jitted(name):
    if name not in MADE:
        MADE[name] = jax.jit(lambda batch, mask: TABLE[name].make(batch, mask=mask))
    return MADE[name]


@every_fixed
def test_masked_garbage_leaves_no_trace(name):
    """NaN in floats, numbers that are no class in integers."""
    mask = np.arange(SIZE) % 3 > 0

    def spoil(array):
        garbage = {"f": np.nan, "b": True, "u": 0}.get(array.dtype.kind, 77)
        return np.where(np.reshape(mask, (-1,) + (1,) * (array.ndim - 1)), array, garbage)

    row = TABLE[name]
    spoilt = jax.tree.map(lambda array: spoil(array).astype(array.dtype), row.batch)
    one, other = row.make(spoilt, mask=mask), made(name, mask)
    assert_close(one.compute(), other.compute(), "masked, and left out")


@every_fixed
def test_the_signature_survives_merging_and_jit(name):
    one, other = made(name, slice(0, 5)), made(name, slice(5, None))
    merged = one.merge(other)
    assert_same_signature(one, merged, "after a merge")
    assert_same_signature(one, jax.jit(type(one).merge)(one, other), "after a jitted merge")
    assert_same_signature(one, jax.jit(lambda x: x)(one), "through jit")
    masked = made(name, slice(None), mask=np.zeros(SIZE, bool))
    assert_same_signature(one, masked, "masked wholly")


@every_fixed
def test_scan_is_reduce(name):
    parts = [made(name, slice(i, i + 3)) for i in range(0, SIZE, 3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts[1:])
    scanned, _ = jax.lax.scan(lambda total, one: (total.merge(one), None), parts[0], stacked)
    assert_same_signature(parts[0], scanned, "after a scan")
    assert_close(solstice.reduce(parts).compute(), scanned.compute(), "reduced, and scanned")


@every_fixed
def test_vmap_is_each(name):
    rows = jax.tree.map(lambda array: array.reshape(3, 4, *array.shape[1:]), TABLE[name].batch)
    make = TABLE[name].make
    stacked = jax.vmap(lambda batch: make(batch))(rows)
    merged = jax.vmap(type(stacked).merge)(stacked, stacked)
    computed = jax.vmap(lambda one: one.compute())(merged)
    side_by_side = stacked.merge(stacked)
    for i in range(3):
        alone = make(jax.tree.map(lambda array, i=i: array[i], rows))
        alone = alone.merge(alone)
        for several in (merged, side_by_side):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], several)
            assert_close(alone.compute(), one.compute(), "alone, and under vmap")
        got = {
            key: jax.tree.map(lambda leaf, i=i: leaf[i], value) for key, value in computed.items()
        }
        assert_close(to_jax(alone.compute()), got, "computed alone, and under vmap")


def to_jax(computed):
    return jax.tree.map(jnp.asarray, computed)


@every
@pytest.mark.parametrize("count", [1, 70])
def test_an_accumulator_gives_what_reduce_does(name, count):
    parts = [made(name, slice(i % SIZE, i % SIZE + 1)) for i in range(count)]
    seen = Accumulator()
    for one in parts:
        seen.add(one)
    assert_close(solstice.reduce(parts).compute(), seen.pop().compute(), "reduced, accumulated")


@every
def test_unlike_metrics_do_not_merge(name, mean):
    one = made(name, slice(None))
    for other in (mean([1.0]), None, {"loss": 0.5}):
        with pytest.raises(solstice.UsageError, match=r"merges .*; it got .* the same metric"):
            one.merge(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("classification", "totals"),
        ("classification", "top k"),
        ("regression", "outputs"),
        ("sum", "sum of integers"),
        ("dict", "nested"),
    ],
)
def test_other_settings_do_not_merge(one, other):
    with pytest.raises(solstice.UsageError, match=r"merges .*; it got"):
        made(one, slice(None)).merge(made(other, slice(None)))


@every
@pytest.mark.parametrize("jit", [False, True])
def test_a_mask_of_the_wrong_shape_is_refused(name, jit):
    make = jax.jit(TABLE[name].make) if jit else TABLE[name].make
    for mask in (np.ones(SIZE + 1), np.ones((SIZE, 5)), np.ones((1, SIZE)), np.ones(())):
        with pytest.raises(ValueError, match=r"mask is expected to have the shape of the \w+"):
            make(TABLE[name].batch, mask=mask)


HALF = ("regression", "outputs", "binary", "mean", "sum", "min", "max", "std", "dict")


@pytest.mark.parametrize("name", rows(HALF))
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_accumulates_in_single(name, dtype):
    def cast(array):
        return jnp.asarray(array, dtype) if array.dtype == np.float32 else array

    half = jax.tree.map(cast, TABLE[name].batch)
    rounded = jax.tree.map(lambda a: np.float32(a) if a.dtype == dtype else a, half)
    metrics = TABLE[name].make(half)
    assert all(leaf.dtype != dtype for leaf in jax.tree.leaves(metrics))
    assert_close(TABLE[name].make(rounded).compute(), metrics.compute(), "single, half")


@pytest.mark.parametrize("name", rows(HALF))
def test_double_precision_is_kept(name, x64):
    batch = jax.tree.map(
        lambda a: a.astype("float64") if a.dtype == np.float32 else a, TABLE[name].batch
    )
    metrics = TABLE[name].make(batch)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(metrics)}
    assert dtypes <= {"float64", "int64"}
    assert_same_signature(metrics, metrics.merge(metrics), "after a merge")


def test_counts_are_int32_without_64_bits():
    for name in FIXED:
        for leaf in jax.tree.leaves(made(name, slice(None))):
            assert leaf.dtype in (jnp.float32, jnp.int32, jnp.uint32, jnp.bool_)


@pytest.mark.slow
def test_a_mask_may_be_of_the_leading_axes():
    values = np.arange(24.0).reshape(4, 3, 2)
    mask = np.array([1, 0, 1, 0])
    real = values[mask > 0]
    assert Mean(values, mask=mask).compute()["mean"] == real.mean()
    assert Last(values, mask=mask).compute()["last"] == real.ravel()[-1]
    metrics = solstice.RegressionMetrics(values, values + 1, mask=mask[:, None] * np.ones(3))
    assert int(metrics.moments.count[0]) == real.size
    labels = np.zeros((4, 3), int)
    assert int(solstice.ClassificationMetrics(labels, labels, 0.0, 2, mask=mask).count) == 6
    assert Collect(values, mask=mask).compute()["values"].shape == (2, 3, 2)
    assert Sample(values, key=0, max_size=9, mask=mask).compute()["sample"].shape == (2, 3, 2)
