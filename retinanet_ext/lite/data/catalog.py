"""Datasets by name: ``DatasetCatalog`` maps a name to the records, ``MetadataCatalog`` to the metadata."""

import difflib
from collections import UserDict
from collections.abc import Callable
from typing import Any


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"dataset {name!r} is not registered.{hint} Registered: {', '.join(known) or 'none'}"


class _Catalog(UserDict):
    def list(self) -> list[str]:
        """All names that have an entry."""
        return list(self)

    def remove(self, name: str) -> None:
        """Forget ``name``. An unknown name is a ``KeyError``."""
        if name not in self:
            raise KeyError(_unknown(name, self.list()))
        del self[name]

    def __repr__(self) -> str:
        return f"{type(self).__name__.lstrip('_')}({', '.join(self)})"


class _DatasetCatalog(_Catalog):
    """Dataset names, each with a function that returns the records of that dataset.

    Every :meth:`get` calls the function again; it must return the same records in the same order each time.
    """

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        """Make ``func``, which takes nothing and returns the records, available as ``name``.

        Raises:
            TypeError: ``func`` is not callable.
            ValueError: ``name`` is taken.
        """
        if not callable(func):
            raise TypeError(
                f"dataset {name!r} needs a function that returns its records, got {type(func).__name__}; "
                "wrap a list as `lambda: records`"
            )
        if name in self:
            raise ValueError(
                f"dataset {name!r} is registered already; choose another name, "
                f"or call DatasetCatalog.remove({name!r}) first"
            )
        self[name] = func

    def get(self, name: str) -> list[dict]:
        """Records of the dataset ``name``. An unknown name is a ``KeyError`` that lists the known ones."""
        if name not in self:
            raise KeyError(_unknown(name, self.list()))
        return self[name]()


class Metadata:
    """Properties of one dataset as attributes: ``thing_classes``, ``json_file``, ...

    An attribute is set once. Setting it again to an equal value does nothing; another value is a ``ValueError``,
    because code that has read the first value would silently disagree with code that reads the second.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __setattr__(self, key: str, value: Any) -> None:
        values = self.__dict__
        if key in values and values[key] != value:
            raise ValueError(
                f"{key!r} of dataset {values['name']!r} is set already and cannot change: "
                f"it is {values[key]!r}, the new value is {value!r}. Register the other data under another name, "
                f"or call MetadataCatalog.remove({values['name']!r}) first"
            )
        values[key] = value

    def __getattr__(self, key: str) -> Any:
        values = self.__dict__
        raise AttributeError(
            f"the metadata of dataset {values.get('name')!r} has no {key!r}; it has {', '.join(values)}. "
            "Some entries are set only when the dataset is loaded by DatasetCatalog.get"
        )

    def set(self, **values: Any) -> "Metadata":
        """Set several attributes; returns ``self``."""
        for key, value in values.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute ``key``, or ``default``."""
        return self.__dict__.get(key, default)

    def as_dict(self) -> dict[str, Any]:
        """All attributes, ``name`` included, as a new dict."""
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return f"Metadata({', '.join(f'{key}={value!r}' for key, value in self.__dict__.items())})"


class _MetadataCatalog(_Catalog):
    """Metadata by dataset name; the first :meth:`get` of a name creates an empty entry."""

    def get(self, name: str) -> Metadata:
        """The :class:`Metadata` of ``name``, the same object at every call."""
        if name not in self:
            self[name] = Metadata(name)
        return self[name]


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
