"""Placements: which device holds which part of an experiment and of its batches.

They only define where arrays are: the compiled step is the same program as on one device. XLA
partitions it (GSPMD) and adds the necessary communication.
"""

import abc
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.sharding.arrays import as_global
from solstice.tree.flat import Flat, Placement
from solstice.tree.reprs import Shown


class Sharding(Shown, abc.ABC):
    """Where an experiment and its batches are placed: the `sharding=` of train, test and predict.

    Attributes:
        mesh: The devices.
        batch_spec: How a batch's first axis is split.

    >>> import jax
    >>> from jax.sharding import Mesh, PartitionSpec
    >>> from solstice.sharding import Sharding
    >>> class OnlyEmbeddings(Sharding):
    ...     def __init__(self, mesh):
    ...         self.mesh, self.batch_spec = mesh, PartitionSpec("data")
    ...
    ...     def spec(self, path, shape):
    ...         return PartitionSpec("data") if "embedding" in path else PartitionSpec()
    >>> placement = OnlyEmbeddings(Mesh(jax.devices()[:1], ("data",)))
    >>> placement.parts, tuple(placement.spec("model/params/embedding", (100, 8)))
    (1, ('data',))
    """

    mesh: Mesh
    batch_spec: PartitionSpec

    @abc.abstractmethod
    def spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Return how to split an array of the experiment, by its path and shape."""

    def check(self, arrays: dict[str, tuple[int, ...]]) -> None:
        """Raise if it does not match an experiment's arrays, by path; most match all."""
        return

    @property
    def parts(self) -> int:
        """The number of parts of a batch's first axis."""
        return self._parts(self.batch_spec[0]) if len(self.batch_spec) else 1

    def _parts(self, axes: str | tuple[str, ...] | None) -> int:
        names = (axes,) if isinstance(axes, str) else axes or ()
        return int(np.prod([self.mesh.shape[name] for name in names], dtype=int))

    def placement(self, flat: Flat) -> Placement:
        """Return the shardings of an experiment's arrays.

        Raises:
            ValueError: An array cannot be split as asked; the message names it.
        """
        names = [name for name, static in flat.structure.leaves() if static is None]
        shapes = {name: array.shape for name, array in zip(names, flat.arrays, strict=True)}
        self.check(shapes)
        shardings = []
        for name, shape in shapes.items():
            spec = self.spec(name, shape)
            if len(spec) > len(shape) or any(n % self._parts(i) for n, i in zip(shape, spec)):  # noqa: B905
                raise InvalidValueError(
                    f"{name!r} of shape {shape} cannot be split as {spec} says over the mesh "
                    f"{dict(self.mesh.shape)}: each axis must divide by the number of its parts. "
                    f"Change the rule, the mesh or the layer's width."
                )
            shardings.append(NamedSharding(self.mesh, spec))
        return Placement(tuple(shardings), NamedSharding(self.mesh, PartitionSpec()))

    def placed(self, flat: Flat, *, donate: bool = False) -> Flat:
        """Return a flat experiment with its arrays placed; its steps keep them there.

        Args:
            flat: The experiment.
            donate: Whether arrays that are already in place may be reused.
        """
        placement = self.placement(flat)
        if self.mesh.size == 1:  # as without a placement: constraints would only cost time
            device = SingleDeviceSharding(self.mesh.devices.item())
            there = all(getattr(array, "sharding", None) == device for array in flat.arrays)
            own = flat if donate else flat.copy()
            return own if there else Flat(jax.device_put(own.arrays, device), flat.structure)
        arrays = as_global(flat.arrays, placement.arrays, may_alias=donate)
        return Flat(arrays, flat.structure.placed(placement))


class DataParallel(Sharding):
    """Every device holds the whole experiment and takes a part of each batch.

    Args:
        mesh: The devices, with one or two axes; batches are split over all axes. None uses all
            devices.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> sharding = solstice.sharding.DataParallel()
    >>> exp = solstice.train(exp, 20, [(x, y)], sharding=sharding, progress=False)
    >>> exp.predict(x).tolist()
    [0, 1, 1, 0]
    """

    def __init__(self, mesh: Mesh | None = None) -> None:
        self.mesh: Mesh = as_mesh(mesh)
        self.batch_spec: PartitionSpec = PartitionSpec(self.mesh.axis_names)

    def spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        return PartitionSpec()


class FullySharded(Sharding):
    """Splits parameters, optimizer state and batches over the devices; gathers arrays in use.

    An array of at least `min_size` elements is split along its largest axis that divides (the first
    of several); others are on every device. `train` returns the experiment split this way.

    Args:
        mesh: The devices; None uses all. Batches are split over all axes, arrays over the last one:
            with two axes, the first counts copies of the experiment.
        min_size: The smallest number of elements to split.

    >>> import solstice
    >>> tuple(solstice.sharding.FullySharded().spec("model/params/kernel", (64, 128)))
    (None, 'data')
    """

    def __init__(self, mesh: Mesh | None = None, min_size: int = 1024) -> None:
        self.mesh: Mesh = as_mesh(mesh)
        self.batch_spec: PartitionSpec = PartitionSpec(self.mesh.axis_names)
        self.min_size: int = arguments.count(min_size, "min_size", least=0)

    def spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        axis = self.mesh.axis_names[-1]
        fitting = [i for i, n in enumerate(shape) if n and n % self.mesh.shape[axis] == 0]
        if not fitting or np.prod(shape) < self.min_size:
            return PartitionSpec()
        largest = max(fitting, key=lambda i: shape[i])
        return PartitionSpec(*[None] * largest, axis)


class Rules(Sharding):
    """Each array is split by the first rule whose pattern is in its path.

    Args:
        rules: Pairs of a regular expression, searched for in the path ("model/params/Dense_0/
            kernel"), and the `PartitionSpec` over the mesh's axes. Arrays without a rule are on
            every device.
        mesh: The devices; None uses all, as one axis "data".
        batch: How a batch's first axis is split; None splits it over the mesh's first axis.

    Raises:
        TypeError: A rule is not such a pair.
        ValueError: A pattern is not a regular expression. At the run's start: a pattern matches no
            path, or an array does not divide.

    >>> import solstice
    >>> from jax.sharding import PartitionSpec as P
    >>> rules = solstice.sharding.Rules([("kernel", P(None, "data"))])
    >>> tuple(rules.spec("model/params/Dense_0/kernel", (8, 8))), tuple(rules.spec("key", ()))
    ((None, 'data'), ())
    """

    def __init__(
        self,
        rules: Sequence[tuple[str, PartitionSpec]],
        mesh: Mesh | None = None,
        batch: PartitionSpec | None = None,
    ) -> None:
        self.mesh: Mesh = as_mesh(mesh)
        batch = PartitionSpec(self.mesh.axis_names[0]) if batch is None else batch
        spec = "a jax.sharding.PartitionSpec"
        self.batch_spec: PartitionSpec = arguments.instance(batch, "batch", PartitionSpec, spec)
        self.rules: tuple[tuple[str, PartitionSpec], ...] = _as_rules(rules)

    def spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        for pattern, spec in self.rules:
            if re.search(pattern, path):
                return spec
        return PartitionSpec()

    def check(self, arrays: dict[str, tuple[int, ...]]) -> None:
        for pattern, _ in self.rules:
            if not any(re.search(pattern, path) for path in arrays):
                raise InvalidValueError(
                    f"The rule {pattern!r} matches none of the experiment's arrays, such as "
                    f"{', '.join(map(repr, list(arrays)[:5]))}. "
                    f"solstice.tree.paths(exp) lists them all."
                )


def _as_rules(rules: object) -> tuple[tuple[str, PartitionSpec], ...]:
    what = "a list of pairs of a pattern and a PartitionSpec"
    found = arguments.several(rules, "rules", what)
    for rule in found:
        pair = isinstance(rule, tuple | list) and len(rule) == 2
        if not (pair and isinstance(rule[0], str) and isinstance(rule[1], PartitionSpec)):
            raise InvalidTypeError(
                f"rules is expected to be {what}, such as [('kernel', PartitionSpec('data'))]; one "
                f"is {describe(rule)}."
            )
        try:
            re.compile(rule[0])
        except re.error as error:
            raise InvalidValueError(
                f"Each pattern of rules is expected to be a regular expression; {rule[0]!r} is "
                f"not one: {error}."
            ) from error
    return tuple((pattern, spec) for pattern, spec in found)


def as_mesh(mesh: Mesh | None) -> Mesh:
    """Return a mesh with automatic axes; for None, all devices on an axis "data".

    Raises:
        TypeError: It is not a mesh.
        ValueError: It has more than two axes.
    """
    if mesh is None:
        return Mesh(np.array(jax.devices()), ("data",))
    if not isinstance(mesh, Mesh):
        raise InvalidTypeError(
            f"mesh is expected to be a jax.sharding.Mesh, such as jax.make_mesh((2, 4), ('data', "
            f"'model')), or None for all devices; it is {describe(mesh)}."
        )
    if len(mesh.axis_names) > 2:
        raise InvalidValueError(f"A mesh of one or two axes is expected; it has {mesh.axis_names}.")
    # jax.make_mesh makes axes whose sharding is part of an array's type, and a step that does not
    # know the mesh could not compute with such arrays.
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def check_sharding(sharding: object) -> None:
    """Raise if it is not a placement.

    Raises:
        TypeError: It is something else.
        ValueError: `jax.set_mesh` has set a mesh with explicit axes.
    """
    if sharding is None:
        return
    if AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types:
        raise InvalidValueError(
            f"With sharding=, the compiler splits a step; jax.set_mesh has set a mesh whose axes "
            f"are Explicit, where the step would do so itself: "
            f"{jax.sharding.get_abstract_mesh()}. Call train, test and predict outside of "
            f"`with jax.set_mesh(...)`, and give the mesh to the placement, such as "
            f"DataParallel(mesh): its axes may be of any type there."
        )
    if not isinstance(sharding, Sharding):
        raise InvalidTypeError(
            f"sharding is expected to be solstice.sharding.DataParallel(), FullySharded() or "
            f"Rules(...); it is {describe(sharding)}."
        )
