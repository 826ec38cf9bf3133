"""Which values of a metric are better: the table of standard names, and metrics that know more."""

import clu.metrics
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metrics_table import TABLE

import solstice
from solstice.metrics import EnsembleMetrics, Mean, MetricsDict, direction, named_values
from solstice.metrics.directions import better


@pytest.mark.parametrize(
    ("expected", "names"),
    [
        (
            "max",
            "accuracy val_accuracy balanced_accuracy top_5_accuracy top5 acc@1 f1 f1_macro "
            "f1_weighted f1_class_3 F1Score MulticlassF1Score macro_avg_f1 precision ppv_macro "
            "recall@10 tpr_class_0 true_negative_rate negative_predictive_value roc_auc AUROC "
            "roc_auc_score pr_auc average_precision mAP mAP50 mIoU iou_class_2 dice dice_score r2 "
            "R2Score r2_output_1 explained_variance pearson ndcg@10 MRR BLEU rouge1 rougeL psnr "
            "SSIM log_likelihood elbo episode_return reward_per_episode accuracy/mean "
            "images/accuracy accuracy_member_3 negative/accuracy neg_mean_squared_error "
            "val_neg_log_loss",
        ),
        (
            "min",
            "loss average_loss val_loss valLoss total_loss loss/total train/loss loss_per_token "
            "inner/average_loss loss_member_0 dice_loss mse MSE mse_output_0 rmse mae mean_error "
            "MeanSquaredError error_rate token_error_rate perplexity cross_entropy "
            "negative_log_likelihood nll kl_divergence bits_per_dim ece brier_score wer cer fpr "
            "false_positive_rate edit_distance FID lpips num_errors top_1_error",
        ),
        (
            None,
            "mean count min max std sum last values score prevalence_class_0 accuracy_std "
            "std_accuracy loss_std loss_scale accuracy_gap learning_rate gradient_norm epochs "
            "negative_accuracy neg_loss 1-ssim inverse_accuracy divergence mine total 3 f1_gap "
            "losses_seen entropy",
        ),
    ],
)
def test_standard_names_are_known_as_reports_write_them(expected, names):
    found = {name: direction(name) for name in names.split()}
    assert found == dict.fromkeys(names.split(), expected)
    assert direction("") is None and direction("/") is None


# What the ready-made metrics report that is better neither smaller nor larger.
NEITHER = {"min", "max", "sum", "last", "mean", "std", "spread", "least", "peak", "average", "size"}


@pytest.mark.parametrize("row", sorted(TABLE))
def test_every_number_of_the_ready_made_metrics_has_its_direction(row):
    batch = {name: jnp.asarray(value) for name, value in TABLE[row].batch.items()}
    metrics = TABLE[row].make(batch)
    for name, value in named_values(metrics).items():
        if np.ndim(value):
            continue
        last = name.rsplit("/", 1)[-1]
        if last.split("_class_")[0] == "prevalence" or last in NEITHER:
            assert better(metrics, name) is None, name
        else:
            # The last is reported under another name than its own, median_error.
            smaller = last in ("average_loss", "brier_score", "perplexity", "rest")
            smaller = smaller or last == "median_error"
            smaller = smaller or last.startswith(("mse", "mae", "ece"))
            assert better(metrics, name) == ("min" if smaller else "max"), name


class Custom(solstice.Metrics):
    """Computes some values and knows about one."""

    values: dict
    knows: tuple = eqx.field(static=True, default=("", None))

    def merge(self, other):
        return self

    def compute(self):
        return self.values

    def better(self, name):
        return self.knows[1] if name == self.knows[0] else super().better(name)


def test_metrics_dict_asks_the_metric_that_reports_the_value():
    one, two = jnp.ones(()), jnp.ones(())
    metrics = MetricsDict(
        Custom({"count": one}),
        Custom({"mine": one, "accuracy": two}, ("mine", "min")),
        part=Custom({"gain": one, "loss": two}, ("gain", "max")),
        single=Custom({"accuracy": one}, ("accuracy", "min")),  # reported as `single`
        loss=Mean(1.0),
        inner=MetricsDict(error=Mean(1.0), own=Custom({"gain": one, "x": two}, ("gain", "max"))),
    )
    assert {name: metrics.better(name) for name in metrics.compute()} == {
        "count": None,
        "mine": "min",
        "accuracy": "max",
        "part/gain": "max",
        "part/loss": "min",
        "single": "min",
        "loss": "min",
        "inner/error": "min",
        "inner/own/gain": "max",
        "inner/own/x": None,
    }


class Always(Custom):
    def better(self, name):  # whatever it is asked of
        return "min"


def test_a_metric_without_a_name_is_asked_of_its_own_values_only():
    metrics = MetricsDict(Always({"mine": jnp.ones(())}), Custom({"accuracy": jnp.ones(())}))
    assert metrics.better("accuracy") == "max" and metrics.better("mine") == "min"


def test_ensemble_metrics_ask_the_members():
    values = {"mine": jnp.arange(3.0), "loss": jnp.arange(3.0)}
    metrics = EnsembleMetrics(Custom(values, ("mine", "max")))
    known = {name: metrics.better(name) for name in metrics.compute()}
    assert known["mine"] == known["mine_member_2"] == "max" and known["mine_std"] is None
    assert known["loss"] == known["loss_member_0"] == "min" and known["loss_std"] is None
    assert jax.jit(lambda m: jnp.float32(m.better("mine") == "max"))(metrics) == 1


def test_metrics_of_other_libraries_go_by_their_names():
    clus = clu.metrics.Average.from_model_output(jnp.ones(2))
    assert better(clus, "loss") == "min" and better(clus, "mine") is None

    class Median:
        def update(self, values): ...
        def compute(self):
            return {"mine": 1.0}

        def better(self, name):
            return {"mine": "max"}.get(name)

    metrics = solstice.compat.as_metrics(Median())
    assert better(metrics, "mine") == "max"


def test_an_answer_that_is_none_is_named():
    metrics = Custom({"mine": jnp.ones(())}, ("mine", "larger"))
    with pytest.raises(
        ValueError, match=r"Custom\.better\('mine'\) .* it returned the str 'larger'"
    ):
        better(metrics, "mine")
