"""Directions: whether larger or smaller values of a metric are better.

A metric can say it; for the usual names in the field, a table here does. Early stopping, best
checkpoints and ensembles use it.
"""

import functools
import re
from typing import Literal

from solstice.arguments import describe
from solstice.errors import InvalidValueError, UsageError
from solstice.tree.pytree import PyTree

Direction = Literal["min", "max"]

_LARGER = """
accuracy, acc, top, exact match, hits, hit rate, win rate, success rate, success,
f1, f2, fbeta, f beta, precision, ppv, npv, recall, sensitivity, specificity, tpr, tnr,
true positive rate, true negative rate, positive predictive value, negative predictive value,
auc, auroc, auprc, aupr, rocauc, prauc, ap, map, mcc, matthews, matthews corrcoef, kappa,
iou, miou, jaccard, dice, panoptic quality,
r2, r squared, explained variance, correlation, corrcoef, pearson, pearsonr, spearman, spearmanr,
kendall, kendalltau, concordance, c index, ndcg, dcg, mrr, reciprocal rank,
bleu, sacrebleu, rouge, rouge l, rouge lsum, meteor, chrf, cider, bertscore,
cosine similarity, structural similarity, psnr, ssim, msssim, snr, sisdr, pesq, stoi,
inception score, likelihood, loglikelihood, elbo, reward, rewards, return, returns,
silhouette, ari, nmi
"""

_SMALLER = """
loss, losses, error, errors, err, mistakes, cost, regret, deviance,
mse, rmse, mae, mape, smape, msle, rmsle, mase, wape, rmsd,
cross entropy, crossentropy, xent, ce, bce, nll, perplexity, ppl, hinge,
kl, kld, kl divergence, js divergence, bits per dim, bits per dimension, bits per byte,
bits per character, bits per token, bpd, bpb, bpc,
ece, mce, brier, wer, cer, ter, eer, error rate, miss rate,
fpr, fnr, fdr, false positive rate, false negative rate, false discovery rate,
edit distance, levenshtein, hamming, hamming distance, chamfer, chamfer distance, hausdorff,
hausdorff distance, wasserstein, wasserstein distance, frechet distance, cosine distance,
fid, kid, fvd, lpips, mmd
"""

# What may follow a name: how it was averaged, or of which part it is.
_QUALIFIERS = {
    *("macro", "micro", "weighted", "binary", "samples", "average", "avg", "mean", "median"),
    *("total", "score", "class", "output", "member", "task", "head", "at", "k", "/"),
}
# After one of these words a name is ambiguous: an accuracy of the negatives, or a negated one?
_UNSURE = {"neg", "negative", "minus", "inverse", "std", "stddev", "var", "variance"}
# But it is reversed in a negative log-likelihood, and in scikit-learn's neg_mean_squared_error.
_TURNED_ROUND = re.compile(
    r"\bneg(ative)? (log|likelihood|loglikelihood|elbo|mean|median|root|brier)\b"
)


def direction(name: str) -> Direction | None:
    """Return whether the standard metric of a name is better when smaller or larger.

    Names are understood as reports write them: with words before (`val_loss`, `mean_iou`,
    `image/top_5_accuracy`), with an average or a part after (`f1_macro`, `f1_class_3`,
    `mse_output_0`, `recall@10`), in upper or lower case. None means neither, as for a spread
    (`accuracy_std`), a share (`prevalence_class_0`), or any other name.

    Better when larger: accuracy, exact match, hits; F-scores, precision (ppv), recall (tpr,
    sensitivity), specificity; AUROC, AUPRC, average precision, mAP; MCC, kappa; IoU (Jaccard),
    dice; r2, explained variance, correlations; NDCG, MRR; BLEU, ROUGE, METEOR, chrF, CIDEr; PSNR,
    SSIM, SNR; likelihood, ELBO, reward, return. Better when smaller: loss, cost, error, MSE, RMSE,
    MAE, MAPE; cross-entropy, NLL, perplexity, KL divergence, bits per dimension; ECE, Brier score;
    error rates (WER, CER, FPR, FNR); edit distance, Chamfer distance; FID, LPIPS.

    >>> direction("average_loss"), direction("f1_macro"), direction("accuracy_std")
    ('min', 'max', None)
    """
    return _direction(str(name))


def better(metrics: PyTree, name: str) -> Direction | None:
    """Return the direction of a metric's value, from `better` or else from the standard name.

    Args:
        metrics: Any metric, also one of clu.
        name: A name in `compute()`.

    Raises:
        ValueError: The metric's `better` returned something else than "min", "max" or None.

    >>> import solstice
    >>> better(solstice.metrics.Mean(0.5), "loss")
    'min'
    """
    own = getattr(metrics, "better", None)
    if not callable(own):
        return direction(name)
    said = own(name)
    if said not in ("min", "max", None):
        raise InvalidValueError(
            f"{type(metrics).__name__}.better({name!r}) is expected to return 'min', 'max' or "
            f"None; it returned {describe(said)}."
        )
    return said


def known(said: Direction | None, name: str, remedy: str) -> Direction:
    """Return a direction, or raise if it is not known.

    Args:
        said: What `better` returned.
        name: A name in `compute()`.
        remedy: What the user can pass instead, for the message.

    Raises:
        UsageError: It is None.
    """
    if said is None:
        raise UsageError(
            f"Whether a smaller or a larger {name!r} is better is expected to be known; its metric "
            f"does not say, and it is not a standard name. Pass {remedy}, or define better(name) "
            f"on the metric."
        )
    return said


def check_mode(mode: object) -> None:
    """Raise if a user's direction is not "min" or "max"; None asks the metric."""
    if not (mode is None or (isinstance(mode, str) and mode in ("min", "max"))):
        raise InvalidValueError(
            f"mode is expected to be 'min' or 'max'; it is {mode!r}. None asks the metric."
        )


@functools.lru_cache(maxsize=4096)
def _direction(name: str) -> Direction | None:
    words = _words(name)
    while words:
        for start in range(len(words)):  # the longest first: "kl divergence"
            if found := _TABLE.get(" ".join(words[start:])):
                return _as_said_before(words[:start], words[start], found)
        if not (words[-1].isdigit() or words[-1] in _QUALIFIERS):
            # "loss per token"
            if len(words) < 3 or words[-2] != "per":
                return None
            words.pop()
        words.pop()
    return None


def _as_said_before(before: list[str], first: str, found: Direction) -> Direction | None:
    part = before[len(before) - before[::-1].index("/") :] if "/" in before else before
    if _TURNED_ROUND.search(" ".join([*part, first])):
        return "max" if found == "min" else "min"
    return None if _UNSURE.intersection(part) else found


def _words(name: str) -> list[str]:
    """Return the lowercase words of a path, its slashes among them.

    >>> _words("part/valF1Score"), _words("top_5_accuracy"), _words("acc@1"), _words("1 - SSIM")
    (['part', '/', 'val', 'f1', 'score'], ['top', '5', 'accuracy'], ['acc', '1'], ['minus', 'ssim'])
    """
    apart = re.sub(r"(?<=[a-z]{2}|[A-Za-z]\d)(?=[A-Z])", " ", name)
    apart = re.sub(r"\b1 ?- ?", "minus ", apart)
    words = re.findall(r"[a-z]+\d*|\d+|/", apart.lower())
    return [word if word in _TABLE else word.rstrip("0123456789") or word for word in words]


def _names(text: str) -> list[str]:
    return [" ".join(name.split()) for name in text.split(",")]


_TABLE: dict[str, Direction] = {
    **dict.fromkeys(_names(_LARGER), "max"),
    **dict.fromkeys(_names(_SMALLER), "min"),
}
