"""Trees to JSON, to a file and to a digest: every value comes back with its bits and its type."""

import collections
import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import solstice
from solstice import tree

NATIVE = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
NATIVE += ["float16", "float32", "float64", "complex64", "complex128"]
NARROW = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


@st.composite
def narrow_arrays(draw):
    dtype = jnp.dtype(draw(st.sampled_from(NARROW)))
    floating = jnp.issubdtype(dtype, np.floating)
    numbers = st.floats(width=16) if floating else st.integers(0, 7)
    values = draw(hnp.arrays(np.float32 if floating else np.int8, draw(SHAPES), elements=numbers))
    with np.errstate(all="ignore"):
        return values.astype(dtype)


@st.composite
def keys(draw):
    key = jax.random.key(
        draw(st.integers(0, 99)), impl=draw(st.sampled_from(["threefry2x32", "rbg"]))
    )
    shape = draw(st.sampled_from([(), (0,), (3,), (2, 1)]))
    return jax.random.split(key, shape) if shape else key


ARRAYS = st.one_of(
    hnp.arrays(st.sampled_from(NATIVE).map(np.dtype), SHAPES), narrow_arrays(), keys()
)
VALUES = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary()
)
LEAVES = st.one_of(ARRAYS, VALUES)
NAMES = st.one_of(st.text(), st.sampled_from(["$array", "$tuple", "a/b"]))
PLAIN = st.recursive(
    st.one_of(LEAVES, st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(NAMES, inner, max_size=3),
        st.dictionaries(st.integers(), inner, max_size=2),
    ),
    max_leaves=8,
)


def bits(leaf, *, nans):
    """All that tells a leaf from another; NaNs are all alike where `nans` is False."""
    if tree.is_typed_key(leaf):
        leaf, sort = np.asarray(jax.random.key_data(leaf)), str(leaf.dtype)
    elif isinstance(leaf, np.ndarray | jax.Array):
        leaf, sort = np.asarray(leaf), "array"
    else:
        return type(leaf), repr(leaf)
    if not nans and jnp.issubdtype(leaf.dtype, np.inexact):
        parts = (leaf.real, leaf.imag) if leaf.dtype.kind == "c" else (leaf,)
        leaf = np.stack(
            [np.where(np.isnan(part), np.abs(part.dtype.type(math.nan)), part) for part in parts]
        )
    return sort, leaf.dtype, leaf.shape, leaf.tobytes()


def assert_same(left, right, *, nans=True):
    # The paths tell what is where; the structures, which containers there are.
    left, one = jax.tree_util.tree_flatten(left)
    right, other = jax.tree_util.tree_flatten(right)
    assert one == other
    assert [bits(leaf, nans=nans) for leaf in left] == [bits(leaf, nans=nans) for leaf in right]


def one_name_each(value):
    try:
        tree.paths(value)
    except ValueError:
        return False
    return True


@given(PLAIN)
def test_plain_trees_come_back_from_json(value):
    text = tree.to_json(value)
    json.loads(text, parse_constant=pytest.fail)  # any program's JSON, so no bare NaN
    assert_same(tree.from_json(text), value, nans=False)


@given(PLAIN)
def test_trees_come_back_from_json_like_themselves(value):
    assume(one_name_each(value))
    assert_same(tree.from_json(tree.to_json(value), like=value), value, nans=False)


@given(PLAIN)
def test_trees_come_back_from_a_file(tmp_path_factory, value):
    assume(one_name_each(value))
    file = tmp_path_factory.mktemp("trees") / "tree"
    tree.save(file, value)
    assert_same(tree.load(file, like=value), value)
    assert [path.name for path in file.parent.iterdir()] == ["tree"]


@given(PLAIN, PLAIN)
def test_trees_have_one_digest_if_and_only_if_their_leaves_are_the_same(one, other):
    assume(one_name_each(one) and one_name_each(other))
    left, right = tree.leaves_by_path(one), tree.leaves_by_path(other)
    same = left.keys() == right.keys() and all(
        bits(left[path], nans=True) == bits(right[path], nans=True) for path in left
    )
    assert (tree.digests(one) == tree.digests(other)) == same
    assert tree.digest(one) == tree.digest(one)
    if one is not None and jax.tree_util.all_leaves([one]):
        assert tree.digests({"x": one}) == {"x": tree.digest(one)}


@pytest.mark.parametrize("dtype", [*NATIVE, *NARROW])
@pytest.mark.usefixtures("x64")
def test_jax_arrays_come_back_as_they_were(tmp_path, dtype):
    value = {"x": jnp.asarray([[0, 1, 1]]).astype(dtype), "scalar": jnp.ones((), dtype)}
    tree.save(tmp_path / "tree", value)
    like = jax.tree.map(jnp.zeros_like, value)
    structs = jax.eval_shape(lambda: value)
    for back in (
        tree.load(tmp_path / "tree", like),
        tree.load(tmp_path / "tree", structs),
        tree.from_json(tree.to_json(value), like),
        tree.from_json(tree.to_json(value), structs),
    ):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(back))
        assert_same(back, value)


class Point(collections.namedtuple("Point", "x y")):
    pass


class State(eqx.Module):
    net: eqx.nn.MLP
    point: Point
    key: jax.Array
    rate: float
    name: str = eqx.field(static=True)


def state(seed):
    key = jax.random.key(seed)
    net = eqx.nn.MLP(2, 2, 3, 1, activation=jnp.tanh, key=key)
    return State(net, Point(np.float32(seed), np.arange(seed, seed + 2)), key, 0.1 * seed, "static")


def test_modules_come_back_as_their_class_with_their_functions(tmp_path):
    old, like = state(3), state(4)
    tree.save(tmp_path / "state", old)
    for back in (tree.load(tmp_path / "state", like), tree.from_json(tree.to_json(old), like)):
        assert type(back) is State and type(back.point) is Point
        assert type(back.point.x) is np.float32 and isinstance(back.point.y, np.ndarray)
        assert back.net.activation is like.net.activation
        assert_same(eqx.filter(back, eqx.is_array), eqx.filter(old, eqx.is_array))
        assert (back.rate, back.name) == (old.rate, "static")


def test_without_a_like_modules_become_dicts_of_their_fields():
    text = tree.to_json(state(3).point)
    assert_same(tree.from_json(text), {"x": np.array(3, np.float32), "y": np.array([3, 4])})
    with pytest.raises(ValueError, match=r"'net/activation' is an object .*tanh; give a tree that"):
        tree.from_json(tree.to_json(state(3)))


def test_a_weak_type_comes_back(tmp_path):
    value = {
        "scalar": jnp.asarray(0.1),
        "vector": jnp.broadcast_to(jnp.asarray(2), 3),
        "x": jnp.ones(2),
    }
    assert [leaf.weak_type for leaf in value.values()] == [True, True, False]
    tree.save(tmp_path / "tree", value)
    for like in (value, jax.eval_shape(lambda: value)):
        back = tree.load(tmp_path / "tree", like)
        assert [leaf.weak_type for leaf in back.values()] == [True, True, False]
        assert_same(back, value)


def test_a_step_does_not_compile_again_for_what_was_loaded(tmp_path):
    @jax.jit
    def step(value):
        return jax.tree.map(lambda x: x, value)

    value = step({"key": jax.random.key(1), "w": jnp.ones(3), "weak": jnp.asarray(1.0)})
    step(value)
    compiled = step._cache_size()
    tree.save(tmp_path / "tree", value)
    step(tree.load(tmp_path / "tree", value))
    assert step._cache_size() == compiled


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("like", "difference"),
    [
        (
            {"w": np.zeros((2, 4)), "n": 1},
            r"'w' is float64\[2,3\] there and float64\[2,4\] in `like`",
        ),
        ({"w": np.zeros((2, 3), "f4"), "n": 1}, r"'w' is float64\[2,3\] there and float32\[2,3\]"),
        (
            {"w": jax.random.split(jax.random.key(0), (2, 3)), "n": 1},
            r"and key<fry>\[2,3\] in `like`",
        ),
        ({"w": np.zeros((2, 3)), "n": "1"}, r"'n' is int there and str in `like`"),
        ({"w": np.zeros((2, 3)), "n": len}, r"'n' is int there and object in `like`"),
        ({"w": np.zeros((2, 3))}, r"they have 'n' besides"),
        ({"w": np.zeros((2, 3)), "n": 1, "b": 0}, r"they lack 'b'"),
        ({"w": [np.zeros((2, 3))], "n": 1}, r"they lack 'w/0' and they have 'w' besides"),
    ],
)
def test_another_structure_is_refused_by_the_name_of_the_leaf(tmp_path, like, difference):
    value = {"w": np.zeros((2, 3)), "n": 1}
    tree.save(tmp_path / "tree", value)
    with pytest.raises(ValueError, match=difference) as raised:
        tree.load(tmp_path / "tree", like)
    assert str(tmp_path / "tree") in str(raised.value)
    assert not isinstance(raised.value, solstice.DamagedFileError)
    with pytest.raises(ValueError, match=difference):
        tree.from_json(tree.to_json(value), like)


@pytest.mark.parametrize("function", [tree.to_json, tree.digest, tree.digests])
@pytest.mark.parametrize(
    "array",
    [np.array([None]), np.array(["a"]), np.zeros(1, "M8[s]"), jax.ShapeDtypeStruct((2,), float)],
)
def test_arrays_of_other_things_than_numbers_are_refused_by_name(tmp_path, function, array):
    with pytest.raises(TypeError, match=r"leaf 'a/0' is expected to be an array of numbers; it is"):
        function({"a": [array]})
    with pytest.raises(TypeError, match="leaf 'a/0'"):
        tree.save(tmp_path / "tree", {"a": [array]})
    assert not any(tmp_path.iterdir())


def test_an_object_has_no_digest_of_its_own():
    assert tree.digests({"f": len, "x": 1}) == tree.digests({"x": 1})
    with pytest.raises(TypeError, match="expected to be an array, a number or a string"):
        tree.digest(len)


def test_an_array_in_the_other_byte_order_is_the_same_array(tmp_path):
    big = np.arange(3, dtype=">i4")
    tree.save(tmp_path / "tree", big)
    assert tree.load(tmp_path / "tree", np.zeros(3, np.int32)).tolist() == [0, 1, 2]
    assert tree.load(tmp_path / "tree", big).dtype == big.dtype
    assert tree.digest(big) == tree.digest(np.arange(3, dtype="i4"))


@pytest.mark.parametrize(
    "text", ['{"$array": 1}', '{"$array": {"dtype": "f4"}}', '{"$key": []}', "{"]
)
def test_text_that_is_no_tree_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"This is not a \$|Expecting property name"):
        tree.from_json(text)


def test_sizes():
    value = {
        "w": jnp.ones((2, 3), jnp.bfloat16),
        "k": jax.random.key(0),
        "n": 1,
        "f": len,
        "e": np.ones((0, 9)),
    }
    assert tree.size(value) == 6 + 1 + 1
    assert tree.nbytes(value) == 12 + 8
    assert tree.size(jax.eval_shape(lambda: value["w"])) == 6


def test_flattening_names_what_unflattening_puts_together():
    value = {"b": [1, (2, None)], "a": Point(3, 4)}
    pairs, structure = tree.flatten_with_paths(value)
    assert pairs == [("a/x", 3), ("a/y", 4), ("b/0", 1), ("b/1/0", 2)]
    assert tree.paths(value) == [path for path, _ in pairs]
    assert jax.tree.unflatten(structure, [leaf for _, leaf in pairs]) == value


def test_a_node_may_be_said_to_be_a_leaf():
    value = {"b": [1, (2, None)], "a": Point(3, 4)}
    is_leaf = lambda node: type(node) is tuple or node is None or isinstance(node, Point)  # noqa: E731
    pairs, structure = tree.flatten_with_paths(value, is_leaf=is_leaf)
    assert pairs == [("a", Point(3, 4)), ("b/0", 1), ("b/1", (2, None))]
    assert tree.leaves_by_path(value, is_leaf) == dict(pairs)
    assert tree.paths(value, is_leaf) == ["a", "b/0", "b/1"]
    assert jax.tree.unflatten(structure, [leaf for _, leaf in pairs]) == value
