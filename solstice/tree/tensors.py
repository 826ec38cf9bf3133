"""Named arrays in one safetensors file: written together, read one by one, each with a digest.

Any tool for safetensors opens these files. The format lacks some of jax's dtypes: their arrays are
stored as bytes on a last axis, and the reader must know the dtype.
"""

import contextlib
import errno
import functools
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from solstice.errors import (
    DamagedFileError,
    InvalidValueError,
    MissingPackageError,
    SolsticeError,
)
from solstice.tree.kinds import dtype_name

# The dtypes that the format and numpy share, and bfloat16.
_KNOWN = {
    f"{kind}{bits}" for kind, sizes in
    {"int": (8, 16, 32, 64), "uint": (8, 16, 32, 64), "float": (16, 32, 64)}.items()
    for bits in sizes
} | {"bool", "bfloat16", "complex64"}  # fmt: skip


@functools.cache
def packages() -> tuple[ModuleType, ModuleType]:
    """Return the packages for files, safetensors and xxhash; filelock is asked for too.

    Raises:
        MissingPackageError: One is not installed.
    """
    try:
        import filelock  # noqa: F401  # pyright: ignore[reportUnusedImport] - for locks
        import safetensors
        import xxhash
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"Saving needs the package {error.name!r}, which is not installed: "
            f"pip install 'jax-solstice[checkpoint]'"
        ) from error
    return safetensors, xxhash


def array_digest(values: np.ndarray) -> str:
    """Return the XXH3 digest of an array's numbers; it detects damage and is not a signature."""
    _, xxhash = packages()
    return xxhash.xxh3_128_hexdigest(_contiguous(values).reshape(-1).view(np.uint8).data)


def text_digest(text: str) -> str:
    """Return the XXH3 digest of a text."""
    _, xxhash = packages()
    return xxhash.xxh3_128_hexdigest(text.encode())


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Write arrays on the host into a new file, and wait until it is on disk.

    Args:
        path: The file.
        arrays: By name.
        about: The file's metadata.

    Raises:
        OSError: The file cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "arrays.safetensors"
    >>> write_tensors(path, {"w": np.ones(2, np.float32)}, {"by": "hand"})
    >>> with Tensors.open(path) as tensors:
    ...     tensors.about, tensors.read("w", np.dtype("float32"), (2,))
    ({'by': 'hand'}, array([1., 1.], dtype=float32))
    """
    safetensors, _ = packages()
    path.open("xb").close()
    mode = path.stat().st_mode  # safetensors would make the file private
    # The specifications hold addresses, so the arrays must stay alive until the file is written.
    stored = {name: _stored(values) for name, values in arrays.items()}
    specs = {
        name: safetensors.TensorSpec(
            dtype=dtype_name(values.dtype),
            shape=values.shape,
            data_ptr=values.ctypes.data,
            data_len=values.nbytes,
        )
        for name, values in stored.items()
    }
    try:
        # None for no metadata: with {} and no arrays, safetensors writes a header it cannot read.
        safetensors.serialize_file(specs, path, metadata=dict(about) or None)
    except safetensors.SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else 0
        raise OSError(code, os.strerror(code) if code else str(error), str(path)) from None
    path.chmod(mode)
    with path.open("rb") as file:
        os.fsync(file.fileno())


class Tensors:
    """An open safetensors file.

    Attributes:
        place: Where it is.
        names: The names of its arrays.
        about: Its metadata.
    """

    def __init__(self, place: str, file: Any) -> None:
        self.place, self._file = place, file
        self.names = frozenset(file.keys())
        self.about: dict[str, str] = file.metadata() or {}

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, place: str | None = None) -> Iterator[Self]:
        """Open a file to read from.

        Args:
            path: The file.
            place: Where it comes from, for messages, if it is a copy.

        Raises:
            DamagedFileError: It is not a complete file of this format.
            OSError: It cannot be read.
        """
        safetensors, _ = packages()
        try:
            # Not memory-mapped, since a file that shrinks would then kill the process.
            file = safetensors.safe_open(path, framework="np", backend="pread")
        except safetensors.SafetensorError as error:
            raise damaged(
                place or path, f"it is not a complete safetensors file ({error})"
            ) from error
        with file:
            yield cls(place or str(path), file)

    def read(
        self, name: str, dtype: np.dtype, shape: tuple[int, ...], digest: str | None = None
    ) -> np.ndarray:
        """Return an array; checks its dtype and shape before memory is allocated.

        Raises:
            DamagedFileError: It is missing, has another form, or its digest does not match.
        """
        if name not in self.names:
            raise damaged(self.place, f"{name!r} is missing")
        found = self._file.get_slice(name)
        stored = _stored_form(dtype, tuple(shape))
        if (found.get_dtype(), tuple(found.get_shape())) != stored:
            raise damaged(self.place, f"{name!r} is {found.get_dtype()}{found.get_shape()} there")
        values = self._file.get_tensor(name)
        if dtype.name not in _KNOWN:
            values = np.ascontiguousarray(values).view(dtype).reshape(shape)
        if digest is not None and array_digest(values) != digest:
            raise damaged(self.place, f"the bytes of {name!r} are not those that were written")
        return values

    def load(self, name: str) -> np.ndarray:
        """Return an array with the dtype and shape that the file says it has.

        Raises:
            DamagedFileError: Its bytes are not there.
            InvalidValueError: It is of a dtype that numpy has no name for, such as some of 8 bits.
        """
        code = self._file.get_slice(name).get_dtype()
        if code not in _READABLE:
            raise InvalidValueError(
                f"{self.place}: {name!r} is expected to be of a dtype that numpy and jax share "
                f"with the format; it is {code}. Save it as float32 or bfloat16."
            )
        return self._file.get_tensor(name)


def check_regular(path: Path) -> None:
    """Raise unless a path is a regular file: reading a pipe or a device may never end.

    Raises:
        OSError: It is something else, or does not exist.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "It is not a regular file", str(path))


def damaged(what: Path | str, why: str, *, is_file: bool = True) -> DamagedFileError:
    """Return the error for a file, a directory or a part of one that was changed."""
    path = str(what) if is_file else None
    return DamagedFileError(f"{what} is damaged: {why}. Use another copy.", path=path)


@contextlib.contextmanager
def untrusted(what: Path | str, *, is_file: bool = True) -> Iterator[None]:
    """Turn any error in decoding a file's content into a DamagedFileError.

    A file may be crafted to have correct digests and odd content.
    """
    try:
        yield
    except SolsticeError:
        raise
    except _ODD as error:
        why = (
            f"its content has another form than what was written ({type(error).__name__}: {error})"
        )
        raise damaged(what, why[:300], is_file=is_file) from error


_ODD = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


def _contiguous(values: np.ndarray) -> np.ndarray:
    # safetensors writes memory in its order, and would save a transposed array wrongly.
    return values if values.flags.c_contiguous else np.ascontiguousarray(values)


def _stored(values: np.ndarray) -> np.ndarray:
    values = _contiguous(values)
    if dtype_name(values.dtype) in _KNOWN:
        return values
    flat = values.reshape(-1).view(np.uint8)
    return flat.reshape(*values.shape, values.dtype.itemsize)


_CODES = {"bool": "BOOL", "bfloat16": "BF16", "complex64": "C64"}


def _stored_form(dtype: np.dtype, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return the format's name of a dtype, and the shape that is stored."""
    if dtype.name not in _KNOWN:
        return "U8", (*shape, dtype.itemsize)
    return _CODES.get(dtype.name, f"{dtype.kind.upper()}{dtype.itemsize * 8}"), shape


def as_dtype(name: str) -> np.dtype:
    """Return the dtype of numbers with a name, also jax's.

    Raises:
        TypeError, DamagedFileError: There is none.

    >>> as_dtype("bfloat16")
    dtype(bfloat16)
    """
    dtype = jnp.dtype(name)
    if not (dtype == np.bool_ or jnp.issubdtype(dtype, np.number)):
        raise DamagedFileError(f"{name!r} is expected to be a dtype of numbers. Use another copy.")
    return dtype


def is_storable(dtype: np.dtype) -> bool:
    """Return whether the format has a dtype; arrays of another are stored as bytes."""
    return dtype_name(dtype) in _KNOWN


_READABLE = frozenset(_stored_form(as_dtype(name), ())[0] for name in _KNOWN)


def sync_directory(path: Path) -> None:
    """Make a directory's names durable against a power cut."""
    if hasattr(os, "O_DIRECTORY"):
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
