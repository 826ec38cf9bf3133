"""Weights & Biases: curves, histograms, images and texts on its site, or offline in a directory.

A run of W&B only grows, so records between a checkpoint and a crash stay in it, and the resumed run
logs them again.
"""

import inspect
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from solstice import arguments
from solstice.errors import InvalidTypeError
from solstice.loggers.base import Sink, check_hyperparameters, require
from solstice.loggers.values import Image, as_text, finite, whole

# When this process last opened each run, by its id.
_STARTED: dict[Any, float] = {}


class WandB(Sink):
    """Logs to a run of Weights & Biases, which a resumed run continues.

    A metric is called `mode/name`, with `step` as its x axis: training steps completed. An array is
    the histogram of its finite values, an `Image` an image and a list of texts one text; anything
    else is passed on unchanged. Records between a checkpoint and a crash are in the run twice,
    since W&B cannot delete them. Offline, a resumed run is a separate directory, which `wandb sync`
    joins to the first.

    Args:
        project: The name of the project; None is W&B's default.
        hyperparameters: The run's config.
        **options: Anything else that `wandb.init` takes, such as `name`, `mode` or `dir` (where its
            files go; by default `WANDB_DIR`, or the current directory); with
            `reinit="return_previous"` it logs to the active run.

    Raises:
        ImportError: wandb is not installed.
        TypeError: `wandb.init` has no such option.

    >>> import solstice
    >>> sink = solstice.loggers.WandB("digits", hyperparameters={"rate": 3e-4}, mode="offline")
    """

    def __init__(
        self,
        project: str | None = None,
        *,
        hyperparameters: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if project is not None:
            arguments.text(project, "project")
        super().__init__(f"WandB({project!r})", timeout=30.0)
        require("wandb", "WandB", "wandb")
        _check_options(options)
        config = check_hyperparameters(hyperparameters)
        given = {"project": project, "config": config}
        self._options = {"reinit": "create_new", **given, **options}
        if "dir" in options or "settings" not in options:
            where = options.get("dir") or os.environ.get("WANDB_DIR") or "."
            self._options["dir"] = os.path.abspath(where)
        self._run: Any = None

    def on_open(self) -> None:
        import wandb

        # Offline, a run's directory is named by its id and the second: another one in the same
        # second would overwrite it.
        after = _STARTED.get(self._options.get("id"), 0.0) + 1
        time.sleep(max(0.0, min(1.0, after - time.time())))
        self._run = wandb.init(**self._options)
        _STARTED[self._run.id] = time.time()
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        # From now on it is this run, also when it is opened again.
        self._options |= {"id": self._run.id, "resume": "allow"}

    def on_write(self, record: dict[str, Any]) -> None:
        about = {name: record[name] for name in ("epoch", "step", "time") if name in record}
        metrics = {
            whole(f"{record['mode']}/{name}"): _shown(value)
            for name, value in record.items()
            if name not in ("mode", *about)
        }
        self._run.log({**about, **metrics})

    def on_close(self) -> None:
        self._run.finish()

    def on_get_state(self) -> dict[str, str]:
        return {"id": self._run.id}

    def on_set_state(self, state: dict[str, Any]) -> None:
        self._options |= {"id": str(state["id"]), "resume": "allow"}


def _check_options(options: Mapping[str, object]) -> None:
    import wandb

    taken = inspect.signature(wandb.init).parameters
    unknown = [name for name in options if name not in taken]
    if unknown:
        raise InvalidTypeError(
            f"options are expected to be keywords of wandb.init; it does not take "
            f"{', '.join(map(repr, unknown))}. It takes: {', '.join(taken)}."
        )


def _shown(value: object) -> Any:
    import wandb

    if isinstance(value, Image):
        return wandb.Image(value.pixels())
    if isinstance(value, np.ndarray):
        return wandb.Histogram(np_histogram=np.histogram(finite(value), bins=64))
    text = as_text(value)
    return value if text is None else text
