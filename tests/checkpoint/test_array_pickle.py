import io
import os
import pickle
import pickletools
from collections import OrderedDict

import numpy as np
import pytest

from retinanet_ext.checkpoint.array_pickle import load_array_pickle

_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_FROMBUFFER = np.zeros(1).__reduce_ex__(5)[0]
_SCALAR = np.float64(0).__reduce__()[0]


def _load(data):
    return load_array_pickle(io.BytesIO(data))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i8").reshape(2, 3)),
        np.array(7, np.uint8),
        np.zeros((0, 4), np.float16),
        np.array([True, False]),
        np.arange(12.0)[::3],
    ],
    ids=["float32", "fortran-big-endian", "no-dimension", "empty", "bool", "strided"],
)
def test_arrays_come_back(array, protocol):
    found = _load(pickle.dumps(array, protocol))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    assert found.flags.writeable


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_containers_come_back(protocol):
    data = {"a": OrderedDict(b=[np.float64(0.5), (1, "x", None)]), "c": b"bytes", 4: True}
    assert _load(pickle.dumps(data, protocol)) == data


def test_the_same_dtype_may_serve_many_arrays():
    arrays = {str(k): np.full(k, k, np.float32) for k in range(4)}
    assert {name: array.tolist() for name, array in _load(pickle.dumps(arrays)).items()} == {
        name: array.tolist() for name, array in arrays.items()
    }


@pytest.mark.parametrize("ours, theirs", [(b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core.")])
def test_both_spellings_of_numpy_are_read(ours, theirs):
    # Protocol 0 spells names as plain text.
    text = pickle.dumps(np.full(2, 3.0), protocol=0).replace(ours, theirs)
    assert theirs in text
    assert _load(text).tolist() == [3, 3]


def test_arrays_of_python_2_are_read():
    # Written by hand in Python 2's form: the bytes of float32 1.0, 2.0 as a string of protocol 1.
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    data = head + b"(K\x01(K\x02t" + dtype + b"I00\nU\x08\x00\x00\x80?\x00\x00\x00@tb."
    pickletools.dis(data, out=io.StringIO())
    assert _load(data).tolist() == [1, 2]


class _Calls:
    def __init__(self, function, *args, state=None):
        self.parts = (function, args, state)

    def __reduce__(self):
        return self.parts


_FORGED_STATE = (3, "<", None, ("f0",), {"f0": (np.dtype("i8"), 0)}, 8, 8, 0)


@pytest.mark.parametrize(
    "data",
    [
        _Calls(os.system, "true"),
        _Calls(eval, "1"),
        _Calls(getattr, "x", "upper"),
        _Calls(np.ndarray, (1,), np.dtype("i8"), b"12345678"),
        _Calls(_FROMBUFFER, b"12345678", np.dtype("O"), (1,), "C"),
        _Calls(_SCALAR, np.dtype("O"), b"12345678"),
        _Calls(_RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), np.dtype("O"), False, b"12345678")),
        _Calls(_FROMBUFFER, b"123", np.dtype("i8"), (1,), "C"),
        _Calls(_FROMBUFFER, b"12345678", np.dtype("i8"), (2,), "C"),
        np.array([{}], dtype=object),
        np.zeros(1, dtype=[("a", "i4")]),
    ],
    ids=["system", "eval", "getattr", "ndarray", "object-buffer", "object-scalar", "object-state", "short",
         "too-long", "objects", "structured"],
)  # fmt: skip
def test_anything_else_is_refused(data):
    text = pickle.dumps(data)
    with pytest.raises((pickle.UnpicklingError, ValueError, TypeError)):
        _load(text)


def test_a_forged_type_does_not_change_the_array():
    # The forged fields, which a numpy.dtype would read at an offset, are ignored.
    forged = _Calls(np.dtype, "i8", state=_FORGED_STATE)
    array = _Calls(_RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), forged, False, b"\1" + b"\0" * 7))
    assert _load(pickle.dumps(array)).tolist() == [1]


def test_a_large_number_of_a_remembered_object_is_refused_before_memory_is_taken():
    # Two billion slots would take 16 GB.
    with pytest.raises(pickle.UnpicklingError, match="numbers an object 2147483646"):
        _load(b"\x80\x02]r" + (2**31 - 2).to_bytes(4, "little") + b".")
