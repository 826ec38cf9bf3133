"""StopOnNaN: ends a run that diverged, and names the step and the leaves.

It looks at the experiment and the outs of training steps, not at validation.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from solstice import arguments
from solstice.callbacks.base import Callback
from solstice.errors import NotFiniteError
from solstice.tree.names import few, path_name
from solstice.tree.pytree import PyTree


class StopOnNaN(Callback):
    """Raises a FloatingPointError once a number in the experiment or the outs is not finite.

    Every n training steps, a check runs on the device; its result is read at the next check, so
    nothing waits for the device. Before a checkpoint, the state to save is checked and waited for,
    so the newest checkpoint is always finite.

    Args:
        every_n_steps: How often to check. Each check is a compiled call; every 100 steps, the cost
            is negligible.

    Raises:
        ValueError: `every_n_steps` is not positive.

    >>> import solstice
    >>> callback = solstice.callbacks.StopOnNaN(every_n_steps=100)
    """

    needs_batch = False

    def __init__(self, every_n_steps: int = 1) -> None:
        self._every = arguments.count(every_n_steps, "every_n_steps")
        self._begin()

    def _begin(self) -> None:
        self._completed = 0
        # The last step: its number and its state. Then a check whose result is not read yet.
        self._latest: tuple[int, PyTree] | None = None
        self._asked: tuple[int, list[str], list[Array]] | None = None

    def on_run_start(self, exp: PyTree) -> None:
        self._begin()

    def on_step_end(
        self, outs: PyTree, exp: PyTree, global_step: int, mode: str, batch: PyTree
    ) -> None:
        if mode != "train":
            return
        before, self._completed = self._completed, global_step + 1
        self._latest = (global_step, {"experiment": exp, "outs": outs})
        if self._completed // self._every > before // self._every:
            self._read()
            self._ask()

    def on_epoch_end(self, exp: PyTree, epoch: int, mode: str) -> None:
        self._read()

    def get_state(self) -> dict[str, int]:
        self._read()
        self._ask()
        self._read()
        return {"completed": self._completed}

    def set_state(self, state: dict[str, int]) -> None:
        self._completed = int(state["completed"])

    def _ask(self) -> None:
        if self._latest is None:
            return
        step, tree = self._latest
        self._latest = None
        leaves = [
            (path_name(path), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if eqx.is_inexact_array(leaf)
        ]
        self._asked = (step, [name for name, _ in leaves], _finite([leaf for _, leaf in leaves]))

    def _read(self) -> None:
        if self._asked is None:
            return
        (step, names, finite), self._asked = self._asked, None
        bad = [name for name, good in zip(names, jax.device_get(finite), strict=True) if not good]
        if bad:
            raise NotFiniteError(
                f"After training step {step}, not all numbers are finite in "
                f"{few(bad)}. "
                f"Lower the learning rate, clip the gradients, or look at the batches before. "
                f"What this run has saved is finite.",
                step=step,
                leaves=tuple(bad),
            )


@jax.jit
def _finite(leaves: list[Array]) -> list[Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]
