"""Files that weights come from: every format read, and everything else refused clearly."""

import builtins
import io
import json
import os
import pickle
import re
import sys
import zipfile

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from solstice.compat.weights.files.sources import read
from solstice.compat.weights.renaming import renamed
from solstice.errors import (
    DamagedFileError,
    InvalidTypeError,
    InvalidValueError,
    MissingFileError,
    MissingPackageError,
)

ARRAYS = {
    "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "layer.bias": np.ones(2, jnp.bfloat16),
    "steps": np.array(3),
}


class Evil:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def check(source, arrays=ARRAYS):
    """Say that a source holds arrays, bit for bit."""
    found = read(source).arrays
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array)


def shards(folder, index=True):
    """Write two shards, and the index that names them."""
    parts = [{"layer.weight"}, {"layer.bias", "steps"}]
    places = {}
    for number, names in enumerate(parts):
        file = f"model-{number}.safetensors"
        some = {name: ARRAYS[name] for name in names}
        safetensors.numpy.save_file(some, folder / file)
        places |= dict.fromkeys(names, file)
    if index:
        text = json.dumps({"metadata": {}, "weight_map": places})
        (folder / "model.safetensors.index.json").write_text(text)
    return folder


def zipped(path, content):
    """Write a file as torch does: a zip with a pickle in it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", "3")


def test_a_safetensors_file_is_read_bit_for_bit(tmp_path):
    safetensors.numpy.save_file(ARRAYS, path := tmp_path / "a.safetensors")
    check(path)
    check(str(path))


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_read_from_a_folder_or_its_index(tmp_path, index):
    check(shards(tmp_path, index))
    if index:
        check(tmp_path / "model.safetensors.index.json")


def test_a_missing_shard_is_damage(tmp_path):
    (shards(tmp_path) / "model-1.safetensors").unlink()
    with pytest.raises(
        DamagedFileError, match=r"shard 'model-1.safetensors' that it names is missing"
    ):
        read(tmp_path)


def test_an_index_that_names_files_elsewhere_is_damage(tmp_path):
    text = json.dumps({"weight_map": {"w": "../secret.safetensors"}})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(DamagedFileError, match="outside its folder"):
        read(tmp_path)


def test_an_index_that_promises_too_much_is_damage(tmp_path):
    index = shards(tmp_path) / "model.safetensors.index.json"
    text = json.loads(index.read_text())
    text["weight_map"]["more"] = "model-0.safetensors"
    index.write_text(json.dumps(text))
    with pytest.raises(DamagedFileError, match="'more' is in none of its shards"):
        read(tmp_path)


def test_shards_with_an_array_of_one_name_are_refused(tmp_path):
    for number in range(2):
        safetensors.numpy.save_file(ARRAYS, tmp_path / f"{number}.safetensors")
    with pytest.raises(InvalidValueError, match=r"Two shards .* have an array 'layer.bias'"):
        read(tmp_path)


def test_an_npz_is_read_in_order_and_bfloat16_is_told(tmp_path):
    np.savez(path := tmp_path / "a.npz", **ARRAYS)
    check(path)
    found = read(path)
    assert list(found.arrays) == list(ARRAYS)
    assert found.in_order
    assert found.notes == ("1 arrays of 2-byte values without a type were read as bfloat16.",)


def test_an_npz_with_objects_is_not_unpickled(tmp_path):
    np.savez(path := tmp_path / "a.npz", w=np.array([Evil(tmp_path / "ran")], object))
    with pytest.raises(
        InvalidValueError, match="'w' holds Python objects, which are not unpickled"
    ):
        read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("array", [np.array(["text"]), np.zeros(2, "V4"), np.zeros(1, "M8[s]")])
def test_an_npz_of_something_else_than_numbers_is_refused(tmp_path, array):
    np.savez(path := tmp_path / "a.npz", w=array)
    with pytest.raises(InvalidValueError, match="expected to hold arrays of numbers; 'w' is"):
        read(path)


def test_an_npz_with_two_arrays_of_a_name_is_refused(tmp_path):
    np.savez(path := tmp_path / "a.npz", w=np.ones(2))
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("w.npy", b"")
    with pytest.raises(InvalidValueError, match=r"Two arrays of .* are named 'w'"):
        read(path)


def keras_file(path):
    """Write arrays as Keras does: layers by class and number, names as attributes."""
    layers = {
        "layers/dense": ("dense_7", [(3, 4), (4,)]),
        "layers/dense_1": ("head", [(4, 2), (2,)]),
        "layers/batch_normalization": ("batch_normalization_3", [(4,)] * 4),
        "layers/lstm/cell": ("lstm_cell", [(4, 8), (2, 8), (8,)]),
        "layers/embedding": ("embedding", [(5, 4)]),
    }
    with h5py.File(path, "w") as file:
        for layer, (name, shapes) in layers.items():
            group = file.create_group(f"{layer}/vars")
            group.attrs["name"] = name
            for i, shape in enumerate(shapes):
                group.create_dataset(str(i), data=np.full(shape, i, np.float32))


def test_a_keras_file_is_read_by_the_names_that_keras_has(tmp_path):
    keras_file(path := tmp_path / "model.weights.h5")
    names = list(read(path).arrays)
    assert names == [
        *(f"batch_normalization/{name}" for name in ("gamma", "beta")),
        *(f"batch_normalization/moving_{name}" for name in ("mean", "variance")),
        *("dense/kernel", "dense/bias", "head/kernel", "head/bias", "embedding/embeddings"),
        *(f"lstm/lstm_cell/{name}" for name in ("kernel", "recurrent_kernel", "bias")),
    ]
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.write(path, "model.weights.h5")
    assert list(read(tmp_path / "model.keras").arrays) == names


@pytest.mark.parametrize("manager", [False, True])
def test_an_orbax_checkpoint_is_read(tmp_path, manager):
    tree = {"params": {"dense": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}}, "step": np.array(3)}
    if manager:
        with ocp.CheckpointManager(tmp_path / "run") as kept:
            kept.save(5, args=ocp.args.StandardSave(tree))
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "run", tree)
    found = read(tmp_path / "run").arrays
    assert found.keys() == {"params/dense/kernel", "step"}
    assert found["params/dense/kernel"].dtype == jnp.bfloat16
    if not manager:
        (tmp_path / "run" / "_METADATA").write_text("{")
        (tmp_path / "run" / "manifest.ocdbt").unlink()
        with pytest.raises(DamagedFileError, match="not a complete Orbax checkpoint"):
            read(tmp_path / "run")


def test_a_mapping_keeps_its_order_and_may_be_nested():
    tree = {"z": {"w": np.ones(2)}, "a": [np.ones(3), (np.ones(4),)], "nothing": None}
    assert list(read(tree).arrays) == ["z/w", "a/0", "a/1/0"]
    assert list(read({"k": {"value": np.ones(2)}}).arrays) == ["k"]


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ({}, InvalidValueError, "source is expected to hold arrays; the mapping holds none: {}"),
        ({"w": "text"}, InvalidTypeError, "'w' is the str 'text'"),
        ({"w": 0.1}, InvalidTypeError, "'w' is the float 0.1"),
        ({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, InvalidValueError, "are named 'a/b'"),
        (3, InvalidTypeError, "source is expected to be the path of a file .* it is the int 3"),
        ("", InvalidValueError, "source is expected to be a path"),
        ("lost.npz", MissingFileError, "lost.npz is neither"),
    ],
)
def test_what_is_no_source_is_refused(source, error, says):
    with pytest.raises(error, match=says):
        read(source)


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "h5", "keras"])
def test_a_file_of_another_format_is_damage(tmp_path, suffix):
    (path := tmp_path / f"a.{suffix}").write_bytes(b"Call me Ishmael. " * 40)
    with pytest.raises(DamagedFileError, match="it is not a complete"):
        read(path)


def written_by_torch(kind, path):
    import torch

    tensors = {"layer.weight": torch.arange(60.0).reshape(6, 10), "steps": torch.tensor(3)}
    torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip.pt")


def written_by_h5py(kind, path):
    keras_file(path)
    if kind == "keras":
        content = path.read_bytes()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("config.json", "{}")
            archive.writestr("model.weights.h5", content)


WRITERS = {
    "safetensors": lambda kind, path: safetensors.numpy.save_file(ARRAYS, path),
    "npz": lambda kind, path: np.savez_compressed(path, **ARRAYS),
    "h5": written_by_h5py,
    "keras": written_by_h5py,
    "zip.pt": written_by_torch,
    "pickle.pt": written_by_torch,
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(one, marks=[pytest.mark.torch] * one.endswith(".pt")) for one in WRITERS],
)
def test_a_file_that_was_cut_anywhere_is_damage(tmp_path, kind):
    WRITERS[kind](kind, path := tmp_path / f"a.{kind}")
    whole = path.read_bytes()
    read(path)
    ends = range(len(whole) - 40, len(whole), 5)
    for length in sorted({*range(0, len(whole), len(whole) // 40), *ends}):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError, match="is damaged") as told:
            read(path)
        assert told.value.path == str(path)


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "joblib", "npy", "txt"])
def test_a_file_of_an_unknown_format_is_refused_and_not_unpickled(tmp_path, suffix):
    (path := tmp_path / f"a.{suffix}").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(InvalidValueError, match=re.escape(f"a.{suffix} is not read")):
        read(path)
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InvalidValueError, match=r"holds 'notes.txt'. Name the file"):
        read(tmp_path)


def without(monkeypatch, package):
    """Have a package look as if it were not installed."""
    real = builtins.__import__
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)

    def importing(name, *rest, **more):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", importing)


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin"])
@pytest.mark.parametrize("write", [zipped, lambda path, content: path.write_bytes(content)])
def test_without_torch_its_files_are_not_unpickled(tmp_path, monkeypatch, suffix, write):
    without(monkeypatch, "torch")
    write(path := tmp_path / f"a.{suffix}", pickle.dumps({"w": Evil(tmp_path / "ran")}))
    with pytest.raises(
        MissingPackageError, match=r"pip install torch .*safetensors.torch.save_file"
    ):
        read(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran")))  # it would have
    assert (tmp_path / "ran").exists()


def test_a_file_of_keras_whose_first_variable_is_missing_keeps_its_paths(tmp_path):
    with h5py.File(path := tmp_path / "odd.weights.h5", "w") as file:
        file["layers/dense/vars/1"] = np.ones(3)
    assert list(read(path).arrays) == ["layers/dense/vars/1"]


@pytest.mark.parametrize(("package", "install"), [("h5py", "h5py"), ("orbax", "orbax-checkpoint")])
def test_a_missing_package_is_told_with_its_command(tmp_path, monkeypatch, package, install):
    if package == "h5py":
        keras_file(path := tmp_path / "a.h5")
    else:
        (path := tmp_path / "run").mkdir()
        (path / "_METADATA").write_text("{}")
    without(monkeypatch, package)
    with pytest.raises(MissingPackageError, match=f"pip install {install}"):
        read(path)


NAMES = ["layer1.w", "layer2.w", "step"]


def test_renames_are_applied_one_after_the_other():
    rules = {r"layer(\d)\.": r"stage\1/", "stage2": "last", "step": None}
    assert renamed(NAMES, rules) == {"layer1.w": "stage1/w", "layer2.w": "last/w"}
    assert renamed(NAMES, {"layer": ""}) == {
        "layer1.w": "1.w",
        "layer2.w": "2.w",
        "step": "step",
    }
    assert renamed(NAMES, str.upper)["step"] == "STEP"
    assert renamed(NAMES, None) == dict(zip(NAMES, NAMES, strict=True))


@pytest.mark.parametrize(
    ("rules", "error", "says"),
    [
        ({"lyer": "x"}, InvalidValueError, r"'lyer' is expected to match a name; .* 'layer1.w'"),
        ({r"step": ""}, InvalidTypeError, "expected to return a new name, or None .* for 'step'"),
        ({r"layer\d": "x"}, InvalidValueError, r"'layer1.w' and 'layer2.w' both become 'x.w'"),
        ({"(": "x"}, InvalidValueError, "regular expressions"),
        ({"layer": r"\3"}, InvalidValueError, "invalid group reference"),
        ({"": None}, InvalidValueError, "drops all of them"),
        ({"step": 3}, InvalidTypeError, "it returns the int 3"),
        (lambda name: 3, InvalidTypeError, "it returns the int 3"),
        (lambda: "x", InvalidTypeError, "a function of"),
        ("step", InvalidTypeError, "rename is expected to be a mapping"),
    ],
)
def test_a_wrong_rename_is_told(rules, error, says):
    with pytest.raises(error, match=says):
        renamed(NAMES, rules)


TENSORS = {
    "conjugate": (lambda torch, tensor: (tensor + 0j).conj(), np.complex64),
    "negative": (lambda torch, tensor: (-1j * tensor).conj().imag, np.float32),
    "sparse": (lambda torch, tensor: tensor.to_sparse(), np.float32),
    "float8": (lambda torch, tensor: tensor.to(torch.float8_e4m3fn), jnp.float8_e4m3fn),
}


@pytest.mark.torch
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_numpy_takes_no_view_of_are_read(kind):
    import torch

    make, dtype = TENSORS[kind]
    found = read({"w": make(torch, torch.arange(6.0).reshape(2, 3))}).arrays["w"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.real.astype(np.float32), np.arange(6.0).reshape(2, 3))


REFUSED = r"expected to (be one of|hold arrays of) numbers"


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_a_tensor_without_plain_numbers_is_refused():
    import torch

    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)
    for tensor in (torch.empty(2, device="meta"), quantized):
        with pytest.raises(InvalidTypeError, match=REFUSED):
            read({"w": tensor})


def test_what_has_no_plain_numbers_is_refused():
    for odd in (jax.random.key(0), np.ma.masked_array(np.ones(2), [True, False])):
        with pytest.raises(InvalidTypeError, match=REFUSED):
            read({"w": odd})


def claims(path, change):
    """Write an .npz whose zip or header claims something odd."""
    np.savez(path, w=np.ones(3, np.float32))
    content = path.read_bytes()
    path.write_bytes(change(content))


def at(content, mark, offset, byte):
    found = bytearray(content)
    found[content.index(mark) + offset] = byte
    return bytes(found)


CLAIMS = {
    "another start": lambda content: b"\0" + content[1:],
    "a password": lambda content: at(at(content, b"PK\x01\x02", 8, 1), b"PK\x03\x04", 6, 1),
    "another compression": lambda content: at(
        at(content, b"PK\x01\x02", 10, 99), b"PK\x03\x04", 8, 99
    ),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_zip_that_claims_odd_things_is_damage(kind, tmp_path):
    claims(path := tmp_path / "a.npz", CLAIMS[kind])
    with pytest.raises(DamagedFileError, match=re.escape(str(path))):
        read(path)


def test_an_array_that_claims_more_than_fits_in_memory_is_damage(tmp_path):
    header = io.BytesIO()
    form = {"descr": "<f8", "fortran_order": False, "shape": (10**14,)}
    np.lib.format.write_array_header_1_0(header, form)
    with zipfile.ZipFile(path := tmp_path / "a.npz", "w") as file:
        file.writestr("w.npy", header.getvalue())
    with pytest.raises(DamagedFileError, match=r"'w'|Unable to allocate"):
        read(path)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_message_advises_to_run_a_file(tmp_path):
    import torch

    (tmp_path / "a.pt").write_bytes(pickle.dumps(Evil(tmp_path / "mark")))
    (tmp_path / "b.pt").write_bytes(bytes(range(256)) * 9)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "c.pt")
    for name in "abc":
        with pytest.raises((DamagedFileError, InvalidValueError)) as raised:
            read(tmp_path / f"{name}.pt")
        assert "weights_only" not in str(raised.value)
    assert "TorchScript" in str(raised.value)
    assert not (tmp_path / "mark").exists()


def test_names_that_were_sorted_as_texts_are_put_in_the_order_of_their_numbers():
    names = [f"layers.{number}.weight" for number in range(12)]
    for given in (names, sorted(names)):
        assert list(read(dict.fromkeys(given, np.ones((2, 2)))).arrays) == names
    assert list(read({"b.2": np.ones(2), "b.1": np.ones(2)}).arrays) == ["b.2", "b.1"]
