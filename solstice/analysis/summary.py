"""Summary: an experiment's arrays as a table, and the cost of its training step.

It does not read the arrays' values.
"""

import dataclasses
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.model import Model
from solstice.compat.optimizer import Optimizer
from solstice.data.memory import as_arrays
from solstice.errors import InvalidTypeError
from solstice.experiment import Experiment
from solstice.step import Step
from solstice.tree.flat import Flat
from solstice.tree.names import elided, path_name
from solstice.tree.naming import leaves_by_path
from solstice.tree.overwritten import is_box, trained
from solstice.tree.pytree import PyTree
from solstice.tree.sizes import nbytes, size

_ROLES = {"params": "trainable", "frozen": "frozen", "state": "state"}
_PATH_WIDTH = 48
_NO_TERMINAL = (10_000, 0)  # a file or a notebook shows every column


def summary(experiment_or_model: PyTree, batch: PyTree = None) -> "Summary":
    """Return a table of all arrays: path, role, shape, dtype, size (in numbers) and bytes.

    Below a `compat.Model`, arrays are `trainable` (its `params`), `overwritten` by their gradient,
    `frozen` or `state`; those of a `compat.Optimizer` are one row. Others have no role. If
    `compat.by_path` made the optimizer, each parameter's group is its rule.

    Args:
        experiment_or_model: An experiment, a model, or any pytree; arrays may be
            `jax.ShapeDtypeStruct`s if no batch is given.
        batch: A batch for the training step (for a model, for a call in evaluation), or its
            `jax.ShapeDtypeStruct`s. The step is compiled for it, not run, and the table ends with
            XLA's analysis: floating-point operations, bytes read and written, memory.

    Raises:
        TypeError: It is neither an experiment nor a tree with arrays, or it does not take a batch.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=jnp.ones((1, 4)), key=0
    ... )
    >>> print(solstice.summary(exp))
    ClassificationExperiment
    <BLANKLINE>
    path              role       shape     dtype           size  bytes
    model/params/0/0  trainable  (4, 2)    float32            8   32 B
    model/params/0/1  trainable  (2,)      float32            2    8 B
    optimizer         optimizer  5 arrays  int32, float32    21   84 B
    ------------------------------------------------------------------
                      trainable  2 arrays                    10   40 B  32%
                      optimizer  5 arrays                    21   84 B  68%
    total                        7 arrays                    31  124 B
    >>> solstice.summary(exp).parameters
    10
    """
    rows = tuple(_rows(experiment_or_model))
    if not rows and not isinstance(experiment_or_model, Experiment):
        raise InvalidTypeError(
            f"experiment_or_model of summary() is expected to be an experiment, a model or another "
            f"pytree of arrays; it is {describe(experiment_or_model)}. Adapt a network with "
            f"compat.as_model first."
        )
    cost = None if batch is None else _cost(experiment_or_model, as_arrays(batch))
    return Summary(type(experiment_or_model).__name__, rows, cost)


@dataclasses.dataclass(frozen=True)
class Row:
    """One array, or all arrays of one optimizer.

    Attributes:
        path: Its full path.
        role: "trainable", "frozen", "state", "optimizer" or "".
        shape: As text; for several arrays, their number.
        dtype: As text.
        size: How many numbers.
        nbytes: How many bytes.
        arrays: How many arrays.
        group: The rule of `compat.by_path` for it; "" without such rules.
    """

    path: str
    role: str
    shape: str
    dtype: str
    size: int
    nbytes: int
    arrays: int = 1
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Cost:
    """XLA's analysis of one compiled call; None for values that it does not give.

    Attributes:
        call: What was compiled, and for which batch.
        flops: Floating-point operations.
        bytes_accessed: Bytes read and written.
        argument_bytes: Memory of the arguments.
        output_bytes: Memory of the outputs, except those that reuse an argument's.
        temporary_bytes: Temporary memory.
        looped: Whether it has a loop, whose body XLA counts only once.
    """

    call: str
    flops: float | None
    bytes_accessed: float | None
    argument_bytes: int | None
    output_bytes: int | None
    temporary_bytes: int | None
    looped: bool

    def __str__(self) -> str:
        unknown = "unknown"
        parts = (self.argument_bytes, self.output_bytes, self.temporary_bytes)
        memory = [part for part in parts if part is not None]
        lines = [
            f"{self.call}, by XLA's own analysis:",
            f"  compute  {unknown if self.flops is None else _scaled(self.flops, 'FLOP')}",
            f"  traffic  {unknown if self.bytes_accessed is None else _bytes(self.bytes_accessed)}"
            f" read or written",
        ]
        if len(memory) < len(parts):
            lines.append(f"  memory   {unknown}")
        else:
            arguments, outputs, temporaries = map(_bytes, memory)
            lines.append(
                f"  memory   {_bytes(sum(memory))} = {arguments} arguments + {outputs} outputs + "
                f"{temporaries} temporaries"
            )
        if self.looped:
            lines.append("  (the body of a loop counts once, no matter how often it runs)")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, repr=False)
class Summary:
    """The result of `summary`; `str()` gives the table, with fewer columns in a narrow terminal.

    Attributes:
        title: The class of the summarised object.
        rows: The arrays.
        cost: XLA's analysis of the step, if a batch was given.
    """

    title: str
    rows: tuple[Row, ...]
    cost: Cost | None

    @property
    def parameters(self) -> int:
        """How many numbers are trained; all of them if no array has a role."""
        known = [row for row in self.rows if row.role]
        return sum(row.size for row in known or self.rows if row.role in ("", "trainable"))

    @property
    def nbytes(self) -> int:
        """The size of all arrays in bytes."""
        return sum(row.nbytes for row in self.rows)

    def __str__(self) -> str:
        paths = elided([row.path for row in self.rows], _PATH_WIDTH)
        lines = [
            [path, row.role, row.group, row.shape, row.dtype, *_amounts([row]), ""]
            for path, row in zip(paths, self.rows, strict=True)
        ]
        total = ["total", "", "", _arrays(self.rows), "", *_amounts(self.rows), ""]
        parts = []
        for role in dict.fromkeys(row.role for row in self.rows if row.role):
            rows = [row for row in self.rows if row.role == role]
            share = f"{sum(row.nbytes for row in rows) / max(self.nbytes, 1):.0%}"
            parts.append(["", role, "", _arrays(rows), "", *_amounts(rows), share])
        head = ["path", "role", "group", "shape", "dtype", "size", "bytes", ""]
        table = [head, *lines, *parts, total]
        kept = [i for i in range(len(head)) if i in (0, 7) or any(line[i] for line in table[1:])]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        # A narrow terminal shows fewer columns; `rows` has them all.
        columns = shutil.get_terminal_size(_NO_TERMINAL).columns
        for name in ("dtype", "shape", "bytes"):
            if sum(widths[i] + 2 for i in kept) - 2 > columns:
                kept = [i for i in kept if head[i] != name]

        def text(line: list[str]) -> str:
            cells = [line[i].rjust(widths[i]) if i >= 5 else line[i].ljust(widths[i]) for i in kept]
            return "  ".join(cells).rstrip()

        rule = "-" * max(len(text(line)) for line in table[: 1 + len(lines)])
        body = [text(head), *map(text, lines), rule, *map(text, parts), text(total)]
        cost = [] if self.cost is None else ["", str(self.cost)]
        return "\n".join([self.title, "", *body, *cost])

    __repr__ = __str__


def _rows(tree: PyTree) -> list[Row]:
    rows: list[tuple[jax.tree_util.KeyPath, Row]] = []
    parts = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, Model | Optimizer)
    )
    grouped = [part.groups() for _, part in parts if isinstance(part, Optimizer)]
    for path, part in parts:
        if isinstance(part, Optimizer):
            rows += [(path, row) for row in _optimizer_row(path_name(path), part)]
            continue
        groups = _groups_of(part, grouped) if isinstance(part, Model) else {}
        for inner, node in jax.tree_util.tree_leaves_with_path(part, is_leaf=is_box):
            leaf = node.value if is_box(node) else node
            if _is_sized(leaf):
                role = _ROLES.get(path_name(inner[:1]), "") if isinstance(part, Model) else ""
                role = "overwritten" if is_box(node) else role
                whole = (*path, *inner)
                row = _row(path_name(whole), role, leaf)
                group = groups.get(path_name(inner[1:]), "") if role == "trainable" else ""
                rows.append((whole, dataclasses.replace(row, group=group)))
    count = Counter(row.path for _, row in rows)
    # "a/b" and {"a": {"b": ...}} clash; jax's notation of a path distinguishes them.
    return [
        row if count[row.path] == 1 else dataclasses.replace(row, path=jax.tree_util.keystr(path))
        for path, row in rows
    ]


def _groups_of(model: Model, grouped: list[dict[str, str]]) -> dict[str, str]:
    """Return the groups of the optimizer that updates exactly the parameters of a model."""
    names = set(leaves_by_path(trained(model.params)))
    return next((groups for groups in grouped if set(groups) == names), {})


def _row(path: str, role: str, leaf: Any) -> Row:
    return Row(path, role, str(tuple(leaf.shape)), leaf.dtype.name, size(leaf), nbytes(leaf))


def _optimizer_row(path: str, optimizer: Optimizer) -> list[Row]:
    leaves = [leaf for leaf in jax.tree.leaves(optimizer) if _is_sized(leaf)]
    if not leaves:
        return []
    dtypes = ", ".join(dict.fromkeys(leaf.dtype.name for leaf in leaves))
    shape = _plural(len(leaves))
    return [Row(path, "optimizer", shape, dtypes, size(leaves), nbytes(leaves), len(leaves))]


def _is_sized(leaf: object) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _cost(tree: PyTree, batch: PyTree) -> Cost:
    arguments.check_leaves(batch, "batch")
    donated: tuple[int, ...] = ()
    if isinstance(tree, Experiment):
        call: Callable[..., PyTree] = lambda exp, batch: exp.train_step(batch)  # noqa: E731
        # The trainer donates the buffers of a step that it runs fused.
        donated = (0,) if isinstance(type(tree).train_step, Step) else ()
        name = "One training step"
    elif isinstance(tree, Model):
        call = lambda model, batch: model(*batch)[0]  # noqa: E731
        batch = batch if type(batch) is tuple else (batch,)
        name = "One call in evaluation"
    else:
        raise InvalidTypeError(
            f"summary() takes a batch for an experiment or a model; {type(tree).__name__} is "
            f"neither. Leave the batch out."
        )
    run = jax.jit(lambda flat, batch: Flat.of(call(flat.whole(), batch)), donate_argnums=donated)
    traced = run.trace(Flat.of(tree), batch)
    compiled = traced.lower().compile()
    counts = compiled.cost_analysis() or {}
    memory: Any = compiled.memory_analysis()
    inputs = [describe(leaf) for leaf in jax.tree.leaves(batch)]
    inputs = ", ".join(inputs if len(inputs) <= 4 else [*inputs[:3], "..."])
    return Cost(
        call=f"{name} of ({inputs}) on {jax.default_backend()}",
        flops=counts.get("flops"),
        bytes_accessed=counts.get("bytes accessed"),
        argument_bytes=memory and memory.argument_size_in_bytes,
        output_bytes=memory and memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary_bytes=memory and memory.temp_size_in_bytes,
        looped=re.search(r"\b(scan|while)\[", str(traced.jaxpr)) is not None,
    )


def _arrays(rows: Sequence[Row]) -> str:
    return _plural(sum(row.arrays for row in rows))


def _plural(count: int) -> str:
    return f"{count} array{'s' * (count != 1)}"


def _amounts(rows: Sequence[Row]) -> tuple[str, str]:
    return f"{sum(row.size for row in rows):,}", _bytes(sum(row.nbytes for row in rows))


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def _scaled(number: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.0f} {unit}" if not prefix else f"{number:.2f} {prefix}{unit}"
        number /= 1000
    return f"{number:,.2f} P{unit}"
