"""Which laws are checked on what, and the tables that the pages make of it.

    PYTHONPATH=.:tests/loggers python tests/compat/law_table.py    # into docs/what_works.md

A cell says yes where no law of its column is excluded. That the others hold is what `test_laws.py`
asserts, network by network, and `test_sink_laws.py`, so the tables need nothing to be run.
"""

import re
from pathlib import Path

from networks import LIBRARIES
from networks.common import COMMON
from optimizer_table import PER_EXAMPLE, TABLES
from sink_table import SINKS

from solstice.testing import MODEL_LAWS, OPTIMIZER_LAWS, SINK_LAWS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "what_works.md"]
BEGIN, END = (
    "<!-- what works: written by tests/compat/law_table.py -->",
    "<!-- end of what works -->",
)

# Facts of a library that no adapter can mend: by network, the laws that do not hold, and why.
EXCLUDED = {
    ("stax", "cnn"): {
        "eval_is_per_example": "Stax has no running statistics: its batch norm normalises by the "
        "batch in evaluation too."
    },
}
# Facts of an optimizer, not of its adapter.
EXCLUDED_OPTIMIZERS = {
    ("keras", "decaying weights"): {
        "names_do_not_matter": "If `exclude_from_weight_decay` was given names, they matter."
    },
}
# Of optimizers that differ only in their formula, a few; of what wraps, searches or wants, most.
OPTIMIZERS = {
    "optax": (
        "adam, sgd, muon, adafactor, noisy_sgd, sm3, chain, scheduled, masked decay, partition, "
        "lbfgs, polyak_sgd, momo, reduce_on_plateau, sophia, sam, opaque sam, lookahead, "
        "schedule_free, mechanize, MultiSteps, apply_if_finite, injected schedule, flatten, "
        "split_real_and_imaginary"
    ),
    "jax": "sgd, momentum, adam, piecewise",
    "keras": "Adam, SGD, Muon, decaying weights, accumulating",
}

# What the tests check of these; `nox -s soak` checks all. In each library the network with
# everything (convolutions, batch statistics, dropout), one without state and keys, and each kind
# where it could be lost: a part that is shared where objects are compared, gradients that overwrite
# where the library has them, two inputs and streams where they are named.
WHOLE = {
    "linen": "mlp, cnn",
    "nnx": "cnn, attention, recurrent, shared, fp8",
    "haiku": "cnn, embedding, rounding",
    "equinox": "cnn, shared",
    "stax": "cnn",
    "keras": "cnn, shared, fp8",
    "function": "cnn, parameterless",
}
# What an adapter treats in a way of its own: what wants, wraps, averages, masks or counts.
WHOLE_OPTIMIZERS = {
    "optax": (
        "sgd, masked decay, partition, lbfgs, polyak_sgd, reduce_on_plateau, opaque sam, "
        "lookahead, schedule_free, MultiSteps, injected schedule, split_real_and_imaginary"
    ),
    "jax": "momentum, piecewise",
    "keras": "SGD, decaying weights, accumulating",
}

# What a reader asks: the laws that answer it, and the kinds of networks that can break them.
MODEL_COLUMNS = {
    "parameters": (
        "leaves_are_arrays, params_are_no_buffers, gradients_match_params, forward_keeps_weights",
        "mlp, cnn, recurrent, attention, embedding, shared",
    ),
    "batch statistics": ("training_updates_state, eval_is_per_example", "cnn"),
    "dropout": ("keys_decide_randomness, training_is_a_function", "cnn, attention"),
    "train flag": (
        "eval_returns_itself, traced_train_is_refused, equals_the_native_call",
        "cnn, attention",
    ),
    "`freeze`": (
        "freezing_keeps_outputs, a_subset_trains_as_in_the_whole",
        "mlp, cnn, recurrent, attention, embedding, shared",
    ),
    "ensembles": ("vmap_evaluates_each, vmap_trains_each", ", ".join(COMMON)),
    "same bits as its own call": ("equals_the_native_call", ", ".join(COMMON)),
    "`unwrap()`": ("equals_the_native_call, copies_are_equal", ", ".join(COMMON)),
}
OPTIMIZER_COLUMNS = {
    "same bits as its own loop": "equals_the_native_loop",
    "frozen parameters": "none_leaves_pass",
    "steps in one call": "scan_equals_loop",
    "any tree of parameters": "names_do_not_matter",
}
SINK_COLUMNS = {
    "records are read back unchanged": (
        "what_is_written_is_read_back, a_closed_sink_goes_on, sinks_are_independent"
    ),
    "after `flush`": "a_flush_is_enough",
    "never blocks or fails training": "a_write_waits_for_nothing, a_failing_write_is_told_once",
    "a resumed run logs like an uninterrupted one": "a_resumed_run_logs_what_a_whole_one_does",
    "a resume drops later records": "a_resume_drops_what_came_later, it_may_be_set_back",
}
# What the libraries are called, and what one passes.
NETWORKS = {
    "linen": ("Flax Linen", "a module"),
    "nnx": ("Flax NNX", "a module"),
    "haiku": ("Haiku", "the result of `hk.transform` or a variant"),
    "equinox": ("Equinox", "a module, or `(module, state)`"),
    "keras": ("Keras 3 on JAX", "a built model or layer"),
    "stax": ("Stax", "`(init, apply)`; with dropout `StaxModel(..., eval_apply=)`"),
    "function": ("plain functions", "`FunctionModel(init, apply, ...)`"),
}
FAMILIES = {
    "optax": (
        "Optax",
        f"all public ones, also in `contrib`, except {' and '.join(f'`{n}`' for n in PER_EXAMPLE)}",
    ),
    "jax": ("`jax.example_libraries`", "all except `sm3`"),
    "keras": ("Keras 3 on JAX", "all except `LossScaleOptimizer`, without `use_ema`"),
}


def split(names):
    return names.split(", ")


def table():
    """Return both tables, in Markdown."""
    notes: list[str] = []

    def cell(why):
        for one in why:
            if one not in notes:
                notes.append(one)
        return "".join(f"[{notes.index(one) + 1}]" for one in why)

    def broken(excluded, library, names, laws):
        found = [excluded.get((library, name), {}) for name in names]
        return [why for one in found for law, why in one.items() if law in laws]

    lines = [header("networks of", "passed as", *MODEL_COLUMNS)]
    for library, (title, passed) in NETWORKS.items():
        cells = [
            f"no {cell(why)}"
            if (why := broken(EXCLUDED, library, split(kinds), split(laws)))
            else "yes"
            for laws, kinds in MODEL_COLUMNS.values()
        ]
        lines.append(row(title, passed, *cells))
    lines += ["", header("optimizers of", "which", *OPTIMIZER_COLUMNS)]
    for library, (title, which) in FAMILIES.items():
        names = split(OPTIMIZERS[library])
        cells = [
            # A single optimizer's fact is no fact of the family.
            f"yes {cell(why)}"
            if (why := broken(EXCLUDED_OPTIMIZERS, library, names, [law]))
            else "yes"
            for law in OPTIMIZER_COLUMNS.values()
        ]
        lines.append(row(title, which, *cells))
    lines += ["", header("sinks", *SINK_COLUMNS)]
    for name, sink in SINKS.items():
        broken_laws = [
            [sink.excluded.get(law) for law in split(laws)] for laws in SINK_COLUMNS.values()
        ]
        cells = [
            f"no {cell(dict.fromkeys(why))}" if (why := [*filter(None, one)]) else "yes"
            for one in broken_laws
        ]
        lines.append(row(f"`{name}`", *cells))
    lines += ["", *(f"[{i}] {note}\n" for i, note in enumerate(notes, 1))]
    return "\n".join(lines).strip()


def row(*cells):
    return f"| {' | '.join(cells)} |"


def header(*titles):
    return f"{row(*titles)}\n{row(*['---'] * len(titles))}"


def written(page):
    """Return a page's text with the table as it should be."""
    around = re.compile(f"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.DOTALL)
    text, count = around.subn(
        lambda found: f"{found[1]}\n{table()}\n\n{found[2]}", page.read_text()
    )
    assert count == 1, f"{page} has not the two lines around the table, once"
    return text


def check_columns():
    """Raise where a column names what is no law, no network or no optimizer."""
    laws = {law.name for law in MODEL_LAWS}
    for names, kinds in MODEL_COLUMNS.values():
        assert set(split(names)) <= laws
        assert all(set(split(kinds)) <= set(subjects) for subjects in LIBRARIES.values())
    assert set(OPTIMIZER_COLUMNS.values()) <= {law.name for law in OPTIMIZER_LAWS}
    assert all(set(split(names)) <= set(TABLES[library]) for library, names in OPTIMIZERS.items())
    laws = {law.name for law in SINK_LAWS}
    assert all(set(split(names)) <= laws for names in SINK_COLUMNS.values())
    assert all(set(sink.excluded) <= laws for sink in SINKS.values())
    assert set(NETWORKS) == set(WHOLE) == set(LIBRARIES)
    assert all(
        set(split(names)) <= set(split(OPTIMIZERS[library]))
        for library, names in WHOLE_OPTIMIZERS.items()
    )
    assert set(FAMILIES) == set(TABLES)


if __name__ == "__main__":
    check_columns()
    for page in PAGES:
        page.write_text(written(page))
