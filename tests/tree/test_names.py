"""What a tree's leaves are called, and how two trees differ."""

import jax
import pytest

from solstice.tree import leaves_by_path, tree_difference, used_leaves


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"Two leaves of the tree are named 'a/b'; rename one"):
        leaves_by_path({"a": {"b": 1}, "a/b": 2})


def test_a_difference_names_what_is_missing_and_what_is_new():
    def difference(one, other):
        return tree_difference(jax.tree.structure(one), jax.tree.structure(other))

    assert (
        difference({"a": 1, "b": 2}, {"b": 2, "c": 3}) == "they lack 'a' and they have 'c' besides"
    )
    assert difference([1, 2], (1, 2)).startswith("those were PyTreeDef([*, *]), these are")


def test_a_leaf_that_a_scan_only_carries_is_not_used():
    def scanned(leaves):
        def body(carry, x):
            return (carry[0] + 1, carry[1] + x), None

        (_, total), _ = jax.lax.scan(body, (leaves["carried"], 0.0), leaves["summed"])
        return total

    leaves = {"carried": 0.0, "summed": jax.numpy.ones(3)}
    assert used_leaves(scanned, leaves) == [False, True]
