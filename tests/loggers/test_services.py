"""MLflow's and Weights & Biases' own, on disk and offline."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from sink_table import offline_runs

from solstice import LoggingCallback
from solstice.loggers import Image, MLflow, Text, WandB

VALUES = {
    "loss": jnp.asarray(0.5),
    "nan": float("nan"),
    "f1@5": 1,
    "weights": jnp.asarray([0.0, 1.0, jnp.nan]),
    "picture": Image(np.zeros((4, 6))),
    "sample": Text("the cat"),
}


def record(step, mode="train", **metrics):
    return {"mode": mode, "epoch": 0, "step": step, "time": 1e9 + step, **metrics}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Where MLflow keeps its files, with its client."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    uri = (tmp_path / "mlruns").as_uri()
    return uri, MlflowClient(tracking_uri=uri)


def mlflow_run(client, experiment="digits"):
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    return run


def history(client, run, name):
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]


def test_mlflow_gets_metrics_artifacts_and_params(store, tmp_path):
    uri, client = store
    params = {"rate": 3e-4} | {f"p{i}": i for i in range(150)}
    sink = MLflow("digits", run_name="first", tracking_uri=uri, hyperparameters=params)
    sink.write(record(7, **VALUES))
    sink.write(record(9, "val", **{f"m{i}": i for i in range(1200)}))
    sink.close()
    run = mlflow_run(client)
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert run.data.params == {name: str(value) for name, value in params.items()}
    names = {"train/loss", "train/nan", "train/f1_5", "train/epoch", "val/epoch"}
    assert set(run.data.metrics) == names | {f"val/m{i}" for i in range(1200)}
    (loss,) = client.get_metric_history(run.info.run_id, "train/loss")
    assert (loss.step, loss.value, loss.timestamp) == (7, 0.5, (10**9 + 7) * 1000)
    assert np.isnan(run.data.metrics["train/nan"])
    for path in ("train/picture/7.png", "train/sample/7.txt"):
        found = client.download_artifacts(run.info.run_id, path, str(tmp_path))
        content = Path(found).read_bytes()
        assert content == (b"the cat" if path.endswith("txt") else VALUES["picture"].png())


def test_mlflow_goes_on_in_a_later_run_of_the_same_sink(store, train):
    uri, client = store
    sink = MLflow(tracking_uri=uri)
    for _ in range(2):
        train(1, [1, 2], [5], callbacks=[LoggingCallback(1, sink)])
    run = mlflow_run(client, "Default")
    assert history(client, run, "train/mean") == [(1, 1.0), (2, 2.0)] * 2
    assert run.info.status == "FINISHED"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path


def test_wandb_gets_curves_histograms_pictures_and_texts(offline):
    sink = WandB("digits", hyperparameters={"rate": 3e-4}, dir=str(offline))
    sink.write(record(7, **VALUES))
    sink.write(record(7, "val", loss=0.25))
    sink.close()
    ((run, logged),) = offline_runs(offline)
    assert run["project"] == "digits" and run["config"]["rate"] == 3e-4
    first, second = logged
    assert second == {"epoch": 0, "step": 7, "time": 1e9 + 7, "val/loss": 0.25}
    assert (first["step"], first["train/loss"], first["train/sample"]) == (7, 0.5, "the cat")
    assert np.isnan(float(first["train/nan"]))
    assert first["train/weights/_type"] == "histogram" and sum(first["train/weights/values"]) == 2
    assert (first["train/picture/width"], first["train/picture/height"]) == (6, 4)


def test_wandb_resumes_the_run_of_the_checkpoint(offline, train):
    sink = WandB("digits", dir=str(offline))
    train(1, [1, 2], callbacks=[LoggingCallback(1, sink)])
    state = json.loads(json.dumps(sink.get_state()))
    resumed = WandB("digits", dir=str(offline))
    resumed.set_state(state)
    resumed.write(record(3, mean=3.0))
    resumed.close()
    (first, logged), (second, more) = offline_runs(offline)
    assert first["id"] == second["id"] == state["id"]
    assert [(row["step"], row["train/mean"]) for row in logged + more] == [(1, 1), (2, 2), (3, 3)]


def test_options_that_wandb_does_not_take_are_refused():
    with pytest.raises(
        TypeError, match=r"wandb\.init; it does not take 'projet'\. It takes: .*project"
    ):
        WandB(projet="digits")
