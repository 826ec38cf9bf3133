"""The law of exports: what `solstice.export` wrote computes what the model does."""

import tempfile
import unittest
from typing import Any

import jax

from solstice.errors import MissingPackageError
from solstice.exporting.export import export
from solstice.exporting.exported import Exported, load_exported
from solstice.exporting.folder import check_packages
from solstice.exporting.programs import FixedSizeError
from solstice.testing.compare import assert_same_bits, values
from solstice.testing.law import Law, LawBook
from solstice.testing.model_subject import ModelSubject
from solstice.tree.programs import equations

_book = LawBook(ModelSubject)

# Operations that leave the device for a function of Python, which no file can hold.
_ON_THE_HOST = {"debug_callback", "debug_print", "io_callback", "pure_callback"}


@_book.law()
def exports_give_the_same_bits(subject: ModelSubject) -> None:
    """An exported network (`solstice.export`) evaluates as its call, for two sizes of a batch."""
    _check_exportable(subject)
    batches = subject.inputs, jax.tree.map(lambda x: x[1:], subject.inputs)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = [_exported(subject, folder, batches[0], "any")] * 2
        except FixedSizeError:  # then each size has its program
            found = [_exported(subject, folder, inputs, "example") for inputs in batches]
        for exported, inputs in zip(found, batches, strict=True):
            size = jax.tree.leaves(inputs)[0].shape[0]
            # Named tuples come back as dicts, with their fields in another order.
            ours, its = (
                dict(sorted(values(outputs).items()))
                for outputs in (subject.evaluate(subject.model, *inputs), exported(*inputs))
            )
            assert_same_bits(ours, its, f"{size} examples, by the model and by its export")


EXPORT_LAWS: tuple[Law, ...] = tuple(_book.laws)


def _check_exportable(subject: ModelSubject) -> None:
    try:
        check_packages()
    except MissingPackageError as why:
        raise unittest.SkipTest(str(why)) from None
    program = subject.evaluate.trace(subject.model, *subject.inputs).jaxpr
    names = {eqn.primitive.name for eqn in equations(program.jaxpr)}
    if outside := ", ".join(sorted(names & _ON_THE_HOST)):
        raise unittest.SkipTest(
            f"the network calls functions on the host ({outside}), which no export can hold"
        )


def _exported(subject: ModelSubject, folder: str, example: Any, batch: Any) -> Exported:
    path = f"{folder}/{jax.tree.leaves(example)[0].shape[0]}"
    platform = jax.export.default_export_platform()
    export(subject.model, path, example=example, batch=batch, platforms=platform)
    return load_exported(path)
