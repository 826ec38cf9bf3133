"""Networks of eight or nine kinds in each library, each beside that library's own training loop.

One file a library; `common.py` holds what they share. A library that is not installed is an
error here, on purpose: the tests that need it must fail, not vanish.
"""

from networks import equinox, function, haiku, keras, linen, nnx, stax

LIBRARIES = {
    "linen": linen.SUBJECTS,
    "nnx": nnx.SUBJECTS,
    "haiku": haiku.SUBJECTS,
    "equinox": equinox.SUBJECTS,
    "stax": stax.SUBJECTS,
    "keras": keras.SUBJECTS,
    "function": function.SUBJECTS,
}
