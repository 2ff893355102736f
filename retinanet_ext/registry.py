"""A name -> object table for the parts that a config names."""

import difflib
from typing import Any

from fvcore.common.registry import Registry as _FvcoreRegistry


class Registry(_FvcoreRegistry):
    """fvcore's registry. Here an object may be registered under any name, and errors list the registered names."""

    def __init__(self, name: str, config_key: str | None = None):
        """
        Args:
            name: name of the registry.
            config_key: the config key that chooses an object; the error for an unknown name begins with it.
        """
        super().__init__(name)
        self._config_key = config_key

    def register(self, obj=None, *, name: str | None = None):
        """Register ``obj`` as ``name`` (default: its ``__name__``); without ``obj``, return a decorator that does so.

        Raises:
            KeyError: the name is taken.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, name=name)
        name = name or obj.__name__
        if name in self:
            raise KeyError(
                f"registry {self._name} already has {name!r} ({self._obj_map[name]!r}); "
                f"register {obj!r} under another name"
            )
        self._do_register(name, obj)
        return obj

    def get(self, name: str):
        """The object registered as ``name``.

        Raises:
            KeyError: no such name; the message lists the registered names, the nearest first.
        """
        if self._config_key:
            check_registered(self._config_key, name, self)
        if name not in self:
            raise KeyError(f"no object named {name!r} in registry {self._name}; registered: {_registered(self, name)}")
        return super().get(name)


def check_registered(key: str, name: str, registry: _FvcoreRegistry, hint: str = "") -> None:
    """Refuse a name that is not in ``registry``, which may be a registry of Detectron2; ``hint`` ends the message.

    Raises:
        KeyError: the message names the config key, and the registered names, the nearest first.
    """
    if name not in registry:
        raise KeyError(f"{key} is {name!r}, which is not registered; registered: {_registered(registry, name)}{hint}")


def find_registered(key: str, name: str, registry: _FvcoreRegistry, hint: str = "") -> Any:
    """The object that ``registry`` has as ``name``; arguments and errors are those of :func:`check_registered`."""
    check_registered(key, name, registry, hint)
    return registry.get(name)


def _registered(registry: _FvcoreRegistry, wanted: str) -> str:
    names = [name for name, _ in registry]
    near = difflib.get_close_matches(str(wanted), names, n=max(1, len(names)), cutoff=0.0)
    return ", ".join(near) or "none; the module that defines it may not be imported yet"
