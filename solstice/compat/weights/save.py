"""Writes a model's arrays to a safetensors file, under names that its library's tools read."""

import json
import os

from solstice import arguments
from solstice.compat.model import Model
from solstice.compat.weights.files.shards import DTYPES
from solstice.compat.weights.leaves import model_leaves
from solstice.compat.weights.renaming import Renames, renamed
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.encoding import check_data, host_array
from solstice.tree.files import replacing
from solstice.tree.tensors import is_storable, write_tensors


def save(model: Model, path: str | os.PathLike[str], *, names: Renames = None) -> None:
    """Write a model's arrays to one safetensors file, under the names that its library uses.

    Parameters, frozen ones included, and state are written, so `compat.load` restores the same
    bits. Typed PRNG keys (streams of Flax NNX) are written as the numbers behind them. The file is
    written completely or not at all. The page *Loading and saving weights* shows how each library's
    own tools read it.

    A wrapped model (`compat.lora`, `compat.quantize`) is written with its factors and quantized
    values, and loads into a model that was wrapped the same way. For the library's own names, save
    `compat.merge(model)`.

    Args:
        model: An adapted network of any library.
        path: The file, whose name ends with ".safetensors"; its directory exists.
        names: Other names: from regular expressions, which match anywhere in a name, to their
            replacements, or to None to drop an array; or a function from a name to the new one, or
            to None. For another library's names and layouts, save what `compat.convert` returns.

    Raises:
        ValueError: Two arrays get one name, a pattern matches none, or the path ends otherwise.
        OSError: The file cannot be written; an existing file is unchanged.
        ImportError: safetensors is not installed.

    >>> import flax.linen as nn, jax.numpy as jnp, safetensors.numpy, tempfile
    >>> from solstice import compat
    >>> network, x = nn.Dense(4), jnp.ones((2, 3))
    >>> model = compat.as_model(network, x, key=0)
    >>> path = tempfile.mkdtemp() + "/dense.safetensors"
    >>> compat.save(model, path)
    >>> sorted(safetensors.numpy.load_file(path))
    ['params/bias', 'params/kernel']
    >>> compat.save(model, path, names={"params/": "head."})
    >>> sorted(safetensors.numpy.load_file(path))
    ['head.bias', 'head.kernel']
    """
    leaves = model_leaves(model)
    file_path = arguments.path(path, "path")
    if file_path.suffix != ".safetensors":
        raise InvalidValueError(
            f"path is expected to end with '.safetensors'; it is {os.fspath(path)!r}. For an .npz: "
            f"numpy.savez(path, **safetensors.numpy.load_file(...)), which loses bfloat16."
        )
    if isinstance(names, Model):
        raise InvalidTypeError(
            "names is expected to be a mapping of patterns or a function; it is a "
            f"{type(names).__name__}. For its names and layouts: "
            "compat.save(compat.convert(model, like=other, example=x), path)."
        )
    arguments.check_untraced(leaves, "save()")
    check_data(leaves)
    own = {model.library_name(name): leaf for name, leaf in leaves.items()}
    new = renamed(own, names, "names")
    arrays = {text: host_array(own[name]) for name, text in new.items()}
    odd = {name: leaf.dtype.name for name, leaf in arrays.items() if not is_storable(leaf.dtype)}
    about = {DTYPES: json.dumps(odd)} if odd else {}
    with replacing(file_path) as file:
        write_tensors(file, arrays, about)
