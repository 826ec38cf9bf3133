"""Arrays: whole arrays as a dataset, shuffled and split into batches, in a new order each epoch.

A batch is a function of the epoch and its index, so a resumed run continues without reading earlier
batches. `rows.py` chooses the rows of a batch.
"""

import copy
import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from solstice import arguments
from solstice.arguments import describe
from solstice.data.columns import check_columns
from solstice.data.gathered import Gathered, Mask
from solstice.data.masks import masked
from solstice.data.memory import as_arrays, own_arrays
from solstice.data.rows import epoch_order, folded, parted
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.signatures import explained, required
from solstice.tree.naming import leaves_by_path
from solstice.tree.pytree import AnyArray, PyTree, PyTreeDef
from solstice.tree.reprs import Shown

Last = Literal["pad", "drop", "short"]

_SEEDS = 2**32 - 1

# The arguments' names in scikit-learn and Keras.
_OTHER_NAMES = {
    "test_size": "fraction, of the first part: 1 - test_size",
    "validation_split": "fraction, of the first part: 1 - validation_split",
    "train_size": "fraction",
    "random_state": "seed",
    "shuffle": "seed",
}


class Arrays(Shown):
    """A dataset of whole arrays, split into batches and reshuffled in each epoch.

    Each epoch reads every row once, in an order that depends only on the seed and the epoch. So a
    resumed run gets the same batches, and continues within an epoch without reading earlier ones.

    The methods return a new dataset over the same memory: nothing is copied, and memory-mapped
    files stay on the disk.

    Args:
        *data: Arrays with examples along their first axis, or pytrees of these: of numpy or jax,
            memory-mapped, or anything that numpy can convert. Several give batches that are tuples,
            such as `(x, y)`; a mapping gives mappings.
        batch_size: How many examples a batch has.
        shuffle: A seed, from 0; None leaves the rows in their order.
        last: What to do with a last batch that has fewer examples. "pad" fills it with other rows
            and adds a mask to every batch, as `pad_last` does; "drop" leaves it out; "short" keeps
            it short. None pads if the experiment takes masks, has no state from whole batches (as
            batch norm has), and nothing is mapped; otherwise the batch stays short.

    Attributes:
        rows: How many examples there are.
        batch_size: As above.
        shuffle: As above.
        last: As above.

    Raises:
        TypeError: Data are not arrays of numbers, or an argument has a wrong type.
        ValueError: The arrays differ in their first axis or are empty, or no batch is left.

    >>> import numpy as np, solstice
    >>> x, y = np.arange(10.0), np.arange(10) % 2
    >>> data = solstice.data.Arrays(x, y, batch_size=4, shuffle=0)
    >>> data
    Arrays(float64[10], int64[10], batch_size=4, shuffle=0)
    >>> len(data), [len(y) for x, y in data(epoch=0)]
    (3, [4, 4, 2])
    >>> train, val = data.split(0.8, seed=0, stratify=y)
    >>> train.rows, val.rows
    (8, 2)
    """

    def __init__(
        self,
        *data: PyTree,
        batch_size: int,
        shuffle: int | None = None,
        last: Last | None = None,
    ) -> None:
        if not data or not all(map(jax.tree.leaves, map(_as_dict, data))):
            raise InvalidTypeError(
                f"Arrays is expected to be given the data, as in Arrays(x, y, batch_size=32); it "
                f"was given {describe(data) if data else 'none'}."
            )
        tree = as_arrays(_as_dict(data[0]) if len(data) == 1 else data)
        leaves, self._structure = jax.tree.flatten(tree)
        self._count = _check_data(tree)
        # Slices of a memory map are memory maps too; slices of its memory are plain arrays.
        self._leaves: list[np.ndarray] = [np.asarray(leaf) for leaf in leaves]
        self.batch_size: int = arguments.count(batch_size, "batch_size", most=2**31 - 1)
        self.shuffle: int | None = _seed(shuffle, "shuffle")
        self.last: Last | None = (
            None if last is None else arguments.choice(last, "last", ("pad", "drop", "short"))
        )
        # The rows of the data in this dataset; None for all.
        self._of: np.ndarray | None = None
        self._weights: np.ndarray | None = None
        self._maps: tuple[_Map, ...] = ()
        # Whole arrays on the device, after `on_device`.
        self._placed: list[jax.Array] | None = None
        self._check_batches()

    @property
    def rows(self) -> int:
        return self._count if self._of is None else len(self._of)

    def __len__(self) -> int:
        whole, rest = divmod(self.rows, self.batch_size)
        return whole + (rest > 0 and self.last != "drop")

    def __call__(self, epoch: int) -> Iterator[PyTree]:
        """Return an iterator over an epoch's batches.

        With `last=None`, the last one is short, since the experiment is not known here.
        """
        return self.batches(arguments.count(epoch, "epoch", least=0, most=2**31 - 1))

    # Iterating calls this too; with an `__iter__` it would be a dataset without epochs.
    def __getitem__(self, index: object) -> NoReturn:
        raise InvalidTypeError(
            "Arrays has an order for each epoch; read its batches as in "
            "`for batch in data(epoch=0)`, the first one with next(data(epoch=0))."
        )

    # What a run reads from.

    def batches(
        self, epoch: int, start: int = 0, with_mask: Mask | None = None
    ) -> Iterator[PyTree]:
        """Yield an epoch's batches, starting at an index.

        Args:
            epoch: The epoch's index.
            start: The index of the first batch.
            with_mask: With `last=None`, adds a mask to a batch; None leaves the last batch short.
                It returns None if batches must not be padded.
        """
        pads, add_mask = self._padding(with_mask)
        for rows, real, i in self._cuts(epoch, start, pads=pads):
            batch = self._batch(rows, epoch, i)
            if pads:
                _check_kept(batch, len(rows), self._maps)
                batch = add_mask(batch, np.arange(len(rows)) < real)
            yield batch

    def gathered(
        self, epoch: int, start: int = 0, with_mask: Mask | None = None
    ) -> Iterator[Gathered]:
        """Yield the same batches as indices, for a compiled step that gathers the rows."""
        assert self._placed is not None
        pads, _ = self._padding(with_mask)
        recipe = _Recipe(self._structure, self._maps, padded=pads and self.last == "pad")
        by_experiment = pads and self.last is None
        for rows, real, i in self._cuts(epoch, start, pads=pads):
            numbers = np.array([epoch, i, real], np.uint32)
            yield Gathered(self._placed, rows.astype(np.int32), numbers, recipe, by_experiment)

    @property
    def is_on_device(self) -> bool:
        """Whether `on_device` has copied the arrays to the device."""
        return self._placed is not None

    @property
    def devices(self) -> set[Any]:
        """The device of the arrays; empty if they are in host memory."""
        return set() if self._placed is None else self._placed[0].devices()

    def in_order(self) -> Self:
        """Return a dataset of every row once, in the order of the data, as for predictions.

        >>> data = Arrays(np.arange(3), batch_size=2, shuffle=0).in_order()
        >>> [batch.tolist() for batch in data(0)]
        [[0, 1], [2]]
        """
        return self._changed(shuffle=None, last="short", _weights=None)

    def _padding(self, with_mask: Mask | None) -> tuple[bool, Mask]:
        """Return whether batches are padded, and the function that adds a mask."""
        if self.rows % self.batch_size == 0 or self.last in ("drop", "short"):
            return False, masked
        if self.last == "pad":
            return True, masked
        if with_mask is None or self._maps:  # a map may reorder the rows
            return False, masked
        # Any batch shows that.
        rows = np.arange(self.batch_size) % self.rows
        batch = self._batch(rows if self._of is None else self._of[rows], 0, 0)
        return with_mask(batch, np.arange(len(rows)) < 1) is not None, with_mask

    def _cuts(self, epoch: int, start: int, *, pads: bool) -> Iterator[tuple[np.ndarray, int, int]]:
        """Yield the rows of each batch, how many of them are real, and its index."""
        order, size = self._order(epoch), self.batch_size
        for i in range(start, len(self)):
            rows = order[i * size : (i + 1) * size]
            real = len(rows)
            if pads and real < size:  # with other rows, which the mask excludes
                rows = np.concatenate([rows, np.resize(order, size - real)])
            yield rows, real, i

    def _order(self, epoch: int) -> np.ndarray:
        rows = np.arange(self._count) if self._of is None else self._of
        return epoch_order(rows, epoch, self.shuffle, self._weights)

    def _batch(self, rows: np.ndarray, epoch: int, i: int) -> PyTree:
        if self._placed is not None:
            numbers = np.array([epoch, i, len(rows)], np.uint32)
            recipe = _Recipe(self._structure, self._maps, padded=False)
            return _read(Gathered(self._placed, rows.astype(np.int32), numbers, recipe, False))
        if self.shuffle is None and self._of is None and rows[-1] - rows[0] == len(rows) - 1:
            taken = [leaf[rows[0] : rows[-1] + 1] for leaf in self._leaves]
        else:  # checks no index, in half the time of leaf[rows]
            taken = [leaf.take(rows, 0, mode="clip") for leaf in self._leaves]
        batch = jax.tree.unflatten(self._structure, taken)
        for mapping in self._maps:
            batch = mapping.apply(batch, np.uint32(epoch), np.uint32(i))
        return batch

    def on_device(self) -> Self:
        """Return a dataset whose arrays are on the default device; copies them now, once.

        A compiled step then gets the indices of a batch's rows and gathers them: nothing else goes
        to the device. With `steps_per_call`, the indices of all steps go together. A part copies
        only its own rows. It is for one device: a run with `sharding=` over several raises an
        error.

        Raises:
            ValueError: The device reports too little free memory.

        >>> data = Arrays(np.arange(4), batch_size=2, shuffle=0)
        >>> [a.tolist() == b.tolist() for a, b in zip(data(3), data.on_device()(3))]
        [True, True]
        """
        # Only the rows of a part, so that both parts together take the memory of the whole.
        of = self._of
        leaves = self._leaves if of is None else [leaf.take(of, 0) for leaf in self._leaves]
        device = _default_device()
        stats = device.memory_stats() or {}
        needed = sum(leaf.nbytes for leaf in leaves)
        free = stats.get("bytes_limit", needed) - stats.get("bytes_in_use", 0)
        if "bytes_limit" in stats and needed > free:
            raise InvalidValueError(
                f"on_device is expected to have enough free memory for the arrays; they have "
                f"{needed / 2**20:,.0f} MiB, and {device} has {free / 2**20:,.0f} MiB free. Leave "
                f"out on_device(): batches are then prefetched and copied one by one."
            )
        # Not committed to it, or the first step would commit the experiment too and recompile.
        placed = [_placed(leaf, device) for leaf in leaves]
        return self._changed(_placed=placed, _leaves=leaves, _of=None, _count=self.rows)

    # Other datasets over the same data.

    @explained(**_OTHER_NAMES)
    def split(
        self, fraction: float, *, seed: int | None = 0, stratify: object = None
    ) -> tuple[Self, Self]:
        """Return two datasets: this fraction of the rows, and the rest.

        Args:
            fraction: The first dataset's share of the rows, between 0 and 1.
            seed: The seed for choosing rows; None takes the first rows, as for a time series.
            stratify: The class of each row, an array, or the name of one in a mapping: both
                datasets then have the classes in the same proportion. True uses the targets, the
                second array. Classes are whole numbers, of any dtype, or strings.

        Raises:
            TypeError, ValueError: An argument is wrong, or a dataset would be empty.

        >>> train, val = Arrays(np.arange(10), batch_size=2).split(0.8, seed=None)
        >>> train.rows, [batch.tolist() for batch in val(0)]
        (8, [[8, 9]])
        """
        fraction = arguments.number(fraction, "fraction", above=0, below=1)
        first = round(fraction * self.rows)
        if not 0 < first < self.rows:
            raise InvalidValueError(
                f"split is expected to leave at least one row on each side; fraction={fraction} of "
                f"{self.rows} rows is {first}."
            )
        labels = None if stratify is None else self._labels(stratify, "stratify")
        one, other = parted(self.rows, first, _seed(seed, "seed"), labels)
        return self._chosen(one), self._chosen(other)

    def folds(
        self, k: int, *, seed: int | None = 0, stratify: object = None
    ) -> list[tuple[Self, Self]]:
        """Return k pairs of datasets for cross-validation: all other rows, and the fold.

        Args:
            k: How many folds, at least 2; each row is in one of them.
            seed: As in `split`.
            stratify: As in `split`.

        Raises:
            TypeError, ValueError: An argument is wrong.

        >>> [(train.rows, val.rows) for train, val in Arrays(np.arange(7), batch_size=2).folds(3)]
        [(4, 3), (5, 2), (5, 2)]
        """
        k = arguments.count(k, "k", least=2, most=self.rows)
        labels = None if stratify is None else self._labels(stratify, "stratify")
        pairs = folded(self.rows, k, _seed(seed, "seed"), labels)
        return [(self._chosen(rest), self._chosen(own)) for rest, own in pairs]

    def map(self, function: Callable[..., PyTree], *, seed: int | None = None) -> Self:
        """Return a dataset with a function applied to each batch, compiled by `jax.jit`.

        Use it for augmentation: split first, and map only the training part. With `last="pad"` the
        mask is added after the map, which must keep the rows and their order; otherwise the last
        batch is short.

        Args:
            function: Called as `function(batch)`, or as `function(batch, key)` if it requires two
                arguments, with a key that depends on the seed, the epoch and the batch's index.
                Random numbers drawn without that key are drawn once, at compilation.
            seed: The seed of the keys; None uses the seed of the shuffling, or 0.

        Raises:
            TypeError, ValueError: An argument is wrong.

        >>> data = Arrays(np.arange(4.0), batch_size=2).map(lambda batch: 2 * batch)
        >>> [batch.tolist() for batch in data(0)]
        [[0.0, 2.0], [4.0, 6.0]]
        """
        arguments.function(function, "function")
        number = required(function, "function")
        if number not in (1, 2):
            raise InvalidTypeError(
                f"function is expected to be a function of (batch) or of (batch, key); it is "
                f"{describe(function)}, which requires {number} arguments."
            )
        seed = self.shuffle or 0 if seed is None else _seed(seed, "seed")
        one = _Map(function, number == 2, (seed or 0, len(self._maps)))
        return self._changed(_maps=(*self._maps, one))

    def weighted(self, weights: Any) -> Self:
        """Return a dataset whose rows are drawn in proportion to weights, as many per epoch as now.

        A row with an expected count of 2.3 per epoch comes two or three times.

        Args:
            weights: One number of at least 0 for each row.

        Raises:
            TypeError, ValueError: They are not such numbers, or `shuffle` is None.

        >>> data = Arrays(np.arange(4), batch_size=4, shuffle=0).weighted([0, 0, 1, 1])
        >>> sorted(next(data(0)).tolist())
        [2, 2, 3, 3]
        """
        found = np.asarray(arguments.array(weights, "weights"), np.float64)
        right = found.shape == (self.rows,) and np.isfinite(found).all() and (found >= 0).all()
        if not right or not found.any():
            raise InvalidValueError(
                f"weights are expected to be {self.rows} finite numbers of at least 0, one for "
                f"each row and not all 0; they are {describe(weights)}."
            )
        if self.shuffle is None:
            raise InvalidValueError(
                "Drawing rows at random needs a seed, and shuffle is None. Pass one to "
                "Arrays, such as shuffle=0."
            )
        return self._changed(_weights=found)

    def balanced(self, labels: object = True) -> Self:
        """Return a dataset that draws each class equally often: `weighted` by 1 / class size.

        In each epoch, rows of rare classes come several times, and some rows of frequent classes do
        not come. Balance only the training data, not what you measure on.

        Args:
            labels: As `stratify` in `split`.

        Raises:
            TypeError, ValueError: They are not labels, or `shuffle` is None.

        >>> data = Arrays(np.arange(8), np.array([0] * 6 + [1] * 2), batch_size=8, shuffle=0)
        >>> sorted(next(data.balanced()(0))[1].tolist())
        [0, 0, 0, 0, 1, 1, 1, 1]
        """
        _, classes, counts = np.unique(
            self._labels(labels, "labels"), return_inverse=True, return_counts=True
        )
        return self.weighted(1 / counts[classes])

    def _labels(self, labels: Any, name: str) -> np.ndarray:
        """Return the class of each row; `labels` gives them or says where they are."""
        tree = jax.tree.unflatten(self._structure, self._leaves)
        found: Any = labels
        if labels is True and isinstance(tree, tuple) and len(tree) > 1:
            found = tree[1]
        elif isinstance(labels, str) and isinstance(tree, Mapping) and labels in tree:
            found = tree[labels]
        whole = found is not labels
        try:
            found = np.asarray(found)
        except ValueError:  # a ragged list
            found = np.asarray(None)
        if whole and self._of is not None and found.ndim:
            found = found[self._of]
        if found.shape != (self.rows,) or not _are_classes(found):
            raise InvalidValueError(
                f"{name} is expected to be the class of each of {self.rows} rows, one whole number "
                f"or text for each; True takes the second array, and a text an entry of a mapping. "
                f"It is {describe(labels)} for {describe(tree)}. {_hint(labels, tree, found)}"
            )
        return found

    def _chosen(self, places: np.ndarray) -> Self:
        rows = places if self._of is None else self._of[places]
        weights = None if self._weights is None else self._weights[places]
        if weights is not None and not weights.any():
            raise InvalidValueError(
                f"Each part is expected to have a row of positive weight; the weights of these "
                f"{len(rows)} rows are all 0. Split first, and weight only the training part."
            )
        return self._changed(_of=rows, _weights=weights)

    def _changed(self, **changes: object) -> Self:
        other = copy.copy(self)
        vars(other).update(changes)
        other._check_batches()
        return other

    def _check_batches(self) -> None:
        if not len(self):
            raise InvalidValueError(
                f"last='drop' is expected to leave at least one batch; there are {self.rows} rows, "
                f"fewer than batch_size={self.batch_size}. Make it smaller, or pass last='short'."
            )

    def _shown(self) -> list[tuple[str, object]]:
        if "_placed" not in vars(self):  # not initialised yet
            return []
        tree = jax.tree.unflatten(self._structure, self._leaves)
        parts = tree if type(tree) is tuple else (tree,)
        of = [] if self._of is None else [("rows", self.rows)]
        maps = tuple(one.function for one in self._maps)
        others = [("shuffle", self.shuffle), ("last", self.last), ("map", maps or None)]
        others += [("weighted", None if self._weights is None else True)]
        others += [("on_device", True if self.is_on_device else None)]
        return [
            *(("", part) for part in parts),
            *of,
            ("batch_size", self.batch_size),
            *((name, value) for name, value in others if value is not None),
        ]


class _Map(Shown):
    """A function of each batch, compiled once per dataset."""

    def __init__(self, function: Callable[..., PyTree], keyed: bool, seed: tuple[int, int]) -> None:
        self.function = function
        self._keyed, self._seed = keyed, seed
        # The same program for a batch gathered outside a step, or its digest would differ.
        self.apply = jax.jit(self._traced)

    def _traced(self, batch: PyTree, epoch: ArrayLike, i: ArrayLike) -> PyTree:
        given = [batch]
        if self._keyed:
            seed, place = self._seed
            key = jax.random.key(seed)
            for number in (place, epoch, i):
                key = jax.random.fold_in(key, number)
            given.append(key)
        try:
            return self.function(*given)
        except Exception as error:
            called = "batch, key" if self._keyed else "batch"
            error.add_note(
                f"map compiles this function by jax.jit, so it takes jax.numpy, and calls it as "
                f"function({called}); the batch is {describe(batch)}."
            )
            raise


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """How a step makes a batch from the gathered rows."""

    structure: PyTreeDef
    maps: tuple[_Map, ...]
    padded: bool

    def __call__(self, leaves: list[Array], numbers: AnyArray) -> PyTree:
        epoch, i, real = numbers
        batch = jax.tree.unflatten(self.structure, leaves)
        for one in self.maps:
            batch = one.apply(batch, epoch, i)
        if not self.padded:
            return batch
        _check_kept(batch, len(leaves[0]), self.maps)
        return masked(batch, jnp.arange(len(leaves[0])) < real)


def _check_kept(batch: PyTree, count: int, maps: tuple[_Map, ...]) -> None:
    """Raise if maps changed the number of rows of a batch that gets a mask."""
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if maps and sizes != {(count,)}:
        raise InvalidValueError(
            f"last='pad' marks which of {count} rows are real, so map is expected to keep them; it "
            f"made {describe(batch)}. Pass last='short' or last='drop'."
        )


@jax.jit
def _read(batch: Gathered) -> PyTree:
    return batch.open(lambda batch, real: None)


def _default_device() -> Any:
    (device,) = jnp.zeros(()).devices()
    return device


def _placed(leaf: np.ndarray, device: Any) -> jax.Array:
    """Return an array on the default device that shares no memory with the user's."""
    if device.platform == "cpu":  # where jax would share the memory
        return jax.device_put(own_arrays(leaf))
    return jax.device_put(leaf).block_until_ready()  # or it might still be read later


def _are_classes(labels: np.ndarray) -> bool:
    """Return whether each label can be a class: no fractions, nothing missing, one type."""
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return bool((np.isfinite(labels) & (labels == np.round(labels))).all())
    if labels.dtype.kind == "O":
        # numpy sorts NaN and fractions among objects without an error.
        if any(
            isinstance(one, float | np.floating) and not one.is_integer() for one in labels.flat
        ):
            return False
        try:
            np.unique(labels)
        except TypeError:  # which have no order
            return False
    return labels.dtype.kind in "iubSUO"


def _hint(labels: object, tree: PyTree, found: np.ndarray) -> str:
    """Describe what to pass instead of labels that are not classes."""
    if labels is True and isinstance(tree, Mapping):
        return f"Name the entry that holds them, one of {', '.join(map(repr, tree))}."
    if found.ndim == 2 and found.shape[1] == 1:
        return "Pass them along one axis, y.ravel()."
    if found.ndim > 1:
        return (
            "Rows with several labels, as of multi-hot or segmentation targets, have no single "
            "class: pass one for each, an array of as many."
        )
    if found.dtype.kind == "O" and found.ndim:
        return "Labels of several types, or missing ones (None), are not classes: name them all."
    if found.dtype.kind == "f":
        return "Fractions and NaN are not classes: pass bins, as from np.digitize."
    return "Pass an array with one for each row."


def _seed(value: object, name: str) -> int | None:
    """Return a seed, or None."""
    if value is None or value is False:
        return None
    if isinstance(value, bool | np.bool_):
        raise InvalidTypeError(
            f"{name} is expected to be a seed, so that the order can be repeated; it is True. "
            f"Pass an int, such as {name}=0, or None for no shuffling."
        )
    return arguments.count(value, name, least=0, most=_SEEDS)


def _check_data(tree: PyTree) -> int:
    """Return how many rows the arrays have."""
    check_columns(tree, "Arrays")
    sizes: dict[str, int] = {}
    for name, leaf in leaves_by_path(tree).items():
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise InvalidTypeError(
                f"Arrays is expected to be given arrays of numbers; {name or 'the data'!r} are "
                f"keys, {describe(leaf)}. Pass jax.random.key_data(keys), and take "
                f"jax.random.wrap_key_data of it in a map or the step."
            )
        if not np.ndim(leaf):
            raise InvalidTypeError(
                f"Arrays is expected to be given arrays with examples along their first axis; "
                f"{name or 'the data'!r} is {describe(leaf)}. Turn a list of numbers into an array "
                f"with np.asarray; pass options by name."
            )
        sizes[name] = leaf.shape[0]
    if len(set(sizes.values())) != 1:
        raise InvalidValueError(
            f"Arrays are expected to have the same examples along their first axis; they have "
            f"{sizes or 'none'}."
        )
    count = operator.index(next(iter(sizes.values())))
    if not count:
        raise InvalidValueError(
            f"Arrays is expected to be given at least one example; it was given {describe(tree)}."
        )
    return count


def _as_dict(tree: PyTree) -> PyTree:
    """Return a mapping of any kind as a dict, which jax treats as a pytree."""
    return dict(tree) if isinstance(tree, Mapping) else tree
