"""Names of leaves: made from key paths, compared, and shortened."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import jax

from solstice.errors import InvalidTypeError


def path_name(path: tuple[object, ...]) -> str:
    """Return a jax key path as one string of names, joined by slashes.

    >>> path_name(jax.tree_util.tree_leaves_with_path({"dense": [1.0]})[0][0])
    'dense/0'
    """
    if not isinstance(path, tuple):
        raise InvalidTypeError(
            f"path is expected to be a key path, as jax.tree_util.tree_leaves_with_path has them; "
            f"it is {path!r}."
        )
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matches(path: str, glob: str) -> bool:
    """Return whether a name matches a glob: `*` is any text, `?` one character.

    >>> matches("blocks[0]/bias", "blocks[0]/*"), matches("blocks[0]/bias", "blocks[?]")
    (True, False)
    """
    return fnmatchcase(path, glob.replace("[", "[[]"))


def names_difference(expected: Iterable[str], found: Iterable[str]) -> str:
    """Say which names are missing and which are new; an empty string if none are.

    >>> names_difference(["a", "b"], ["b", "c"])
    "they lack 'a' and they have 'c' besides"
    """
    expected, found = dict.fromkeys(expected), dict.fromkeys(found)
    missing = [repr(name) for name in expected if name not in found]
    unknown = [repr(name) for name in found if name not in expected]
    parts = [f"they lack {few(missing)}"] * bool(missing)
    parts += [f"they have {few(unknown)} besides"] * bool(unknown)
    return " and ".join(parts)


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, and how many more there are.

    >>> few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def elided(names: Sequence[str], width: int) -> list[str]:
    """Return long names with their middles cut, as short as keeps them distinct.

    >>> elided([f"layer_{i}/query_projection/kernel" for i in (0, 1)], width=24)
    ['layer_0/q...ction/kernel', 'layer_1/q...ction/kernel']
    >>> elided([f"query_projection_{i}/kernel" for i in (0, 1)], width=16)
    ['query_p...0/kernel', 'query_p...1/kernel']
    """
    longest = max(map(len, names), default=0)
    for some in range(width, longest, 2):
        short = [without_middle(name, some) for name in names]
        if len(set(short)) == len(set(names)):
            return short
    return list(names)


def without_middle(name: str, width: int) -> str:
    """Return a name of at most `width` characters.

    >>> without_middle("query_projection/kernel", 16)
    'query_.../kernel'
    """
    if len(name) <= width:
        return name
    head = width * 2 // 5
    return f"{name[:head]}...{name[head + 3 - width :]}"
