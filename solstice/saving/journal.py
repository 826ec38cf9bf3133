"""Journal: data that grows from checkpoint to checkpoint, such as a history, written once.

Each checkpoint has all of it in its directory, in the files `records-0` and so on, with one JSON
entry per line. The next checkpoint hard-links the file and appends new lines; each checkpoint notes
how much of the file belongs to it, and the digest. Without hard links, the file is copied.
"""

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

from solstice.tree.encoding import kept
from solstice.tree.growing import Growing
from solstice.tree.json import from_json, to_json
from solstice.tree.pytree import PyTree
from solstice.tree.tensors import check_regular, damaged

# The mark of growing data: the number of its file.
_MARK = "$records"


@dataclasses.dataclass
class _File:
    """A file so far: the entries in it, the last one, its size and digest."""

    path: str
    entries: list[PyTree]
    count: int = 0
    last: object = None
    size: int = 0
    digest: "hashlib._Hash" = dataclasses.field(default_factory=hashlib.sha256)

    def goes_on(self, growing: Growing) -> bool:
        """Return whether it holds the first of some entries."""
        if self.entries is not growing.entries or self.count > len(growing):
            return False
        return not self.count or self.entries[self.count - 1] is self.last

    def about(self) -> dict[str, PyTree]:
        return {"count": self.count, "size": self.size, "digest": self.digest.hexdigest()}


class Journal:
    """Writes growing data into one checkpoint after another, and reads it back.

    >>> import tempfile
    >>> first, second = tempfile.mkdtemp(), tempfile.mkdtemp()
    >>> log, journal = [1.5, 2.5], Journal()
    >>> rest, files = journal.write(first, {"log": Growing(log, float)})
    >>> journal.written(first)
    >>> log.append(3.5)
    >>> again, more = journal.write(second, {"log": Growing(log, float)})
    >>> restored(Path(first), rest, files), restored(Path(second), again, more)
    ({'log': [1.5, 2.5]}, {'log': [1.5, 2.5, 3.5]})
    """

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._pending: dict[int, _File] = {}

    def write(self, directory: str, rest: PyTree) -> tuple[PyTree, list[dict[str, PyTree]]]:
        """Write the growing data in a tree of plain containers into a checkpoint's directory.

        Returns:
            The tree with marks for the growing data, and the entries of the files.
        """
        found: list[Growing] = []

        def marked(node: PyTree) -> PyTree:
            if isinstance(node, Growing):
                found.append(node)
                return {_MARK: len(found) - 1}
            if type(node) is dict:
                return {name: marked(child) for name, child in node.items()}
            return type(node)(map(marked, node)) if type(node) in (list, tuple) else node

        rest = marked(rest)
        self._pending = {
            i: self._extended(i, growing, _path(directory, i)) for i, growing in enumerate(found)
        }
        return rest, [file.about() for file in self._pending.values()]

    def written(self, directory: str) -> None:
        """Record that the checkpoint is complete, and its directory."""
        self._files = {
            i: dataclasses.replace(file, path=_path(directory, i))
            for i, file in self._pending.items()
        }

    def _extended(self, i: int, growing: Growing, path: str) -> _File:
        file = self._files.get(i)
        if file is not None and file.goes_on(growing) and _linked(file.path, path):
            file = dataclasses.replace(file, path=path, digest=file.digest.copy())
        else:
            file = _File(path, growing.entries)
        count = len(growing)
        new = kept(growing[file.count :], "An entry of a callback's state")
        lines = "".join(f"{to_json(entry)}\n" for entry in new).encode()
        with open(path, "r+b" if file.size else "wb") as opened:
            opened.seek(file.size)  # not the end: a save that failed may have left more
            opened.write(lines)
            opened.flush()
            os.fsync(opened.fileno())
        file.digest.update(lines)
        file.size, file.count = file.size + len(lines), count
        file.last = growing.entries[count - 1] if count else None
        return file


def restored(directory: Path, rest: PyTree, files: list[dict[str, PyTree]]) -> PyTree:
    """Return the tree that `Journal.write` got, with growing data as lists.

    Raises:
        DamagedFileError: A file is missing or was changed.
    """
    read = [_read(Path(_path(str(directory), i)), about) for i, about in enumerate(files)]

    def unmarked(node: PyTree) -> PyTree:
        if type(node) is dict:
            if read and list(node) == [_MARK]:
                return read[node[_MARK]]
            return {name: unmarked(child) for name, child in node.items()}
        return type(node)(map(unmarked, node)) if type(node) in (list, tuple) else node

    return unmarked(rest)


def _read(path: Path, about: dict[str, PyTree]) -> list[PyTree]:
    try:
        check_regular(path)
        with open(path, "rb") as file:
            # Not more than the file has, since memory for it is allocated at once.
            data = file.read(min(about["size"], path.stat().st_size))
    except OSError as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    if len(data) != about["size"] or hashlib.sha256(data).hexdigest() != about["digest"]:
        raise damaged(path, "its digest does not match")
    return [from_json(line) for line in data.decode().split("\n")[:-1]]


def _path(directory: str, i: int) -> str:
    return f"{directory}/records-{i}"


def _linked(old: str, new: str) -> bool:
    """Hard-link or copy a file; return whether it exists."""
    try:
        os.link(old, new)
    except FileNotFoundError:
        return False
    except OSError:  # a file system without hard links
        shutil.copyfile(old, new)
    return True
