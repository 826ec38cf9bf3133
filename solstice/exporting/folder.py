"""The folder of an export: a JSON file that describes it, the programs, and the weights.

The folder gets its name when it is completely on disk. Only a folder that Solstice wrote is ever
replaced. What a killed process left beside it, the next export to the same path deletes.
"""

import importlib.util
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import (
    DamagedFileError,
    ExistingFileError,
    InvalidValueError,
    MissingFileError,
    MissingPackageError,
)
from solstice.tree.files import load, save
from solstice.tree.pytree import PyTree
from solstice.tree.staging import OLD, staged_beside, tidy
from solstice.tree.tensors import (
    array_digest,
    damaged,
    packages,
    sync_directory,
    text_digest,
    untrusted,
)

ABOUT = "export.json"
WEIGHTS = "weights.safetensors"
_FORMAT, _VERSION = "solstice export", 1
# How often a folder is read anew that another process replaces, and the seconds in between.
_READS, _PAUSE = 5, 0.02
# Identifies the export to which a weights file belongs.
_EXPORT = "of export"
_PROGRAM = "{}.jax_export"
_OURS = re.compile(rf"{re.escape(ABOUT)}|{re.escape(WEIGHTS)}|\w+\.jax_export")


class Content(NamedTuple):
    """The contents of a folder.

    Attributes:
        about: The contents of its JSON file.
        programs: The programs by name, as jax serializes them.
        weights: The arrays by their names.
    """

    about: dict[str, Any]
    programs: dict[str, bytes]
    weights: dict[str, PyTree]


def check_packages() -> None:
    """Check that the packages for exports are installed.

    Raises:
        MissingPackageError: A package is not.
    """
    packages()
    if importlib.util.find_spec("flatbuffers") is None:
        raise MissingPackageError(
            "Exports need the package 'flatbuffers', with which jax writes and reads programs: "
            "pip install 'jax-solstice[checkpoint]'"
        )


def vacant(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return the path of a folder that may be written.

    Raises:
        ValueError: It is a URL, a name that the file system refuses, or in something other than a
            folder.
        FileExistsError: Something is there: an export without `overwrite`, or anything else.
        ImportError: The package that writes the weights is not installed.
    """
    check_packages()
    place = _local(path)
    _check_name(place)
    tidy(place)
    if not os.path.lexists(place) or (_is_folder(place) and not os.listdir(place)):
        return place
    if not _is_export(place):
        raise _foreign(place)
    if not overwrite:
        raise ExistingFileError(
            f"path is expected to be a new folder; {os.fspath(place)!r} is an export. "
            f"Replace it with export(..., overwrite=True), or choose another path."
        )
    return place


def _check_name(place: Path) -> None:
    """Raise if no folder of that name can be created."""
    above = next(one for one in place.parents if os.path.lexists(one))
    if not above.is_dir():
        raise InvalidValueError(
            f"path is expected to be in a folder; {os.fspath(above)!r} is none, so there is no "
            f"{os.fspath(place)!r}. Choose another path."
        )
    for name in place.relative_to(above).parts:
        try:
            os.lstat(above / name)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise InvalidValueError(
                f"path is expected to be a folder that can be created; the file system refuses "
                f"the name {describe(name)} ({error.strerror}). Choose a shorter one."
            ) from error


def write(place: Path, content: Content) -> None:
    """Write a folder, which appears when it is complete and replaces an older export."""
    place.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    with staged_beside(place) as staging:
        new = staging / "new"
        new.mkdir()
        digests = {}
        for name, program in content.programs.items():
            _write(new / _PROGRAM.format(name), program)
            digests[name] = _digest(program)
        save(new / WEIGHTS, {_EXPORT: token, **content.weights})
        about = {"format": f"{_FORMAT} {_VERSION}", **content.about}
        about |= {"export": token, "programs": digests}
        about["digest"] = _digest_of(about)
        _write(new / ABOUT, json.dumps(about, indent=2).encode())
        sync_directory(new)
        _take_place(new, place, staging / OLD)
        sync_directory(place.parent)


def read(path: str | os.PathLike[str]) -> Content:
    """Return what a folder holds.

    If another process replaces the folder meanwhile, it is read again.

    Raises:
        FileNotFoundError: There is no such folder.
        DamagedFileError: `export` did not write it, a part is missing, or something was changed.
        ValueError: A newer version wrote it.
    """
    place = _local(path)
    for _ in range(_READS - 1):
        known = _identity(place)
        try:
            return _content(place, path)
        except (DamagedFileError, OSError):
            if known is not None and known == _identity(place):
                raise
            time.sleep(_PAUSE)
    return _content(place, path)


def _identity(place: Path) -> tuple[int, int] | None:
    """Return what tells a folder from another of its name; None if there is none."""
    try:
        found = place.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _content(place: Path, path: str | os.PathLike[str]) -> Content:
    if not place.is_dir():
        raise MissingFileError(
            f"path is expected to be the folder of an export; there is none at {os.fspath(path)!r}."
        )
    check_packages()
    about = _about(place)
    with untrusted(place, is_file=False):
        names = about["programs"]
        if not all(re.fullmatch(r"\w+", name) for name in names):
            raise damaged(place, "its programs have unknown names", is_file=False)
        programs = {name: _read(place, _PROGRAM.format(name)) for name in names}
        for name, program in programs.items():
            if _digest(program) != names[name]:
                why = f"the bytes of {_PROGRAM.format(name)} are not those that were written"
                raise damaged(place, why, is_file=False)
        if not (place / WEIGHTS).is_file():
            raise damaged(place, f"{WEIGHTS} is missing", is_file=False)
        weights = load(place / WEIGHTS)
        if weights.pop(_EXPORT, None) != about["export"]:
            raise damaged(place, f"{WEIGHTS} belongs to another export", is_file=False)
    return Content(about, programs, weights)


def _about(place: Path) -> dict[str, Any]:
    if not (place / ABOUT).is_file():
        raise DamagedFileError(
            f"{place} is expected to be a folder that solstice.export wrote, with a file {ABOUT}; "
            f"it has {', '.join(sorted(os.listdir(place))[:5]) or 'nothing'}. Give the folder "
            f"itself; if it is a copy, check that it is complete.",
            path=str(place),
        )
    try:
        about = json.loads(_read(place, ABOUT))
        form = str(about.get("format"))
        version = re.fullmatch(rf"{_FORMAT} (\d{{1,9}})", form)
    except (ValueError, AttributeError, RecursionError) as error:
        raise damaged(place / ABOUT, f"it is not the JSON of an export ({error})") from error
    if version is None:
        raise damaged(place / ABOUT, f"its format is {form!r}, not {_FORMAT!r}")
    if int(version[1]) != _VERSION:
        raise InvalidValueError(
            f"{place} has the format {form!r}, and this version of Solstice reads "
            f"'{_FORMAT} {_VERSION}'. Load it with the version that wrote it, "
            f"{about.get('versions')}, or a newer one."
        )
    if about.pop("digest", None) != _digest_of(about):
        raise damaged(place / ABOUT, "its contents were changed")
    return about


def _take_place(new: Path, place: Path, old: Path) -> None:
    """Give a whole folder its name; an older export has it until then, or gets it back."""
    if os.path.lexists(place) and os.listdir(place):
        old.mkdir()
        place.rename(old / place.name)
        if not _is_export(old / place.name):  # something has come there since export() looked
            raise _foreign(place)
    new.rename(place)


def _local(path: str | os.PathLike[str]) -> Path:
    place = arguments.path(path, "path")
    if arguments.is_url(path):
        raise InvalidValueError(
            f"path is expected to be a folder on this machine; it is {describe(path)}. Copy "
            f"between a store and a local folder: fsspec.filesystem('s3').put(folder, url, "
            f"recursive=True), or .get(url, folder, recursive=True)."
        )
    return place


def _foreign(place: Path) -> ExistingFileError:
    return ExistingFileError(
        f"path is expected to be a new folder; at {os.fspath(place)!r}, there is something that "
        f"export() did not write. Choose another path."
    )


def _is_folder(place: Path) -> bool:
    return place.is_dir() and not place.is_symlink()


def _is_export(place: Path) -> bool:
    """Return whether a folder holds an export, complete or not, and nothing else."""
    if not _is_folder(place) or not (place / ABOUT).is_file():
        return False
    if not all(map(_OURS.fullmatch, os.listdir(place))):
        return False
    try:
        return str(json.loads(_read(place, ABOUT))["format"]).startswith(_FORMAT)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _read(place: Path, name: str) -> bytes:
    path = place / name
    if not path.is_file():  # reading a pipe or a device may never end
        raise damaged(place, f"{name} is missing, or not a file", is_file=False)
    return path.read_bytes()


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _digest(content: bytes) -> str:
    return array_digest(np.frombuffer(content, np.uint8))


def _digest_of(about: Mapping[str, Any]) -> str:
    return text_digest(json.dumps(about, sort_keys=True))
