"""Rows: which rows of whole arrays an epoch reads, and how to split them.

It computes indices in numpy and reads no data. Randomness comes from seeds, so it is repeatable.
"""

import numpy as np


def epoch_order(
    rows: np.ndarray, epoch: int, seed: int | None, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the rows in the order in which an epoch reads them.

    Args:
        rows: Indices of rows.
        epoch: The epoch's index.
        seed: The seed of the shuffling; None keeps their order.
        weights: How often each is read, in proportion; None reads each once.

    >>> epoch_order(np.arange(4), 0, None).tolist()
    [0, 1, 2, 3]
    >>> sorted(epoch_order(np.arange(4), 0, 7).tolist())
    [0, 1, 2, 3]
    """
    if seed is None:
        return rows
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(rows))
    if weights is not None:
        order = generator.permutation(_drawn(order, weights[order], generator))
    return rows[order]


def _drawn(rows: np.ndarray, weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw as many rows as there are, by systematic sampling.

    A row with the expected count e comes floor(e) or ceil(e) times: the same expectation as
    independent draws, with less variance.
    """
    weights = weights / weights.max()  # avoids overflow of the sum
    expected = np.cumsum(weights / weights.sum()) * len(rows)
    expected[-1] = len(rows)
    until = np.floor(expected + generator.random()).astype(np.int64)
    return np.repeat(rows, np.diff(np.minimum(until, len(rows)), prepend=0))


def parted(
    count: int, first: int, seed: int | None, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the first part and of the other, each in ascending order.

    Args:
        count: How many rows there are.
        first: How many rows the first part gets.
        seed: The seed for choosing them; None takes the first rows.
        labels: The class of each row: each part then has the classes in proportion. Rows left over
            by rounding go to the classes with the largest remainders, as in scikit-learn's
            `StratifiedShuffleSplit`.

    >>> one, other = parted(6, 3, 0, np.array([0, 0, 0, 0, 1, 1]))
    >>> len(one), len(other), int((one > 3).sum())
    (3, 3, 1)
    """
    order = _mixed(count, seed)
    if labels is None:
        chosen = order[:first]
    else:
        _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        shares = counts * (first / count)
        each = np.floor(shares).astype(np.int64)
        largest = np.argsort(each - shares, kind="stable")[: first - each.sum()]
        each[largest] += 1
        by_class = order[np.argsort(classes[order], kind="stable")]
        starts = np.cumsum(counts) - counts
        chosen = np.concatenate([by_class[i : i + n] for i, n in zip(starts, each, strict=True)])
    is_first = np.zeros(count, bool)
    is_first[chosen] = True
    return np.flatnonzero(is_first), np.flatnonzero(~is_first)


def folded(
    count: int, folds: int, seed: int | None, labels: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for each fold, the indices of the other folds' rows and of its own, ascending.

    With labels, the folds' counts of each class differ by at most one row.

    >>> [own.tolist() for _, own in folded(5, 2, None)]
    [[0, 1, 2], [3, 4]]
    """
    order = _mixed(count, seed)
    fold = np.empty(count, np.int64)
    if labels is None:
        fold[order] = np.sort(np.arange(count) % folds)
    else:
        fold[order[np.argsort(labels[order], kind="stable")]] = np.arange(count) % folds
    return [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(folds)]


def _mixed(count: int, seed: int | None) -> np.ndarray:
    return np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
