"""Owns: a pickle is read as plain values; no code in it runs, and no file takes much memory or time."""

import functools
import io
import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest
from boundary_layouts import FOLDER, golden

from moss_vllm.data.boundaries import pickles
from moss_vllm.data.boundaries.pickles import read_pickle
from moss_vllm.data.rows import BadRow

VALUES = {
    "text": "é" * 300,
    "numbers": [0, 255, 256, 65536, -1, -(2**31), 2**40, 1.5, float("inf")],
    "others": [None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), b"bytes", [], {}],
    "again": ["text", "text"],
    "deep": {"a": {"b": [[1], [2, [3]]]}},
}


def refusal(path):
    with pytest.raises(BadRow) as caught:
        read_pickle(path)
    assert caught.value.file == str(path) and caught.value.row == "file"
    return caught.value.reason


def written(tmp_path, content):
    path = tmp_path / "made.pkl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_of_each_protocol_come_back(tmp_path, protocol):
    values = dict(VALUES)
    if protocol == 2:  # which writes bytes as a call
        values["others"] = values["others"][:8]
    assert read_pickle(written(tmp_path, pickle.dumps(values, protocol))) == values
    assert list(read_pickle(written(tmp_path, pickle.dumps(values, protocol)))) == list(values)


def test_the_notebooks_own_file_is_read_with_its_numpy_scalars():
    assert read_pickle(FOLDER / "ground_truth_2022.pkl") == golden("ground_truth")["ground_truth_2022"]


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_scalars_become_floats_whichever_numpy_wrote_them(tmp_path, protocol, module):
    content = pickle.dumps([np.float64(0.1), np.float64(-7.0), 3], protocol)
    there = np.float64(0.1).__reduce__()[0].__module__
    if protocol == 3:
        content = content.replace(f"c{there}\n".encode(), f"c{module}\n".encode())
    else:
        old, new = (bytes([len(name)]) + name.encode() for name in (there, module))
        content = content.replace(b"\x8c" + old, b"\x8c" + new)
    found = read_pickle(written(tmp_path, content))
    assert found == [0.1, -7.0, 3] and [type(one) for one in found] == [float, float, int]


class Call:
    """Calls a function when a pickle of it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_no_global_but_the_two_is_read_and_nothing_runs(tmp_path):
    mark = tmp_path / "code-has-run"
    for function, name in ((open, "io.open"), (eval, "builtins.eval"), (getattr, "builtins.getattr")):
        reason = refusal(written(tmp_path, pickle.dumps({"a": [Call(function, str(mark), "w")]})))
        assert f"'{name}', which is code and not data" in reason and not mark.exists()
    for array, name in (
        (np.zeros(3), "multiarray._reconstruct"),
        (io.BytesIO(), "_io.BytesIO"),
        ({1, 2}, "builtins.set"),
        (1j, "builtins.complex"),
    ):
        assert f"{name}'" in refusal(written(tmp_path, pickle.dumps(array, 3)))
    assert "'numpy.dtype.x'" in refusal(written(tmp_path, b"\x80\x03cnumpy\ndtype.x\n."))


@pytest.mark.parametrize("value, kind", [(np.float32(1), "f4"), (np.int64(1), "i8"), (np.str_("a"), "U1")])
def test_scalars_of_another_type_are_refused(tmp_path, value, kind):
    told = f"has NumPy numbers of type '{kind}', where 'f8' is needed"
    assert told in refusal(written(tmp_path, pickle.dumps([value])))


SCALAR = b"cnumpy.core.multiarray\nscalar\n"
DTYPE = b"cnumpy\ndtype\nX\x02\x00\x00\x00f8K\x00K\x01\x87R"


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "is empty"),
        (b"(dp0\n.", "is no pickle of protocol 2 to 5"),
        (b"PK\x03\x04", "is no pickle"),
        (b"\x80\x04", "ends or breaks off at byte 2 of 2"),
        (pickle.dumps(VALUES)[:-40], "ends or breaks off"),
        (b"\x80\x04.", "does not end with one value"),
        (b"\x80\x04NN.", "does not end with one value"),
        (b"\x80\x04(.", "holds a type where a value is needed"),
        (b"\x80\x04" + DTYPE + b".", "holds a type where a value is needed"),
        (b"\x80\x04" + DTYPE + b"(K\x03X\x01\x00\x00\x00>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",
         "byte order '>', where '<' is needed"),
        (b"\x80\x04" + SCALAR + DTYPE + b"C\x04aaaa\x86R.", "is damaged: REDUCE at byte"),
        (b"\x80\x04" + SCALAR + b"NC\x08aaaaaaaa\x86R.", "is damaged: REDUCE"),
        (b"\x80\x04NNR.", "is damaged: REDUCE"),
        (b"\x80\x04Nh\x07.", "is damaged: BINGET at byte 4 has nothing"),
        (b"\x80\x04}K\x01K\x02s.", "has a int as the key of a dict"),
        (b"\x80\x04}(Nu.", "is damaged: SETITEMS"),
        (b"\x80\x04NNa.", "is damaged: APPEND"),
        (b"\x80\x04X\x02\x00\x00\x00\xff\xfe.", "is damaged: BINUNICODE"),
        (b"\x80\x04e.", "ends or breaks off"),
        (b"\x80\x04\x8c\x01a\x8c\x01b\x81.", "has the opcode NEWOBJ at byte 8, which dicts, lists, texts"),
        (b"\x80\x04I1\n.", "has the opcode INT"),
        (b"\x80\x04P1\n.", "has the opcode PERSID"),
        (b"\x80\x04\x82\x01.", "has the opcode EXT1"),
        (b"\x80\x04\xfe.", "has the byte 254"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", "has the opcode BYTEARRAY8"),
    ],
)  # fmt: skip
def test_what_is_no_pickle_of_plain_values_is_told(tmp_path, content, told):
    assert told in refusal(written(tmp_path, content))


HOSTILE = {
    "text of a terabyte": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a.",
    "bytes of four gigabytes": b"\x80\x04B\xff\xff\xff\xffa.",
    "a memo of four billion": b"\x80\x04Nr\xff\xff\xff\xffN.",
    "lists in lists": b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "tuples in tuples": b"\x80\x04)" + b"\x85" * 50_000 + b".",
    "a tuple in tuples as a key": b"\x80\x04})" + b"\x85" * 50_000 + b"Ns.",
    "a deep type of numbers": b"\x80\x04cnumpy\ndtype\n)" + b"\x85" * 50_000 + b"K\x00K\x01\x87R.",
    "a deep name": b"\x80\x04)" + b"\x85" * 50_000 + b"\x8c\x01a\x93.",
    "a list that holds itself": b"\x80\x04]\x94h\x00a.",
    "ten lists of ten lists, and so on": pickle.dumps(
        functools.reduce(lambda one, _: [one] * 10, range(12), [])
    ),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_cost_little(tmp_path, content):
    path = written(tmp_path, content)
    tracemalloc.start()
    start = time.monotonic()
    refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20 and time.monotonic() - start < 30
    tracemalloc.stop()


def test_size_steps_and_depth_have_limits(tmp_path, monkeypatch):
    path = written(tmp_path, pickle.dumps(list(range(100))))
    monkeypatch.setattr(pickles, "MAX_PICKLE_BYTES", 100)
    assert "has 216 bytes; at most 100 are read" in refusal(path)
    monkeypatch.undo()
    monkeypatch.setattr(pickles, "MAX_STEPS", 50)
    assert "needs more than 50 steps" in refusal(path)
    monkeypatch.undo()
    monkeypatch.setattr(pickles, "MAX_DEPTH", 3)
    assert read_pickle(written(tmp_path, pickle.dumps([[[]]]))) == [[[]]]
    assert "is nested more than 3 deep" in refusal(written(tmp_path, pickle.dumps([[[[]]]])))


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    assert "cannot be read (No such file" in refusal(tmp_path / "gone.pkl")
    assert "cannot be read (Is a directory)" in refusal(tmp_path)
