"""Reads pickles of numeric numpy arrays in plain containers, and nothing else.

A pickle is a program. Forbidding all but numpy's own functions is not enough: ``numpy.ndarray`` over a buffer
of bytes that are taken for object pointers, or a ``numpy.dtype`` with a forged state, reach any memory. So no
function that a file names is called. The few names that numpy writes stand for the methods below, which build
arrays from checked parts.
"""

import pickle
import re
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np

# Booleans, integers, floats, complex numbers, with their size in bytes.
_NUMERIC_TYPE = re.compile(r"[biufc]\d{1,2}")


def load_array_pickle(file: BinaryIO) -> Any:
    """The content of a pickle, written by any protocol and by numpy 1 or 2 (Python 2 too).

    Raises:
        Exception: of any type, if the file is damaged or asks for anything but arrays and plain containers.
    """
    return _finish(_ArrayUnpickler(file, encoding="latin1").load())


class _Dtype:
    """Stands for a ``numpy.dtype`` while its parts come in."""

    def __init__(self, name: str):
        if not _NUMERIC_TYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"it has an array of type {name!r}, which is not numeric")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for an array while its parts come in."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran_order, data = state
        self.value = _array(data, dtype, shape, "F" if fortran_order else "C")


def _array(data: bytes | str, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    # Python 2 had no bytes: its arrays come as text, one character a byte.
    data = data.encode("latin1") if isinstance(data, str) else data
    # A copy, since the buffer cannot be written to, and torch wants arrays that can.
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order).copy(order=order)


def _finish(value: Any) -> Any:
    """Put the arrays in the places of what stood for them."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return type(value)((key, _finish(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_finish(item) for item in value)
    return value


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Files of numpy 1 and 2 differ in this part of the name.
        full_name = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        # Methods, not functions: a pickle can set attributes of what it gets, and methods let it set none.
        known = {
            "numpy.core.multiarray._reconstruct": self._reconstruct,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.core.numeric._frombuffer": self._frombuffer,
            "numpy.dtype": self._dtype,
            "numpy.ndarray": "numpy.ndarray",  # only handed on, to `_reconstruct`
            "collections.OrderedDict": self._ordered_dict,
            "_codecs.encode": self._encode,
            "__builtin__.bytes": self._no_bytes,
        }
        if full_name not in known:
            raise pickle.UnpicklingError(f"it asks for {full_name}")
        return known[full_name]

    def _reconstruct(self, *_: Any) -> _Array:
        return _Array()

    def _scalar(self, dtype: _Dtype, data: bytes | str) -> np.generic:
        return _array(data, dtype, (1,), "C")[0]

    def _frombuffer(self, data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str, *_: Any) -> np.ndarray:
        return _array(data, dtype, shape, order)

    def _dtype(self, name: str, *_: Any) -> _Dtype:
        return _Dtype(name)

    def _ordered_dict(self) -> OrderedDict:
        return OrderedDict()

    def _encode(self, text: str, encoding: str) -> bytes:
        # How protocols 0 to 2 spell bytes; they know no other encoding.
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it encodes text as {encoding}")
        return text.encode("latin1")

    def _no_bytes(self) -> bytes:
        # How protocols 0 to 2 spell empty ones.
        return b""
