"""Reads pickles of numeric numpy arrays in plain containers, and nothing else.

A pickle is a program. Allowing only numpy's own functions is not safe enough: ``numpy.ndarray`` can take the bytes
of a buffer for object pointers, and ``numpy.dtype`` accepts a forged state; both give access to any memory. So no
function that a file names is called. The few names that numpy writes are mapped to the methods below, which build
arrays from checked parts.
"""

import pickle
import pickletools
import re
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np

# Booleans, integers, floats, complex numbers, with their size in bytes.
_NUMERIC_TYPE = re.compile(r"[biufc]\d{1,2}")


def load_array_pickle(file: BinaryIO) -> Any:
    """Read a pickle of any protocol, written with numpy 1 or 2, by Python 3 or 2.

    Raises:
        Exception: any type, if the file is damaged or asks for anything but arrays and plain containers.
    """
    _refuse_large_memo(file)
    return _finish(_ArrayUnpickler(file, encoding="latin1").load())


def _refuse_large_memo(file: BinaryIO) -> None:
    """Refuse numbers of remembered objects beyond those in the file: Python makes room for all numbers below."""
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= argument <= max(count, 255):
            raise pickle.UnpicklingError(f"the pickle numbers an object {argument}, more than it has objects")
    file.seek(start)


class _Dtype:
    """Placeholder for a ``numpy.dtype`` until all of its parts are read."""

    def __init__(self, name: str):
        if not _NUMERIC_TYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"the pickle has an array of type {name!r}, which is not numeric")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Placeholder for an array until all of its parts are read."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran_order, data = state
        self.value = _array(data, dtype, shape, "F" if fortran_order else "C")


def _array(data: bytes | str, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    # Python 2 had no type for bytes and wrote them as text, one character per byte.
    data = data.encode("latin1") if isinstance(data, str) else data
    # Copied, because the buffer is read-only and torch wants writable arrays.
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order).copy(order=order)


def _finish(value: Any) -> Any:
    """Replace all placeholders in `value` by their arrays."""
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
        # Methods, not functions: a pickle can set attributes on the objects that it gets, but not on methods.
        known = {
            "numpy.core.multiarray._reconstruct": self._reconstruct,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.core.numeric._frombuffer": self._frombuffer,
            "numpy.dtype": self._dtype,
            "numpy.ndarray": "numpy.ndarray",  # only passed on to `_reconstruct`
            "collections.OrderedDict": self._ordered_dict,
            "_codecs.encode": self._encode,
            "__builtin__.bytes": self._empty_bytes,
        }
        if full_name not in known:
            raise pickle.UnpicklingError(f"the pickle calls {full_name}, which is refused")
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
        # Protocols 0 to 2 write bytes this way, always with this encoding.
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"the pickle encodes text as {encoding}; legal: latin1")
        return text.encode("latin1")

    def _empty_bytes(self) -> bytes:
        # Protocols 0 to 2 write empty bytes this way.
        return b""
