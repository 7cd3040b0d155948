import copyreg
import os
import pickle
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_fairseq.data import safe_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "file.pkl"
    path.write_bytes(content)
    return path


@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_comes_back(tmp_path_factory: pytest.TempPathFactory, value: Any, protocol: int) -> None:
    path = write(tmp_path_factory.mktemp("plain"), pickle.dumps(value, protocol))
    assert safe_pickle.load(path) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("factory", [float, int, list, dict, set, None])
def test_defaultdict_of_a_builtin_comes_back(tmp_path: Path, factory: Any, protocol: int) -> None:
    original = defaultdict(factory, {("a", "<eos>"): 3.0})
    loaded = safe_pickle.load(write(tmp_path, pickle.dumps(original, protocol)))
    assert (loaded, type(loaded), loaded.default_factory) == (original, defaultdict, factory)


def test_python2_pickle_is_read_as_latin1(tmp_path: Path) -> None:
    # What Python 2 writes for {'document_frequency': defaultdict(float, {('caf\xe9',): 2.0}), 'ref_len': 7}.
    content = (
        b"\x80\x02}q\x01(U\x12document_frequencyq\x02ccollections\ndefaultdict\nq\x03c__builtin__\nfloat\nq\x04"
        b"\x85q\x05Rq\x06U\x04caf\xe9q\x07\x85q\x08G@\x00\x00\x00\x00\x00\x00\x00sU\x07ref_lenq\tK\x07u."
    )
    assert safe_pickle.load(write(tmp_path, content)) == {
        "document_frequency": {("café",): 2.0},
        "ref_len": 7,
    }


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Calls(os.system, "touch owned"), r"(posix|nt)\.system"),
        ([{"a": (1, Calls(os.system, "touch owned"))}], r"(posix|nt)\.system"),
        (Calls(defaultdict, Calls(getattr, defaultdict, "__class__")), r"(builtins|__builtin__)\.getattr"),
        (Calls(list, Calls(zip, Calls(eval, "1"))), r"(builtins|__builtin__|itertools)\.i?zip"),
        (OrderedDict(a=1), r"collections\.OrderedDict"),
        (Counter("aa"), r"collections\.Counter"),
        (np.float64(1.0), r"numpy.*"),
        (defaultdict(np.float64), r"numpy.*"),
        (Path("x"), r"pathlib.*"),
    ],
)
def test_everything_else_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, name: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, pickle.dumps(value, protocol))
    with pytest.raises(safe_pickle.UnsafePickleError, match=rf"{path}: .*'{name}'"):
        safe_pickle.load(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"(S'touch owned'\nios\nsystem\n.",  # INST
        b"\x80\x02(cos\nsystem\nU\x0btouch ownedo.",  # OBJ
        b"\x80\x04\x8c\x0bcollections\x8c\x14defaultdict.__base__\x93.",  # an attribute of what is allowed
        b"\x80\x04\x8c\x08builtins\x8c\x0eint.from_bytes\x93.",
        b"\x80\x02cbuiltins\nfloat\ncbuiltins\nsetattr\n.",
        b"Pmodel\n.",  # persistent ids
        b"\x80\x02K\x07Q.",
    ],
)
def test_handwritten_opcodes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(safe_pickle.UnsafePickleError, match="file.pkl: refused"):
        safe_pickle.load(write(tmp_path, content))
    assert not (tmp_path / "owned").exists()


def test_extension_codes_are_refused(tmp_path: Path) -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        with pytest.raises(safe_pickle.UnsafePickleError, match=r"os\.system"):
            safe_pickle.load(write(tmp_path, b"\x80\x02\x82\xf0."))
    finally:
        copyreg.remove_extension("os", "system", 240)


@pytest.mark.parametrize("target", [b"float", b"dict"])
def test_build_cannot_change_a_class(tmp_path: Path, target: bytes) -> None:
    before = dict(vars(float)), dict(vars(dict))
    state = b"}U\x01aK\x01s"
    for content in (state, b"N" + state + b"\x86"):  # an instance dictionary; slots
        with pytest.raises(pickle.UnpicklingError):
            safe_pickle.load(write(tmp_path, b"\x80\x02c__builtin__\n" + target + b"\n" + content + b"b."))
    assert before == (dict(vars(float)), dict(vars(dict)))


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_by_pickle.py").write_text("collections = 1")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(safe_pickle.UnsafePickleError, match=r"'imported_by_pickle\.collections'"):
        safe_pickle.load(write(tmp_path, b"\x80\x02cimported_by_pickle\ncollections\n."))
    assert "imported_by_pickle" not in sys.modules


def test_truncation_anywhere_names_the_file(tmp_path: Path) -> None:
    content = pickle.dumps(defaultdict(float, {("a", "dog"): 1.5, ("b",): 2}), protocol=2)
    for length in range(len(content)):
        path = write(tmp_path, content[:length])
        with pytest.raises(pickle.UnpicklingError, match=f"{path}"):
            safe_pickle.load(path)


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        safe_pickle.load(tmp_path / "absent.pkl")
