"""Values in a few words, for error messages."""

from typing import Any


def describe(value: Any) -> str:
    """Say in a few words what `value` is, for an error message: type, shape, dtype or value.

    >>> import numpy as np
    >>> describe(np.zeros((2, 3), np.float32)), describe("adam"), describe(int)
    ('float32[2,3]', "the str 'adam'", "the class 'int'")
    """
    if isinstance(value, type):
        return f"the class {value.__name__!r}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, tuple | list | dict) and len(value) <= 4:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k!r}: {describe(v)}" for k, v in value.items()) + "}"
        inner = ", ".join(map(describe, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    text = repr(value)
    if len(text) > 60:
        return f"a {type(value).__module__}.{type(value).__qualname__}"
    return f"the {type(value).__name__} {text}"
