"""TensorBoard: curves, histograms, images and texts in event files.

tensorboardX makes the events, and this file writes them: `tensorboardX.FileWriter.flush` returns
while events are still queued, so the size to cut a file back to on a resume is not known, and
`RecordWriter` leaves half an event on a full disk and buffers others. A directory on another
machine (gs://, s3://) is an error.
"""

import importlib
import os
import re
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from solstice import arguments
from solstice.errors import DamagedFileError, ExistingFileError
from solstice.loggers.base import Sink, check_hyperparameters, local_path, name_below, require
from solstice.loggers.files import EntryFile, cut_back
from solstice.loggers.values import Image, as_text, finite, is_number, whole


class TensorBoard(Sink):
    """Writes event files, in one sub-directory per mode, with training steps as the axis.

    A number is a scalar, an array the histogram of its finite values, an `Image` an image and a
    text (or a list of texts) a text; anything else, and arrays without a finite value, are left
    out. Curves of the same name in `train`, `val` and `test` share a chart. A resumed run truncates
    the files to its checkpoint and continues in new ones, which make an open TensorBoard forget the
    later steps.

    Args:
        directory: Where the sub-directories go; show it with `tensorboard --logdir`.
        append: Write next to the event files of other runs, which is otherwise an error.
        hyperparameters: Shown in TensorBoard's HParams table: numbers, bools and strings, and other
            values as their `str`.

    Raises:
        FileExistsError: At the run's start: there are event files, `append` is false, and the run
            does not resume.
        ImportError: tensorboardX is not installed.

    >>> import tempfile, solstice
    >>> sink = solstice.loggers.TensorBoard(tempfile.mkdtemp(), hyperparameters={"rate": 3e-4})
    >>> sink.write({"mode": "train", "epoch": 0, "step": 100, "time": 1.5, "loss": 0.5})
    >>> sink.close()
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        append: bool = False,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._directory = local_path(directory, "directory")
        super().__init__(f"TensorBoard({os.fspath(directory)!r})")
        self._held = self._directory
        require("tensorboardX", "TensorBoard", "tensorboard")
        self._append = arguments.flag(append, "append")
        self._hyperparameters = check_hyperparameters(hyperparameters)
        # Marks our event files.
        self._run = ""
        self._tbx: Any = None
        # The open file of each mode, and the last known sizes of all our files.
        self._files: dict[str, EntryFile] = {}
        self._sizes: dict[str, int] = {}
        self._last_step = -1
        # The step from which an open TensorBoard must forget what it has read.
        self._purge_step: int | None = None

    @property
    def place(self) -> str:
        return f"TensorBoard({str(self._directory)!r})"

    def on_open(self) -> None:
        # Here and not at each record, since even a repeated import takes time.
        self._tbx = _TensorBoardX()
        if self._run:
            return
        # At any depth: a mode such as "val/hard" has a directory in a directory.
        found = [] if self._append else [*self._directory.rglob("*tfevents*")]
        if found:
            raise ExistingFileError(
                f"{str(self._directory)!r} holds the event files of another run, such as "
                f"{str(found[0])!r}. Log to a new directory, delete this one, or write next to "
                f"them with append=True."
            )
        self._run = secrets.token_hex(4)
        if self._hyperparameters:
            _, start, _ = self._tbx.summary.hparams(
                {k: _plain(v) for k, v in self._hyperparameters.items()}, {}
            )
            self._add("", start, 0, time.time())

    def on_write(self, record: dict[str, Any]) -> None:
        summary = self._tbx.Summary()
        for name, value in record.items():
            if name not in ("mode", "step", "time"):
                self._tbx.add(summary, whole(name), value)
        step = int(record["step"])
        self._add(name_below(str(record["mode"])), summary, step, record["time"])
        self._last_step = max(self._last_step, step)

    def on_flush(self) -> None:
        for file in self._files.values():
            file.sync()

    def on_close(self) -> None:
        self._note_sizes()
        for file in self._files.values():
            file.close()
        self._files, self._purge_step = {}, None

    def on_get_state(self) -> dict[str, Any]:
        self._note_sizes()
        return {
            "run": self._run,
            "names": list(self._sizes),
            "sizes": list(self._sizes.values()),
            "step": self._last_step,
        }

    def on_set_state(self, state: dict[str, Any]) -> None:
        run = str(state["run"])
        sizes = {
            str(name): int(size) for name, size in zip(state["names"], state["sizes"], strict=True)
        }
        # A checkpoint may come from anywhere, and the files that it names are cut back or deleted.
        if not re.fullmatch(r"[0-9a-f]{8}|", run) or not all(map(self._may_be_ours, sizes)):
            raise DamagedFileError(
                f"The state of {self} names files that it cannot have written: {list(sizes)[:5]}. "
                f"Resume from another checkpoint, or log to a new directory."
            )
        self._run, self._sizes = run, sizes
        for path in sorted(self._directory.rglob(f"*tfevents*.{self._run}")):
            if self._name_of(path) not in self._sizes:
                path.unlink()  # created after the checkpoint
        for name, size in self._sizes.items():
            cut_back(self._directory / name, size)
        self._last_step = int(state["step"])
        self._purge_step = self._last_step + 1

    def _add(self, mode: str, summary: Any, step: int, when: float) -> None:
        if mode not in self._files:
            # TensorBoard reads a directory's files in the order of their names.
            now, host = f"{time.time():017.6f}", socket.gethostname()
            name = f"events.out.tfevents.{now}.{host}.{self._run}"
            file = EntryFile(self._directory / mode / name, 0)
            file.append(self._tbx.entry(wall_time=when, file_version="brain.Event:2"))
            if self._purge_step is not None and mode:
                restart = self._tbx.SessionLog(status=self._tbx.SessionLog.START)
                file.append(
                    self._tbx.entry(wall_time=when, step=self._purge_step, session_log=restart)
                )
            self._files[mode] = file
        self._files[mode].append(self._tbx.entry(wall_time=when, step=step, summary=summary))

    def _note_sizes(self) -> None:
        for file in self._files.values():
            self._sizes[self._name_of(file.path)] = file.size

    def _may_be_ours(self, name: str) -> bool:
        path, home = self._directory / name, self._directory.resolve()
        named = path.name.startswith("events.out.tfevents.")
        return named and not path.is_symlink() and path.resolve().is_relative_to(home)

    def _name_of(self, path: Path) -> str:
        return path.relative_to(self._directory).as_posix()


class _TensorBoardX:
    """The parts of tensorboardX that define the format."""

    def __init__(self) -> None:
        self.summary: Any = importlib.import_module("tensorboardX.summary")
        self.checksum: Any = importlib.import_module("tensorboardX.record_writer").masked_crc32c
        self.Summary: Any = importlib.import_module("tensorboardX.proto.summary_pb2").Summary
        events: Any = importlib.import_module("tensorboardX.proto.event_pb2")
        self.Event, self.SessionLog = events.Event, events.SessionLog

    def add(self, summary: Any, name: str, value: object) -> None:
        """Add a value to a summary, if it can be shown."""
        if is_number(value):
            summary.value.add(tag=name, simple_value=value)
        elif (text := as_text(value)) is not None:
            self._add_as(summary, f"{name}/text_summary", self.summary.text(name, text))
        elif isinstance(value, Image):
            height, width, channels = value.pixels().shape
            image = summary.value.add(tag=name).image
            image.height, image.width, image.colorspace = height, width, channels
            image.encoded_image_string = value.png()
        elif isinstance(value, np.ndarray) and (values := finite(value)).size:
            self._add_as(summary, name, self.summary.histogram(name, values, bins=64))

    def _add_as(self, summary: Any, tag: str, made: Any) -> None:
        # tensorboardX replaces characters by _ that TensorBoard shows well.
        made.value[0].tag = tag
        summary.MergeFrom(made)

    def entry(self, **fields: Any) -> bytes:
        """Return an event in the file's format: its length, its bytes, a checksum of each."""
        data = self.Event(**fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = [struct.pack("<I", self.checksum(part)) for part in (length, data)]
        return length + sums[0] + data + sums[1]


def _plain(value: object) -> bool | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
