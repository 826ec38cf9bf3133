"""Trains each network of `networks.py` in Solstice and in its own library's loop, and compares.

    python tests/zoo/run.py [--only NAME ...] [--write]

`--write` puts the table into docs/zoo.md, between its two comments. `nox -s zoo` installs what it
needs and runs it with `--write`.
"""

import argparse
import datetime
import platform
import re
import sys
import time
import traceback
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import loops
import numpy as np
from loops import Result
from networks import NETWORKS, NOT_INSTALLED, Network, Row

import solstice
from solstice import compat

STEPS = 5
PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
BEGIN, END = "<!-- python tests/zoo/run.py --write: begin -->", "<!-- end -->"
INIT, KEY = jax.random.key(1), jax.random.key(2)


class Fit(solstice.Experiment):
    """A network of any library, trained on a loss of its outputs and the targets."""

    model: compat.Model
    opt: compat.Optimizer
    key: jax.Array
    network: compat.Static = eqx.field(static=True)

    @solstice.jit
    def train_step(self, batch: Any) -> Any:
        key, one = jax.random.split(self.key)
        inputs, targets = batch
        network = self.network.value

        def loss(params: Any) -> Any:
            outputs, model = solstice.replace(self.model, params=params)(
                *inputs, key=None if network.keeps_streams else one, train=True
            )
            return network.loss(outputs, targets), model

        (value, model), grads = jax.value_and_grad(loss, has_aux=True)(self.model.params)
        params, opt = self.opt(grads, self.model.params)
        model = solstice.replace(model, params=params)
        return solstice.replace(self, model=model, opt=opt, key=key), value


class Losses(solstice.Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_step_end(self, outs: Any, exp: Any, global_step: int, mode: str, batch: Any) -> None:
        self.values.append(float(outs))


def arrays(library: str, model: Any) -> dict[str, np.ndarray]:
    """All arrays of a model under the names that the library's own loop has for them."""
    if library == "Keras":  # names begin with the variable's place among all
        values = compat.join_params(model) | model.state
        return loops.host([values[name] for name in sorted(values)])
    own = model.unwrap()
    if library == "NNX":
        from flax import nnx

        own = nnx.to_pure_dict(nnx.state(own))
    if library == "Haiku" and not isinstance(own, tuple):
        own = own, {}
    return loops.host(own)


def ours(library: str, network: Network) -> Result:
    """Train it as a user of Solstice would."""
    make = network.model or compat.as_model
    model = make(network.own, network.inputs, key=INIT)
    opt = compat.as_optimizer(network.optimizer() if network.optimizer else loops.TX)
    exp = Fit(model, opt.init(model.params), KEY, compat.Static(network))
    losses = Losses()
    batches = [(network.inputs, network.targets)] * STEPS
    exp = solstice.train(exp, 1, batches, callbacks=[losses], progress=False)
    outputs = jax.jit(lambda model, inputs: model(*inputs)[0])(exp.model, network.inputs)
    return Result(losses.values, arrays(library, exp.model), outputs)


def difference(a: Result, b: Result) -> float:
    """The largest difference between losses, arrays and outputs, in the scale of each array."""
    one, other = (
        {"losses": np.array(each.losses), **each.arrays, **loops.host({"outputs": each.outputs})}
        for each in (a, b)
    )
    if one.keys() != other.keys():
        raise AssertionError(f"they have other arrays: {sorted(one.keys() ^ other.keys())}")
    worst = 0.0
    for name, left in one.items():
        right = other[name]
        if left.dtype != right.dtype or left.shape != right.shape:
            raise AssertionError(f"{name}: {left.dtype}{left.shape}, {right.dtype}{right.shape}")
        if left.tobytes() == right.tobytes():
            continue
        wide = np.complex128 if np.iscomplexobj(left) else np.float64
        left, right = left.astype(wide), right.astype(wide)
        worst = max(worst, float(np.abs(left - right).max() / (np.abs(right).max() or 1)), 5e-324)
    return worst


def moved(network: Network, result: Result) -> bool:
    """Whether training changed anything."""
    return len(set(result.losses)) > 1 and bool(np.isfinite(result.losses).all())


def parity(row: Row) -> str:
    """Return what the table says of a row."""
    try:
        network = row.make()
    except ImportError as error:
        reason = re.sub(r" \(/.*\)$", "", str(error))  # where it lies on this machine
        return f"cannot be imported: {type(error).__name__}: {reason}"
    theirs = (network.loop or loops.OWN[row.library])(network, INIT, KEY, STEPS)
    mine = ours(row.library, network)
    if not moved(network, mine):
        raise AssertionError(f"it did not train: {mine.losses}")
    far = difference(mine, theirs)
    return "same bits" if far == 0 else f"differs by {far:.0e}"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def versioned(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def line(row: Row, said: str) -> str:
    packages = ", ".join(map(versioned, row.packages))
    how = row.how if said.startswith(("same", "differs")) else ""
    parts = (row.title, packages, row.library, said, how)
    return f"| {' | '.join(map(cell, parts))} |"


def table(lines: list[str]) -> str:
    libraries = "jax", "flax", "dm-haiku", "equinox", "keras", "optax"
    versions = ", ".join(map(versioned, libraries))
    where = f"Python {platform.python_version()}, CPU"
    head = "| network | package | library | parity | how to wrap it |"
    absent = [
        f"| {title} | {package} | {library} | not installed: {why} | |"
        for title, package, library, why in NOT_INSTALLED
    ]
    today = datetime.datetime.now(datetime.UTC).date()
    title = f"{today}, with {versions}; {where}."
    return "\n".join([title, "", head, "|---|---|---|---|---|", *lines, *absent])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="parts of the rows' names")
    parser.add_argument("--write", action="store_true", help="into docs/zoo.md")
    options = parser.parse_args()
    if options.only and options.write:
        parser.error("--write is for the whole table")
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module="solstice")
    lines, failed = [], 0
    for row in NETWORKS:
        if options.only and not any(one in row.name for one in options.only):
            continue
        start = time.perf_counter()
        try:
            said = parity(row)
        except Exception as error:
            traceback.print_exc()
            failed += 1
            said = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0]}"
        lines.append(line(row, said))
        print(f"{time.perf_counter() - start:5.1f} s  {lines[-1]}", flush=True)
        jax.clear_caches()
    if options.write and not failed:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n{table(lines)}\n{END}{after}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
