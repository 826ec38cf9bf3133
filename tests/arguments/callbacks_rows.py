"""Calls of `solstice.callbacks`."""

from arguments_table import row
from kinds import (
    choice,
    count,
    flag,
    function,
    number,
    only,
    optional,
    path,
    text,
)

from solstice.triggers import Every

WHEN = only(Every(steps=3))
NOWHERE = "None", "empty list", "empty tuple"
LOGGING = only(lambda metrics, step, mode: None, *NOWHERE)

row(
    "callbacks.CheckpointingCallback",
    directory=path("saved"),
    every=WHEN,
    keep=optional(count(3)),
    best=only("accuracy", "None", "True", "text", "number as text", "text with a NUL", "pair"),
    on_error=choice("warn"),
)
row(
    "callbacks.EarlyStoppingCallback",
    criterion_fn=function(lambda outs: False),
    accumulate_every_n_steps=count(1),
    watch=choice("val"),
)
row(
    "callbacks.EarlyStoppingCallback.no_improvement",
    metric=text("loss"),
    mode=only("min", "None"),
    patience=count(5),
    min_delta=number(0.1).also("zero"),
    watch=choice("val"),
    restore_best=flag(),
)
row(
    "callbacks.ReduceOnPlateau",
    metric=text("loss"),
    mode=only("min", "None"),
    factor=only(0.5, "numpy float"),
    patience=count(5),
    min_delta=number(0.1).also("zero"),
    min_rate=number(0.1).also("zero"),
    watch=choice("val"),
)
row("callbacks.EnvironmentCallback", logging_fn=LOGGING)
row(
    "callbacks.EvaluationCallback",
    eval_fn=function(lambda exp, batch, key: None),
    datasets=only({"test": [1]}).called("datasets"),
    when=WHEN,
    logging_fn=LOGGING,
    key=count(0, least=-1, most=2**63),
    prepare_batch=optional(function(lambda batch: batch)),
    finalize=optional(function(lambda metrics: metrics)),
    on_start=optional(function(lambda exp, step, name: None)),
    on_end=optional(function(lambda results, exp, step, name: None)),
    on_host=optional(flag()),
    jit=flag(),
)
row("callbacks.HistoryCallback", log_every_n_steps=optional(count(3)))
row("callbacks.HistoryCallback", when=optional(WHEN))
row("callbacks.LoggingCallback", log_every_n_steps=optional(count(3)), logging_fn=LOGGING)
row("callbacks.LoggingCallback", when=optional(WHEN))
row(
    "callbacks.ProfilingCallback",
    log_dir=path("profile"),
    steps_to_profile=only([1], "None", "seven ints", "iterator"),
)
row(
    "callbacks.ScheduledCallback",
    action=function(lambda exp, step: None),
    when=WHEN,
    name=optional(text()),
)
row(
    "callbacks.InspectionCallback",
    values_fn=function(lambda exp, batch: None),
    when=WHEN,
    logging_fn=LOGGING,
    mode=text("inside"),
    jit=flag(),
)
row("callbacks.ReplicationCallback", when=WHEN, outlets=only(None, "None"))
row("callbacks.StopOnNaN", every_n_steps=count(1))
