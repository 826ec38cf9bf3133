"""Hooks: calls a run's callbacks in turn, and keeps their states for a resume."""

import logging
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from solstice.arguments import describe
from solstice.callbacks.base import Callback
from solstice.errors import EarlyStoppingException, InvalidTypeError, InvalidValueError
from solstice.experiment import Experiment
from solstice.loggers.base import Sink
from solstice.loggers.outlets import sinks_of
from solstice.signatures import overrides
from solstice.training.recompile import form_change
from solstice.tree.encoding import kept
from solstice.tree.flat import Flat
from solstice.tree.tensors import untrusted

_logger = logging.getLogger("solstice")


class Hooks:
    """The callbacks of a run.

    Attributes:
        callbacks: All of them, in order.
        looks_at_batches: Whether a callback with a step hook reads its batch.

    Raises:
        TypeError: One of them is not a callback.

    >>> class Greeting(Callback):
    ...     def on_run_start(self, exp):
    ...         print("Hello.")
    >>> hooks = Hooks([Greeting()])
    >>> hooks.fire("on_run_start", None)
    Hello.
    >>> hooks.any("on_step_end")
    False
    """

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise InvalidTypeError(
                    f"callbacks are expected to be instances of solstice.Callback; one is "
                    f"{describe(callback)}."
                )
            _tell_unknown_hooks(callback)
        # Hooks that no callback defines cost a step nothing, nor does an experiment that no hook
        # reads.
        self._called = {
            name: [c for c in self.callbacks if overrides(c, Callback, name)]
            for name in vars(Callback)
            if name.startswith("on_") or name in ("attach", "check_names", "after_epoch", "revise")
        }
        self._looking = {
            name: any(c.needs_experiment for c in called) for name, called in self._called.items()
        }

        self.looks_at_batches = any(
            callback.needs_batch
            for hook in ("on_step_start", "on_step_end")
            for callback in self._called[hook]
        )

    def any(self, hook: str) -> bool:
        """Return whether a callback has the hook."""
        return bool(self._called[hook])

    def looks(self, hook: str) -> bool:
        """Return whether a callback with the hook reads the experiment."""
        return self._looking[hook]

    def fire(self, hook: str, *arguments: Any) -> None:
        """Call the hook of every callback, even after one has asked to stop.

        Raises:
            EarlyStoppingException: One has asked to stop.
            Exception: Another error of a callback, raised at once with a note that names the
                callback.
        """
        stop: EarlyStoppingException | None = None
        for callback in self._called[hook]:
            try:
                getattr(callback, hook)(*arguments)
            except EarlyStoppingException as raised:
                stop = stop or raised
            except Exception as error:
                error.add_note(f"Raised by {type(callback).__name__}.{hook}.")
                raise
        if stop is not None:
            raise stop

    def revised(self, exp: Any) -> tuple[Any, EarlyStoppingException | None]:
        """Return the experiment after each callback's `revise`, and whether one asks to stop.

        Raises:
            TypeError: One did not return an experiment.
            ValueError: One returned an experiment of another structure, shape or dtype.
        """
        stop: EarlyStoppingException | None = None
        for callback in self._called["revise"]:
            try:
                new = callback.revise(exp)
                if new is not exp:
                    _check_revised(exp, new)
                exp = new
            except EarlyStoppingException as raised:
                stop = stop or raised
            except Exception as error:
                error.add_note(f"Raised by {type(callback).__name__}.revise.")
                raise
        return exp, stop

    def end(self, exp: Any, error: BaseException | None) -> Exception | None:
        """Call `on_run_end` of every callback, even if others fail.

        Returns:
            The first error raised; None if the run itself had failed, whose error gets the others
            as notes.
        """
        failures: list[Exception] = []
        for callback in self._called["on_run_end"]:
            try:
                callback.on_run_end(exp, error)
            except EarlyStoppingException:
                continue  # the run has ended already
            except Exception as failure:  # noqa: BLE001 - raised once all were called
                failure.add_note(f"Raised by {type(callback).__name__}.on_run_end.")
                failures.append(failure)
        if not failures or error is None:
            return failures[0] if failures else None
        error.add_note(f"After that, {type(failures[0]).__name__}: {failures[0]}")
        for failure in failures:
            _logger.error("A callback failed at the end of a failed run.", exc_info=failure)
        return None

    def sinks(self) -> list[str]:
        """Return where all sinks write, to check that they are the same."""
        sinks = [sink for callback in self.callbacks for sink in sinks_of(callback)]
        return [sink.place if isinstance(sink, Sink) else type(sink).__name__ for sink in sinks]

    def get_states(self) -> list[list[Any]]:
        """Return the name and the state of every callback with a state.

        Raises:
            TypeError: A state holds something that cannot be saved.
        """
        states = []
        for callback in self.callbacks:
            name, state = type(callback).__name__, callback.get_state()
            if state is not None:
                states.append([name, kept(state, f"{name}.get_state()")])
        return states

    def set_states(self, states: list[list[Any]]) -> None:
        """Restore what `get_states` returned, each state to the next callback of that name."""
        with untrusted("What the checkpoint says about callbacks", is_file=False):
            waiting = [[str(name), state] for name, state in states]
        for callback in self.callbacks:
            name = type(callback).__name__
            saved = next((state for state in waiting if state[0] == name), None)
            if saved is not None:
                waiting.remove(saved)
                # A checkpoint may be damaged or of another version, so its contents are not
                # trusted.
                with untrusted(f"The state of {name} in the checkpoint", is_file=False):
                    callback.set_state(saved[1])
        if waiting:
            _logger.warning(
                "The checkpoint has the state of callbacks that this run does not have: %s.",
                ", ".join(name for name, _ in waiting),
            )


def _check_revised(exp: Any, new: Any) -> None:
    if not isinstance(new, Experiment):
        raise InvalidTypeError(
            f"revise(exp) is expected to return the experiment to continue with, exp itself if "
            f"nothing changes; it returned {describe(new)}."
        )
    if change := form_change(Flat.of(exp), Flat.of(new)):
        raise InvalidValueError(
            f"revise(exp) is expected to return an experiment of the same structure, shapes and "
            f"dtypes, which the compiled steps need; {change}. Change only the values of "
            f"arrays; for another structure, end this run and train the new experiment."
        )


def _tell_unknown_hooks(callback: Callback) -> None:
    """Warn of methods that look like misspelt hooks."""
    for name in dir(type(callback)):
        if name.startswith("on_") and not hasattr(Callback, name):
            meant = get_close_matches(name, _HOOKS, 1, cutoff=0.4)
            _logger.warning(
                "%s.%s is not a hook and is never called.%s The hooks are %s.",
                type(callback).__name__,
                name,
                f" Did you mean {meant[0]}?" if meant else "",
                ", ".join(_HOOKS),
            )


_HOOKS = [name for name in vars(Callback) if name.startswith("on_")]


def listed(callbacks: Any) -> list[Callback]:
    """Return the callbacks as a list; the run checks each of them."""
    if callbacks is None:
        return []
    if isinstance(callbacks, list | tuple | set | Iterator):
        return list(callbacks)
    raise InvalidTypeError(
        f"callbacks are expected to be a list of solstice.Callback; they are "
        f"{describe(callbacks)}. Put a single one into a list too: callbacks=[callback]."
    )
