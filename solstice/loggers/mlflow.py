"""MLflow: curves, images and texts on a tracking server, or in its store on disk.

It does not change MLflow's active run or settings.
"""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solstice import arguments
from solstice.loggers.base import Sink, check_hyperparameters, name_below, require
from solstice.loggers.values import Image, as_text, is_number

# The limits of one MLflow call.
_BATCH = 1000
_PARAMS = 100


class MLflow(Sink):
    """Logs to a run of MLflow; a resumed run continues it, and loses or repeats nothing.

    A number is a metric called `mode/name` at the training steps completed; an `Image` and a text
    (a list of texts is one) are artifacts, `mode/name/step.png` and `.txt`. Arrays are left out.
    Characters that MLflow does not allow in names become `_`.

    Args:
        experiment: The name of MLflow's experiment, created if it is missing.
        run_name: The run's name; None lets MLflow choose.
        tracking_uri: The server, or a store on disk (for `sqlite:///`, install the whole package
            `mlflow`); None uses MLflow's current setting.
        hyperparameters: The run's params.

    Raises:
        ImportError: mlflow is not installed.

    >>> import solstice
    >>> sink = solstice.loggers.MLflow("digits", tracking_uri="http://localhost:5000")
    """

    def __init__(
        self,
        experiment: str = "Default",
        *,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        arguments.text(experiment, "experiment")
        for name, value in {"run_name": run_name, "tracking_uri": tracking_uri}.items():
            if value is not None:
                arguments.text(value, name)
        super().__init__(f"MLflow({experiment!r})", timeout=30.0)
        require("mlflow", "MLflow", "mlflow")
        self._experiment = experiment
        self._run_name = run_name
        self._uri = _absolute(tracking_uri)
        self._hyperparameters = check_hyperparameters(hyperparameters)
        self._client: Any = None
        self._run = ""
        # For each mode, how many records the run has from us, and how many coming ones it has
        # already.
        self._records: Counter[str] = Counter()
        self._known: Counter[str] = Counter()

    def on_open(self) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(tracking_uri=self._uri)
        if self._run:
            self._client.update_run(self._run, status="RUNNING")
            self._known = self._found() - self._records
            return
        found = self._client.get_experiment_by_name(self._experiment)
        number = found.experiment_id if found else self._client.create_experiment(self._experiment)
        self._run = self._client.create_run(number, run_name=self._run_name).info.run_id
        params = [Param(_name(k), str(v)) for k, v in self._hyperparameters.items()]
        for i in range(0, len(params), _PARAMS):
            self._client.log_batch(self._run, params=params[i : i + _PARAMS])

    def on_write(self, record: dict[str, Any]) -> None:
        mode = _name(str(record["mode"]))
        if self._known[mode] > 0:
            self._known[mode] -= 1
        else:
            self._log(mode, record)
        self._records[mode] += 1

    def on_close(self) -> None:
        self._client.set_terminated(self._run)

    def on_get_state(self) -> dict[str, Any]:
        modes = sorted(self._records)
        return {"run": self._run, "modes": modes, "records": [self._records[m] for m in modes]}

    def on_set_state(self, state: dict[str, Any]) -> None:
        self._run = str(state["run"])
        pairs = zip(state["modes"], state["records"], strict=True)
        self._records = Counter({str(mode): int(count) for mode, count in pairs})

    def _log(self, mode: str, record: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        about, step = ("mode", "step", "time", "epoch"), int(record["step"])
        metrics = []
        # The epoch is written last and completes the record.
        values = {k: v for k, v in record.items() if k not in about}
        for name, value in {**values, "epoch": record.get("epoch", -1)}.items():
            key = _name(f"{mode}/{name}")
            if is_number(value):
                metrics.append(Metric(key, float(value), int(record["time"] * 1000), step))
            elif (text := as_text(value)) is not None:
                self._artifact(key, f"{step}.txt", text.encode(errors="surrogatepass"))
            elif isinstance(value, Image):
                self._artifact(key, f"{step}.png", value.png())
        for i in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run, metrics=metrics[i : i + _BATCH])

    def _found(self) -> Counter[str]:
        """Count the complete records of each mode that the run has."""
        keys = [k for k in self._client.get_run(self._run).data.metrics if k.endswith("/epoch")]
        return Counter(
            {
                key.removesuffix("/epoch"): len(self._client.get_metric_history(self._run, key))
                for key in keys
            }
        )

    def _artifact(self, directory: str, name: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as made:
            path = Path(made, name)
            path.write_bytes(content)
            self._client.log_artifact(self._run, str(path), directory)


def _absolute(uri: str | None) -> str:
    """Return a store's place, independent of the working directory."""
    import mlflow
    from mlflow.utils.uri import resolve_uri_if_local

    uri = mlflow.get_tracking_uri() if uri is None else uri
    scheme = "sqlite:///"
    if uri.startswith(scheme) and not uri.startswith((f"{scheme}/", f"{scheme}:")):
        return scheme + os.path.abspath(uri.removeprefix(scheme))
    return str(resolve_uri_if_local(uri))


def _name(name: str) -> str:
    return name_below(re.sub(r"[^\w.\- /]", "_", name))
