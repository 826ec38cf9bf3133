"""NoImprovement: ends a run once a metric stops improving, and can restore the best experiment."""

import logging

from solstice import arguments
from solstice.callbacks.plateau import Plateau
from solstice.errors import EarlyStoppingException
from solstice.metrics.directions import Direction
from solstice.sharding.arrays import local_tree
from solstice.tree.encoding import from_host, host_array, key_impl
from solstice.tree.flat import Flat, Structure
from solstice.tree.pytree import PyTree

_logger = logging.getLogger("solstice")


class NoImprovement(Plateau):
    """Ends the run once a metric has stopped improving; see `no_improvement`."""

    purpose = "Early stopping"

    def __init__(
        self,
        metric: str,
        *,
        mode: Direction | None,
        patience: int,
        min_delta: float,
        watch: str,
        restore_best: bool,
    ) -> None:
        self._restores = arguments.flag(restore_best, "restore_best")
        super().__init__(metric, mode=mode, patience=patience, min_delta=min_delta, watch=watch)

    def _begin(self) -> None:
        super()._begin()
        # The experiment of the best pass: its arrays and its structure; a resumed run uses its own
        # experiment's structure.
        self._arrays: list[PyTree] | None = None
        self._structure: Structure | None = None

    def improved(self, exp: PyTree) -> None:
        if self._restores:
            self._arrays = None  # so that memory never holds two
            kept = Flat.of(exp).copy()
            self._arrays, self._structure = kept.arrays, kept.structure

    def act(self, why: str) -> None:
        raise EarlyStoppingException(why)

    def revise(self, exp: PyTree) -> PyTree:
        """Return the experiment of the best pass at the run's end, if `restore_best`."""
        if not self._run_is_over() or self._arrays is None:
            return exp
        _logger.info("The experiment of the best %s is restored.", self._metric)
        if self._structure is None:  # the arrays come from a checkpoint
            flat = Flat.of(exp)
            pairs = zip(self._arrays, flat.arrays, strict=True)
            self._arrays = [from_host(host_array(a), like, key_impl(like)) for a, like in pairs]
            self._structure = flat.structure
        return Flat(self._arrays, self._structure).whole()

    def on_run_end(self, exp: PyTree, error: BaseException | None) -> None:
        self._arrays = None  # as large as the experiment

    def get_state(self) -> dict[str, PyTree]:
        state = super().get_state()
        if self._restores:
            state["arrays"] = self._arrays and local_tree(self._arrays)
        return state

    def set_state(self, state: dict[str, PyTree]) -> None:
        super().set_state(state)
        if self._restores:
            self._arrays, self._structure = state.get("arrays"), None
