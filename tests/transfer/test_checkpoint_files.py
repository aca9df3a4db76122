"""Reading files that may lie: each is refused with nothing changed, or loaded exactly."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pathlib
import pickle
import shutil
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

from gradxform.transfer.checkpoint import require
from gradxform.transfer.load import load_pretrained

GOOD = {
    "dense.kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "dense.bias": np.array([1.5, -2, 3], np.float16),
    "steps": np.array([3, 2**40], np.int64),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 4), np.float32),
    "scale": np.array(2.5, np.float64),
}
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


def start(arrays: dict[str, np.ndarray] = GOOD) -> dict[str, np.ndarray]:
    return {name.replace(".", "/"): np.full_like(array, 1) for name, array in arrays.items()}


def attempt(path: pathlib.Path) -> dict[str, np.ndarray] | ValueError:
    """What is loaded from ``path`` into params like GOOD, or the error, after which nothing may have changed."""
    params = start()
    try:
        loaded, report = load_pretrained(path, params)
    except ValueError as error:
        # Of these one is raised for every bad file, and it says which.
        assert path.name in str(error) and not isinstance(error, UnicodeError)
        return error
    finally:
        assert all((value == 1).all() for value in params.values()) and len(params) == len(GOOD)
    assert len(report.loaded) == len(GOOD)
    return loaded


def oracle(data: bytes) -> dict[str, np.ndarray]:
    """A reader of good safetensors files in a few lines."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    arrays = {}
    for name, item in header.items():
        if name != "__metadata__":
            part, stored = body[slice(*item["data_offsets"])], item["dtype"]
            # The upper half of a float32 is a bfloat16.
            numbers = (
                (np.frombuffer(part, "<u2").astype(np.uint32) << 16).view(np.float32)
                if stored == "BF16"
                else np.frombuffer(part, DTYPES[stored] if part else "<f4")
            )  # nothing is nothing in any dtype
            arrays[name] = numbers.reshape(item["shape"])
    return arrays


def assert_exact(loaded: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Every number is the one expected, to the bit."""
    assert set(loaded) == {name.replace(".", "/") for name in expected}
    for name, array in expected.items():
        made = loaded[name.replace(".", "/")]
        # A value may have been cast, as from F64 to F32; the bits are then those of the cast.
        wanted = GOOD[name].dtype
        assert made.dtype == wanted and made.shape == GOOD[name].shape
        with np.errstate(over="ignore", invalid="ignore"):
            assert np.ascontiguousarray(array.astype(wanted)).tobytes() == np.ascontiguousarray(made).tobytes(), name


def good_file(path: pathlib.Path) -> bytes:
    save_file(GOOD, path, {"format": "np"})
    return path.read_bytes()


def rebuilt(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with another header over the same data."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = change(header)
    text = (json.dumps(header) if text is None else text).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def mutations(data: bytes, random: np.random.RandomState) -> dict[str, bytes]:
    """Some 650 bad or changed versions of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    made: dict[str, bytes] = {f"truncated to {n}": data[:n] for n in range(0, len(data), 5)}
    made |= {f"{n} bytes more": data + bytes(n) for n in (1, 7, 8, 1000)}
    for i in range(250):  # of one byte, half of them in the header
        at, bit = random.randint(8 if i % 2 else length, len(data)), random.randint(8)
        flipped = bytearray(data)
        flipped[at] ^= 1 << bit
        made[f"bit {bit} of byte {at}"] = bytes(flipped)
    for i in range(60):
        at = random.randint(len(data) - 4)
        made[f"garbage {i} at {at}"] = data[:at] + random.bytes(4) + data[at + 4 :]
    for claim in (
        0,
        1,
        2,
        length - 1,
        length + 1,
        length - 8,
        length + 8,
        len(data),
        len(data) - 8,
        len(data) - 7,
        2**31,
        2**32 + length,
        2**63 - 1,
        2**63,
        2**64 - 1,
        100_000_001,
        2**40,
    ):
        made[f"header of {claim} bytes"] = struct.pack("<Q", claim) + data[8:]

    def put(name: str, field: str, value: Any) -> Callable[[dict[str, Any]], None]:
        return lambda header: header[name].__setitem__(field, value)

    for name in GOOD:
        for stored in [*DTYPES, "BF16", "F8_E4M3", "C64", "F4", "X", "", "f32", 7, None, ["F32"]]:
            made[f"{name} as {stored}"] = rebuilt(data, put(name, "dtype", stored))
        for shape in (
            [],
            [6],
            [3, 2],
            [2, 3, 1],
            [-2, -3],
            [2.0, 3],
            [True, 6],
            "23",
            None,
            [2**62, 4],
            [10**30],
            [0],
            [1] * 40,
            [0, 2**63],
            [2**32, 2**32],
        ):
            made[f"{name} of {shape}"] = rebuilt(data, put(name, "shape", shape))
        for offsets in (
            [0, 0],
            [0, 8],
            [8, 0],
            [-8, 16],
            [0, 2**63],
            [2**64, 2**64 + 24],
            [0],
            [0, 8, 16],
            "08",
            None,
            [0.0, 24.0],
            [True, 24],
            [0, len(data)],
        ):
            made[f"{name} at {offsets}"] = rebuilt(data, put(name, "data_offsets", offsets))
        made[f"{name} with more"] = rebuilt(data, put(name, "pickle", "x"))
        made[f"{name} is none"] = rebuilt(data, lambda header, name=name: header.__setitem__(name, None))
        made[f"{name} gone"] = rebuilt(data, lambda header, name=name: header.pop(name) and None)
        made[f"{name} again"] = rebuilt(
            data, lambda header, name=name: json.dumps(header)[:-1] + f', "{name}": {json.dumps(header[name])}}}'
        )
        made[f"{name} renamed"] = rebuilt(data, lambda header, name=name: header.__setitem__("x", header.pop(name)))
        made[f"{name} aliased"] = rebuilt(data, lambda header, name=name: header.__setitem__("x", header[name]))
    for text in (
        "",
        "{",
        "[]",
        "null",
        "NaN",
        "{}",
        '{"a": NaN}',
        '"text"',
        "{" * 3000,
        "[" * 100_000,
        '{"a": 1e999}',
        '{"__metadata__": {"a": "\ud800"}}',
        "\x00" * 40,
        '{"a":' * 2000,
        "9" * 5000,
    ):
        made[f"header {text[:20]!r}"] = rebuilt(data, lambda header, text=text: text)
    made["a pickle"] = pickle.dumps(GOOD)
    made["nothing"] = b""
    return made


def test_fuzzed_safetensors(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "fuzzed.safetensors"
    data = good_file(path)
    assert_exact(attempt(path), oracle(data))
    cases = mutations(data, np.random.RandomState(7))
    assert len(cases) >= 600
    exact = 0
    for case, mutated in cases.items():
        path.write_bytes(mutated)
        result = attempt(path)
        if isinstance(result, ValueError):
            continue
        try:
            assert_exact(result, oracle(mutated))
        except Exception as error:
            raise AssertionError(f"{case} was loaded, but not exactly") from error
        exact += 1
    # Flips in the numbers themselves are no fault that could be seen.
    assert 30 < exact < 200


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('{"__metadata__": {"a": NaN}}', "NaN is no number of JSON"),
        (
            '{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
            r"'a' claims to be \(3,\) float32 in 8 bytes",
        ),
        (
            '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}',
            "'a' starts at byte 8 of the data, expected 0",
        ),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "describes 4 bytes of data, the file has 8"),
        ('{"a": {"dtype": "F32", "shape": [2]}}', "expected dtype, shape and data_offsets of 'a'"),
        ('{"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}', "malformed or damaged"),
    ],
)
def test_lies_are_named_before_the_library_reads(tmp_path: pathlib.Path, header: str, message: str) -> None:
    path = tmp_path / "lie.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    with pytest.raises(ValueError, match=message):
        load_pretrained(path, {"a": np.zeros(2, np.float32)})


def test_truth_values_other_than_0_and_1_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "flags.safetensors"
    save_file({"flags": np.array([True, False])}, path)
    path.write_bytes(path.read_bytes()[:-1] + b"\x02")
    with pytest.raises(ValueError, match=r"'flags' has truth values other than 0 and 1"):
        load_pretrained(path, {"flags": np.zeros(2, bool)})


def npz(path: pathlib.Path, arrays: dict[str, np.ndarray] = GOOD, *, packed: bool = False) -> bytes:
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path.read_bytes()


@pytest.mark.parametrize("packed", [False, True])
def test_fuzzed_npz(tmp_path: pathlib.Path, packed: bool) -> None:
    path = tmp_path / "fuzzed.npz"
    data, random = npz(path, packed=packed), np.random.RandomState(8)
    assert_exact(attempt(path), GOOD)
    cases = [data[:n] for n in range(0, len(data), len(data) // 40)] + [data + b"x", b"x" + data]
    for _ in range(150):
        flipped = bytearray(data)
        flipped[random.randint(len(data))] ^= 1 << random.randint(8)
        cases.append(bytes(flipped))
    exact = 0
    for mutated in cases:
        path.write_bytes(mutated)
        result = attempt(path)
        if not isinstance(result, ValueError):
            # Checksums tell that the numbers are the old ones: what was flipped are dates and the like.
            assert_exact(result, GOOD)
            exact += 1
    assert 0 < exact < len(cases) / 2


def member(array: np.ndarray | None = None, *, header: str | None = None, body: bytes = b"") -> bytes:
    """An .npy file, or one with a header that says what it wants."""
    stream = io.BytesIO()
    if array is not None:
        np.lib.format.write_array(stream, array)
        return stream.getvalue()
    text = (header or "").encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def claim(shape: Any, descr: str = "<f4") -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}"


LIES = {
    "larger than the file": ({"a.npy": member(header=claim((2**40,)), body=bytes(8))}, "cannot hold"),
    "larger than its member": ({"a.npy": member(header=claim((3,)), body=bytes(8))}, "cannot hold|does not fit"),
    "smaller than its member": ({"a.npy": member(header=claim((1,)), body=bytes(8))}, "does not fit in its"),
    "an overflowing shape": ({"a.npy": member(header=claim((2**62, 4)), body=bytes(8))}, "cannot hold"),
    "a negative shape": ({"a.npy": member(header=claim((-1, -2)), body=bytes(8))}, "shape"),
    "objects": ({"a.npy": member(header=claim((1,), "|O"), body=pickle.dumps([1]))}, "pickled objects"),
    "code for a header": ({"a.npy": member(header="__import__('os').getpid()")}, "malformed"),
    "no array": ({"a.txt": b"text"}, "expected arrays alone, found 'a.txt'"),
    "no header": ({"a.npy": b"text and more text"}, "malformed"),
    "another version": ({"a.npy": member(np.ones(2, np.float32)).replace(b"\x01\x00", b"\x03\x00", 1)}, "version"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("lie", LIES)
def test_lying_npz(tmp_path: pathlib.Path, lie: str, packed: bool) -> None:
    members, message = LIES[lie]
    path = tmp_path / "lie.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match=message):
        load_pretrained(path, {"a": np.zeros(2, np.float32)})


def test_npz_with_one_name_twice(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "twice.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", member(np.ones(2, np.float32)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", member(np.zeros(2, np.float32)))
    with pytest.raises(ValueError, match="'a' occurs twice"):
        load_pretrained(path, {"a": np.zeros(2, np.float32)})


def test_npz_of_other_byte_and_axis_orders(tmp_path: pathlib.Path) -> None:
    path, array = tmp_path / "order.npz", np.arange(6.0).reshape(2, 3)
    np.savez(path, a=array.astype(">f8"), b=np.asfortranarray(array))
    loaded, _ = load_pretrained(path, {"a": np.zeros((2, 3)), "b": np.zeros((2, 3))})
    np.testing.assert_array_equal(loaded["a"], array)
    np.testing.assert_array_equal(loaded["b"], array)
    assert loaded["a"].dtype.isnative
    seen = list[np.ndarray]()  # a function sees numbers in the order of this machine, too
    load_pretrained(path, {"a": np.zeros((2, 3))}, skip="b", convert={"a": lambda x, shape: seen.append(x) or x})
    assert seen[0].dtype.isnative


def test_numbers_that_numpy_wrote_without_a_dtype(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "void.npz"
    np.savez(path, a=np.array([[1, -2.5], [3, 1e30]], jnp.bfloat16), b=np.asfortranarray(np.ones((2, 3), jnp.bfloat16)))
    loaded, report = load_pretrained(path, {"a": np.zeros((2, 2), jnp.bfloat16), "b": np.zeros((2, 3), np.float32)})
    np.testing.assert_array_equal(loaded["a"], np.array([[1, -2.5], [3, 1e30]], jnp.bfloat16))
    np.testing.assert_array_equal(loaded["b"], np.ones((2, 3)))
    assert [item.changes for item in report.loaded] == [(), ("from bfloat16",)]
    with pytest.raises(ValueError, match=r"b: .* bfloat16 of b, int32 expected; a cast from real to integer"):
        load_pretrained(path, {"b": np.zeros((2, 3), np.int32)}, skip="a")
    np.savez(path, a=np.ones(2, jnp.float8_e4m3fn), b=np.zeros(1, "i1,i1"))
    with pytest.raises(ValueError) as caught:
        load_pretrained(path, {"a": np.zeros(2), "b": np.zeros(1)})
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "a: a is (2,) |V1, which is no dtype of an array here; NumPy writes what it has no name for as bytes: save it "
        "as float32, or in a .safetensors file",
        "b: b is (1,) |V2, which is no dtype of an array here",
    ]


class Bomb:
    """Executes something when it is unpickled."""

    def __reduce__(self) -> Any:
        return (pathlib.Path.touch, (pathlib.Path(self.target),))

    def __init__(self, target: pathlib.Path):
        self.target = str(target)


@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "pkl", "ckpt", "safetensors", "npz", "npy", ""])
def test_no_pickle_is_executed(tmp_path: pathlib.Path, ending: str) -> None:
    path, target = tmp_path / f"model.{ending}", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(ValueError, match=r"safetensors|BadZipFile") as caught:
        load_pretrained(path, {"a": np.zeros(2)})
    assert not target.exists()
    if ending in ("pt", "pth", "bin", "pkl", "ckpt"):
        assert "safetensors.torch.save_model" in str(caught.value)
    pickle.loads(path.read_bytes())
    assert target.exists()  # so that the test could have failed


def sharded(folder: pathlib.Path, **changes: str) -> pathlib.Path:
    """A checkpoint in two files with an index, some of whose places are changed."""
    folder.mkdir(parents=True)
    names = list(GOOD)
    places = dict.fromkeys(names[:3], "model-1-of-2.safetensors") | dict.fromkeys(names[3:], "model-2-of-2.safetensors")
    for file in set(places.values()):
        save_file({name: GOOD[name] for name in names if places[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places | changes}))
    return index


def test_parts_with_an_index(tmp_path: pathlib.Path) -> None:
    index = sharded(tmp_path / "model")
    assert_exact(load_pretrained(index, start())[0], GOOD)
    assert_exact(load_pretrained(index.parent, start())[0], GOOD)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("../model-1-of-2.safetensors", "expected the names of .safetensors files below"),
        ("{outside}", "expected the names of .safetensors files below"),
        ("a/../../x.safetensors", "expected the names of .safetensors files below"),
        ("..\\x.safetensors", "expected the names of .safetensors files below"),
        ("model.pt", "expected the names of .safetensors files below"),
        ("missing.safetensors", "the file 'missing.safetensors' of the index is missing"),
        ("link.safetensors", "lies outside of"),
        ("folder/outside.safetensors", "lies outside of"),
        (
            "model-2-of-2.safetensors",
            "do not agree: 'dense.bias' is not in the index for model-1-of-2.safetensors, "
            "'dense.bias' is not there for model-2-of-2.safetensors",
        ),
    ],
)
def test_an_index_stays_in_its_directory(tmp_path: pathlib.Path, place: str, message: str) -> None:
    outside = tmp_path / "outside.safetensors"
    save_file({"dense.bias": GOOD["dense.bias"]}, outside)
    index = sharded(tmp_path / "model", **{"dense.bias": place.replace("{outside}", str(outside))})
    (index.parent / "link.safetensors").symlink_to(outside)
    (index.parent / "folder").symlink_to(tmp_path)
    for path in (index, index.parent):
        with pytest.raises(ValueError, match=message):
            load_pretrained(path, start())


def linked(cache: pathlib.Path, blobs: str, snapshots: str) -> pathlib.Path:
    """A directory of links to the files of a model in parts, as the Hugging Face hub's cache has them."""
    blob, snapshot = cache / blobs, cache / snapshots / "1f3a"
    index = sharded(blob)
    snapshot.mkdir(parents=True)
    for i, file in enumerate([index, *index.parent.glob("*.safetensors")]):
        file.rename(blob / f"{i}f")
        (snapshot / file.name).symlink_to(f"../../{blobs}/{i}f")
    return snapshot


def test_links_within_a_root_that_is_given(tmp_path: pathlib.Path) -> None:
    """Some caches keep files elsewhere and directories of links to them."""
    folder = linked(tmp_path / "cache", "files", "models")
    with pytest.raises(ValueError, match=r"lies outside of .*give a directory that holds both as root"):
        load_pretrained(folder, start())
    assert_exact(load_pretrained(folder, start(), root=tmp_path / "cache")[0], GOOD)
    (folder / "model.safetensors.index.json").unlink()
    assert load_pretrained(folder / "model-1-of-2.safetensors", start(), new="steps|flags|empty|scale", skip="steps")[1]
    with pytest.raises(ValueError, match="lies outside of"):
        load_pretrained(folder / "model-1-of-2.safetensors", start(), root=folder)


def test_a_snapshot_of_the_hub_and_its_blobs_are_one_root(tmp_path: pathlib.Path) -> None:
    snapshot = linked(tmp_path / "hub" / "models--a--b", "blobs", "snapshots")
    (tmp_path / "own").symlink_to(snapshot)
    for path in (snapshot, snapshot / "model.safetensors.index.json", tmp_path / "own"):
        assert_exact(load_pretrained(path, start())[0], GOOD)
    # Neither a link of the snapshot nor one of the blobs leads out, nor are blobs that are a link a place to go to.
    part, outside = snapshot / "model-1-of-2.safetensors", tmp_path / "outside.safetensors"
    blob = part.resolve()
    blob.rename(outside)
    beside = snapshot.parent / "beside.safetensors"
    shutil.copy(outside, beside)
    for links in ({part: outside}, {part: beside}, {part: blob, blob: outside}):
        for link, target in links.items():
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        with pytest.raises(ValueError, match="lies outside of"):
            load_pretrained(snapshot, start())
    for link in (blob, part):
        link.unlink()
    shutil.copy(outside, blob)
    part.symlink_to(blob)
    assert_exact(load_pretrained(snapshot, start())[0], GOOD)
    (snapshot.parents[1] / "blobs").rename(tmp_path / "elsewhere")
    (snapshot.parents[1] / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="lies outside of"):
        load_pretrained(snapshot, start())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": 1}',
        '{"weight_map": {"a": 1}}',
        "\xff",
        '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
    ],
)
def test_bad_indices(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"malformed|weight_map|twice"):
        load_pretrained(path, start())


@contextlib.contextmanager
def late_reads() -> Iterator[None]:
    """Orbax closes its event loop when a read fails; of others that end later Python tells, and goes on."""
    told = sys.unraisablehook

    def hook(event: Any) -> None:
        if "Event loop is closed" not in str(event.exc_value):
            told(event)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        time.sleep(0.02)
        sys.unraisablehook = told


@pytest.fixture(scope="module")
def orbax_good(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("orbax") / "good"
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(path, {"dense": {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)}})
    return path


def orbax_start() -> dict[str, Any]:
    return {"dense": {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}}


def edited(path: pathlib.Path, change: Callable[[dict[str, Any]], Any]) -> None:
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))


def traverse(metadata: dict[str, Any]) -> None:
    """A key that leads to an array beside the checkpoint."""
    tree = metadata["tree_metadata"]
    tree["('dense', 'bias')"]["key_metadata"][0]["key"] = "../good/dense"


DAMAGE: dict[str, tuple[Callable[[pathlib.Path], Any], str]] = {
    "no metadata": (lambda path: (path / "_METADATA").unlink(), "an Orbax checkpoint has a file _METADATA"),
    "truncated metadata": (lambda path: os.truncate(path / "_METADATA", 40), "malformed"),
    "another metadata": (lambda path: (path / "_METADATA").write_text("{}"), "malformed"),
    "numbers lost": (lambda path: (path / "dense.kernel" / "0.0").unlink(), "malformed or damaged"),
    "numbers truncated": (lambda path: os.truncate(path / "dense.kernel" / "0.0", 9), "malformed or damaged"),
    "an array lost": (lambda path: shutil.rmtree(path / "dense.kernel"), "its arrays were not found"),
    "a larger shape": (
        lambda path: edited(path / "dense.bias" / ".zarray", lambda z: z.update(shape=[2**50])),
        "claims to be .*cannot hold",
    ),
    "another shape": (
        lambda path: edited(path / "dense.bias" / ".zarray", lambda z: z.update(shape=[4])),
        r"dense/bias: \(4,\) float32 of dense/bias, \(3,\) expected",
    ),
    "a key outside": (lambda path: edited(path / "_METADATA", traverse), "the key '../good/dense' leads out of"),
    "zeros left out": (
        lambda path: edited(path / "_METADATA", lambda m: m.update(store_array_data_equal_to_fill_value=False)),
        "saved without its zeros",
    ),
    "a key twice": (
        lambda path: (path / "_METADATA").write_text(
            (path / "_METADATA").read_text().replace("{", '{"use_ocdbt": true, ', 1)
        ),
        "occurs twice",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_orbax(orbax_good: pathlib.Path, tmp_path: pathlib.Path, damage: str) -> None:
    path = tmp_path / "bad"
    shutil.copytree(orbax_good, path)
    change, message = DAMAGE[damage]
    change(path)
    before = {item: item.stat().st_mtime_ns for item in path.rglob("*")}
    params = orbax_start()
    with late_reads(), pytest.raises(ValueError, match=message):
        load_pretrained(path, params)
    assert all((leaf == 0).all() for leaf in params["dense"].values())
    assert before == {item: item.stat().st_mtime_ns for item in path.rglob("*")}


def test_orbax_in_one_database(tmp_path: pathlib.Path) -> None:
    """Of what Orbax writes by default every file is removed and cut: it is refused, or was not needed."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(good, {"dense": {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)}})
    refused = set()
    for file in sorted(item.relative_to(good) for item in good.rglob("*") if item.is_file()):
        for size in (None, 0, (good / file).stat().st_size // 2):
            shutil.copytree(good, bad)
            (bad / file).unlink() if size is None else os.truncate(bad / file, size)
            try:
                with late_reads():
                    loaded, _ = load_pretrained(bad, orbax_start())
            except ValueError:
                refused.add(file.parts[-1 if len(file.parts) == 1 else -2])
            else:
                assert all((leaf == 1).all() for leaf in loaded["dense"].values())
            shutil.rmtree(bad)
    assert refused >= {"_METADATA", "manifest.ocdbt", "d"}


def test_orbax_with_links_out(orbax_good: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "linked"
    shutil.copytree(orbax_good, path)
    shutil.rmtree(path / "dense.bias")
    (path / "dense.bias").symlink_to(orbax_good / "dense.bias")
    with pytest.raises(ValueError, match="lies outside of"):
        load_pretrained(path, orbax_start())


def test_orbax_not_finished_or_further_down(orbax_good: pathlib.Path, tmp_path: pathlib.Path) -> None:
    unfinished = tmp_path / "step.orbax-checkpoint-tmp-3"
    shutil.copytree(orbax_good, unfinished)
    with pytest.raises(ValueError, match="saving was not finished"):
        load_pretrained(unfinished, orbax_start())
    shutil.copytree(orbax_good, tmp_path / "run" / "7" / "default")
    with pytest.raises(ValueError, match=r"did you mean '.*run/7/default'\?"):
        load_pretrained(tmp_path / "run", orbax_start())


def test_what_is_no_checkpoint(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file or directory"):
        load_pretrained(tmp_path / "missing.npz", {})
    with pytest.raises(ValueError, match=r"expected a .safetensors or .npz file, .*an Orbax checkpoint has a file"):
        load_pretrained(tmp_path, {})
    for name in ("a.safetensors", "b.safetensors"):
        good_file(tmp_path / name)
    with pytest.raises(ValueError, match=r"expected one checkpoint, found a.safetensors, b.safetensors"):
        load_pretrained(tmp_path, start())
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match="got neither a file nor a directory"):
        load_pretrained(tmp_path / "pipe.npz", {})


def test_what_to_do_with_the_msgpack_of_flax(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines in the error are run as they stand there."""
    import flax
    import safetensors.flax

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "flax_model.msgpack"
    tree = {"a": {"kernel": jnp.ones((2, 3), jnp.bfloat16), "bias": jnp.arange(3.0)}}
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    with pytest.raises(ValueError, match="Flax's msgpack is not read; where you trust it, write it again: ") as caught:
        load_pretrained(path, tree)
    exec(str(caught.value).split("again: ")[1], {"flax": flax, "safetensors": safetensors, "pathlib": pathlib})
    loaded, _ = load_pretrained("model.safetensors", tree)
    np.testing.assert_array_equal(loaded["a"]["kernel"], tree["a"]["kernel"])
    np.testing.assert_array_equal(loaded["a"]["bias"], tree["a"]["bias"])


def test_missing_libraries_are_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    good_file(path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"by safetensors, which is not installed: pip install 'gradxform\[tr"):
        load_pretrained(path, start())
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match="by orbax-checkpoint, which is not installed"):
        require("orbax.checkpoint", path)


def test_the_largest_claims_take_no_memory(tmp_path: pathlib.Path) -> None:
    """A zip bomb is read no further than its header when its array is not wanted, or does not fit."""
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, bomb=np.zeros(2**22, np.float32), a=np.ones(2, np.float32))
    assert path.stat().st_size < 2**16 < math.prod((2**22,))
    loaded, report = load_pretrained(path, {"a": np.zeros(2, np.float32)}, skip="bomb")
    assert report.skipped == ("bomb",) and (loaded["a"] == 1).all()
    with pytest.raises(ValueError, match=r"bomb: \(4194304,\) float32 of bomb, \(2,\) expected"):
        load_pretrained(path, {"a": np.zeros(2, np.float32), "bomb": np.zeros(2, np.float32)})
