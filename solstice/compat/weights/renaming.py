"""A user's rules for names: regular expressions with replacements, or a function."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError

Renames = Mapping[str, str | None] | Callable[[str], str | None] | None


def renamed(names: Iterable[str], rename: Renames, argument: str = "rename") -> dict[str, str]:
    r"""Return the new name of each name that is kept.

    Args:
        names: The names.
        rename: From regular expressions, which match anywhere in a name, to replacements, as in
            `re.sub`; applied one after the other. None drops each name that matches. Or a function
            from a name to its new one, or to None.
        argument: The name of the user's argument.

    Raises:
        TypeError: A rule is neither a string nor None.
        ValueError: A rule is not a regular expression or matches no name, or two names become one.

    >>> renamed(["layer1.w", "layer2.w", "step"], {r"layer(\d)\.": r"stage\1/", "step": None})
    {'layer1.w': 'stage1/w', 'layer2.w': 'stage2/w'}
    """
    names = list(names)
    new: dict[str, str | None] = dict(zip(names, names, strict=True))
    if callable(rename):
        arguments.function(rename, argument, "name")
        for name in names:
            new[name] = _text(rename(name), argument, name)
    elif rename is not None:
        for pattern, text in arguments.mapping(rename, argument).items():
            given = "" if text == "" else _text(text, argument, pattern)
            _substitute(new, pattern, given, argument)
    kept = {name: text for name, text in new.items() if text is not None}
    by_new: dict[str, str] = {}
    for name, text in kept.items():
        _text(text, argument, name)
        if text in by_new:
            raise InvalidValueError(
                f"{argument} is expected to give each array another name; {by_new[text]!r} and "
                f"{name!r} both become {text!r}. Make the pattern match one of them."
            )
        by_new[text] = name
    if names and not kept:
        raise InvalidValueError(
            f"{argument} is expected to keep some arrays; it drops all of them."
        )
    return kept


def _substitute(new: dict[str, str | None], pattern: str, text: str | None, argument: str) -> None:
    """Apply a rule to all names."""
    try:
        expression = re.compile(pattern)
        found = [name for name, now in new.items() if now is not None and expression.search(now)]
        for name in found:
            new[name] = None if text is None else expression.sub(text, new[name] or "")
    except (re.error, IndexError) as error:
        raise InvalidValueError(
            f"{argument} is expected to map regular expressions to replacements, as re.sub "
            f"takes them; {pattern!r}: {text!r} is invalid: {error}."
        ) from error
    if not found:
        current = [now for now in new.values() if now is not None]
        close = difflib.get_close_matches(pattern, current, n=3, cutoff=0.3) or current[:3]
        raise InvalidValueError(
            f"{argument}: {pattern!r} is expected to match a name; it matches none of "
            f"{len(current)}, such as {', '.join(map(repr, close))}. (It is a regular expression, "
            f"searched for anywhere in a name.)"
        )


def _text(value: object, argument: str, what: str) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise InvalidTypeError(
        f"{argument} is expected to return a new name, or None to drop the array; for {what!r} it "
        f"returns {describe(value)}."
    )
