"""What is known about the objects of one image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class Instances:
    """N objects of one image: named fields, each of length N, indexed together.

    A field is anything with a length and row indexing: a tensor, `Boxes`, a list. Attribute access reads and
    writes fields (`instances.scores = ...`); names that begin with an underscore are plain attributes.

        instances = Instances((480, 640), scores=torch.rand(5), pred_classes=torch.zeros(5))
        confident = instances[instances.scores > 0.5]

    Attributes:
        image_size: (height, width) in pixels; read-only.
    """

    def __init__(self, image_size: tuple[int, int], **fields: Any):
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in fields.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        store = object.__setattr__ if name[:1] == "_" else Instances.set
        store(self, name, value)

    def __getattr__(self, name: str) -> Any:
        # Python calls this for names that are not ordinary attributes: fields, and any name during unpickling.
        fields = vars(self).get("_fields", {})
        try:
            return fields[name]
        except KeyError:
            raise AttributeError(f"Instances have no field {name!r}; fields: {list(fields)}") from None

    def set(self, name: str, value: Any) -> None:
        """Sets a field.

        Raises:
            ValueError: its length is not that of the other fields.
        """
        if self._fields and len(value) != len(self):
            raise ValueError(f"field {name!r} has length {len(value)}, but these Instances have length {len(self)}")
        if not self._fields:
            len(value)  # the first field decides the length, so it needs one
        self._fields[name] = value

    def has(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str) -> Any:
        """The field. KeyError if it does not exist."""
        return self._fields[name]

    def remove(self, name: str) -> None:
        del self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """Name -> value of all fields: the object's own dictionary, not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """A new object; each field that has a method `to` is replaced by its `to(...)`."""
        return self._like(
            (name, value.to(*args, **kwargs) if hasattr(value, "to") else value) for name, value in self._fields.items()
        )

    def _like(self, items) -> Instances:
        result = Instances(self._image_size)
        for name, value in items:
            result.set(name, value)
        return result

    def __getitem__(self, item: int | slice | torch.Tensor) -> Instances:
        """Applies the index to every field. An integer selects one object and keeps the length-1 axis."""
        if isinstance(item, (int, np.integer)):
            if not -len(self) <= item < len(self):
                raise IndexError(f"index {item} is out of range for {len(self)} Instances")
            start = int(item) % len(self)
            item = slice(start, start + 1)
        return self._like((name, value[item]) for name, value in self._fields.items())

    def __len__(self) -> int:
        """N. NotImplementedError without any field: the length is then unknown, not zero."""
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without any field have no length")

    def __iter__(self):
        raise NotImplementedError("Instances cannot be iterated; iterate over a field, or index with i:i+1")

    @staticmethod
    def cat(instance_lists: list[Instances]) -> Instances:
        """One `Instances` with the objects of all, in order. A list of one element returns that element itself.

        Raises:
            ValueError: an empty list, different image sizes or fields, or a field of a type that
                cannot be concatenated (legal: tensor, list, or a type with its own `cat`).
        """
        if len(instance_lists) == 0:
            raise ValueError("Instances.cat needs at least one Instances, found an empty list")
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        for other in instance_lists[1:]:
            if other.image_size != first.image_size:
                raise ValueError(f"image sizes differ: {first.image_size} and {other.image_size}")
            if other._fields.keys() != first._fields.keys():
                raise ValueError(f"fields differ: {sorted(first._fields)} and {sorted(other._fields)}")
        return first._like(
            (name, _cat_field(name, [instances.get(name) for instances in instance_lists])) for name in first._fields
        )

    def __repr__(self) -> str:
        count = len(self) if self._fields else "unknown"
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return f"Instances(num_instances={count}, image_height={height}, image_width={width}, fields=[{fields}])"


def _cat_field(name: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values)
    if isinstance(first, list):
        return [item for value in values for item in value]
    if hasattr(type(first), "cat"):
        return type(first).cat(values)
    raise ValueError(
        f"field {name!r} of type {type(first).__name__} cannot be concatenated; make it a tensor or a list"
    )
