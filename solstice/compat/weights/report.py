"""What `compat.load` did, leaf by leaf, as a table; and a check by outputs."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.model import Model
from solstice.compat.surgery.capture import capture
from solstice.compat.surgery.difference import first_difference
from solstice.compat.weights.files.sources import read
from solstice.compat.weights.proof import as_expected, difference, evaluation
from solstice.compat.weights.unequal import explained
from solstice.compat.weights.words import may_be_alike
from solstice.errors import InvalidValueError
from solstice.tree.names import elided, few
from solstice.tree.pytree import PyTree

_WIDTH = 44


@dataclasses.dataclass(frozen=True)
class LoadedLeaf:
    """One leaf of the model, and the source of its values.

    Attributes:
        leaf: Its path, from "params/" or "state/" on.
        sources: The names of the arrays that its values came from.
        how: How it was matched: "name", "order of use", "likeness of names", "tied" (to an
            embedding), "gates" (of a recurrent cell) or "outputs" (that were passed).
        turned: How the layout changed: "transposed (1, 0)", or "as it is".
        others: Other arrays that could have been meant; empty if names or outputs decided.
        doubt: Why its layout is a guess; empty if it is none.
    """

    leaf: str
    sources: tuple[str, ...]
    how: str
    turned: str
    others: tuple[str, ...] = ()
    doubt: str = ""


@dataclasses.dataclass(frozen=True, repr=False)
class LoadReport:
    """What `compat.load` did; it prints as a table.

    Attributes:
        source: Where the arrays came from.
        rows: The leaves that were loaded, in the model's order.
        missing: Leaves that were not, with their shapes; empty unless `strict=False`.
        unused: Arrays of the source that were not used, with their shapes; empty unless
            `strict=False`.
        kept: Counters and seeds, which kept their values.
        ignored: Arrays of the source that are not weights, such as torch's `num_batches_tracked`.
        notes: Remarks on how the source was read.
    """

    source: str
    rows: tuple[LoadedLeaf, ...]
    missing: dict[str, tuple[int, ...]]
    unused: dict[str, tuple[int, ...]]
    kept: tuple[str, ...]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    _model: Model
    _epsilons: tuple[float, ...]

    @property
    def ambiguous(self) -> tuple[LoadedLeaf, ...]:
        """The rows for which another array of the same kind, or another layout, could be meant."""
        return tuple(row for row in self.rows if row.others or row.doubt)

    @property
    def warning(self) -> str:
        """What `load` warns of: empty if nothing is ambiguous."""
        alike = [row for row in self.rows if row.others]
        guessed = [row for row in self.rows if row.doubt]
        said = []
        if alike:
            said.append(
                f"{len(alike)} leaves were matched by order alone, such as {alike[0].leaf!r} with "
                f"{alike[0].sources[0]!r}, and other arrays have their form"
            )
        if guessed:
            said.append(
                f"the layouts of {len(guessed)} leaves are guesses: {guessed[0].doubt[:-1]}"
            )
        if not said:
            return ""
        return (
            f"load(): {', and '.join(said)}. Prove the result: report.check(inputs, outputs), or "
            f"load(..., example=inputs, outputs=outputs)."
        )

    def check(
        self,
        inputs: PyTree,
        outputs: PyTree,
        *,
        inside: Mapping[str, Any] | None = None,
        tolerance: float = 1e-5,
    ) -> float:
        """Run the loaded model and return how much its outputs differ from those expected.

        Args:
            inputs: A batch of inputs; several as a tuple.
            outputs: The original network's outputs for them, in evaluation.
            inside: The outputs of all layers of that network, under any names (in torch, from
                `register_forward_hook`). If the outputs differ, the error names the first
                sub-module of the model whose value is not among these, in any order of axes.
            tolerance: The largest difference allowed, divided by the largest output (at least 1).

        Returns:
            The largest difference, as `tolerance` measures it.

        Raises:
            UnequalOutputsError: They differ by more. The message names the likely cause: a
                hyper-parameter (an epsilon, the variant of GELU) or swapped leaves.
            ValueError: The outputs have another structure or shape.

        >>> import equinox as eqx, jax, numpy as np
        >>> from solstice import compat
        >>> model = compat.as_model(eqx.nn.Linear(3, 2, key=jax.random.key(0)))
        >>> weight, bias, x = np.ones((2, 3)), np.zeros(2), np.ones((1, 3))
        >>> model, report = compat.load(model, {"weight": weight, "bias": bias}, example=x)
        >>> report.check(x, x @ weight.T + bias)
        0.0
        """
        tolerance = arguments.number(tolerance, "tolerance", above=0)
        inputs = inputs if type(inputs) is tuple else (inputs,)
        arguments.check_leaves(inputs, "inputs")
        others = None
        if inside is not None:
            others = read(arguments.mapping(inside, "inside"), "inside").arrays
        computed = evaluation(self._model, inputs)({})
        if not any(map(np.size, jax.tree.leaves(computed))):
            raise InvalidValueError(
                f"inputs are expected to give outputs to compare; the model gives none, "
                f"{describe(computed)}. Pass a batch with examples."
            )
        found = difference(computed, as_expected(outputs, computed))
        if found > tolerance or not np.isfinite(found):
            suspects = [row.leaf for row in self.ambiguous]
            layer, where = (None, "") if others is None else self._layer(inputs, others, tolerance)
            raise explained(found, tolerance, suspects, self._epsilons, layer=layer, where=where)
        return found

    def _layer(
        self, inputs: tuple[PyTree, ...], others: Mapping[str, np.ndarray], tolerance: float
    ) -> tuple[str | None, str]:
        """Return the first sub-module whose output matches no layer of the other network."""
        first = first_difference(capture(self._model, *inputs), others, tolerance=tolerance)
        if first is None:
            return (
                None,
                "; the outputs of all its sub-modules are among inside, so they differ after these",
            )
        return first.path, (
            f"; they differ from {first.path!r} on: the closest of inside is {first.nearest!r}, "
            f"{first.distance:.2g} away"
        )

    def __str__(self) -> str:
        doubtful = self.ambiguous
        names = elided([row.leaf for row in self.rows], _WIDTH)
        lines = [
            [leaf, few(row.sources, 2), row.how + " *" * (row in doubtful), row.turned]
            for leaf, row in zip(names, self.rows, strict=True)
        ]
        table = [["leaf", "from", "how", "turned"], *lines]
        widths = [max(len(line[i]) for line in table) for i in range(4)]
        text = [f"LoadReport of {self.source}", ""]
        text += [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        if doubtful:
            layout = ", or another layout fits" if any(row.doubt for row in doubtful) else ""
            text += ["", f"* another array has this form{layout}: check(inputs, outputs) tells"]
        said = [
            ("missing", shapes(self.missing)),
            ("unused", shapes(self.unused)),
            ("kept", list(self.kept)),
            ("ignored", list(self.ignored)),
        ]
        parts = [f"{name}: {few(some, 4)}" for name, some in said if some]
        return "\n".join([*text, *([""] if parts or self.notes else []), *parts, *self.notes])

    def __repr__(self) -> str:
        counts = [
            f"{len(self.rows)} leaves from {self.source}",
            *(f"{len(some)} {name}" for name, some in (
                ("ambiguous", self.ambiguous), ("missing", self.missing), ("unused", self.unused)
            ) if some),
        ]  # fmt: skip
        return f"LoadReport({', '.join(counts)})"


def shapes(leaves: dict[str, tuple[int, ...]]) -> list[str]:
    """Return leaves with their shapes as texts."""
    return [f"{name} {shape}" for name, shape in leaves.items()]


def check_left(
    source: str,
    missing: dict[str, tuple[int, ...]],
    unused: dict[str, tuple[int, ...]],
    reasons: Sequence[str],
    parts: Set[str] = frozenset(),
) -> None:
    """Raise if something is unmatched on either side.

    Args:
        source: The name of the source.
        missing: Leaves of the model, with their shapes.
        unused: Arrays of the source, likewise.
        reasons: Why some arrays are unused.
        parts: Arrays that are no weights by themselves: no rename is advised, as none helps.

    Raises:
        ValueError: Both are listed with their shapes, with advice on rename=.
    """
    if not missing and not unused:
        return
    said = []
    if missing:
        said.append(f"nothing was found for {few(shapes(missing), 6)} of the model")
    if unused:
        said.append(f"{few(shapes(unused), 6)} of {source} went nowhere")
    free = {} if parts else unused
    fits = [
        (name, leaf)
        for leaf, shape in missing.items()
        for name, other in free.items()
        if sorted(shape) == sorted(other) and may_be_alike(name, leaf, len(shape))
    ]
    lefts, rights = (Counter(side) for side in zip(*fits, strict=True)) if fits else ({}, {})
    sure = [(name, leaf) for name, leaf in fits if lefts[name] == rights[leaf] == 1]
    advice = "Pass strict=False to load what fits"
    if sure:
        name, leaf = sure[0]
        advice += f", or match them: rename={{{name!r}: {leaf!r}}}"
    elif fits:
        advice += ", or match arrays with leaves: rename="
    elif free:
        advice += f", or drop arrays: rename={{{next(iter(free))!r}: None}}"
    raise InvalidValueError(
        f"load() is expected to use every array of the source and to fill every leaf of the model; "
        f"{', and '.join(said)}. {''.join(f'{reason} ' for reason in reasons)}{advice}."
    )
