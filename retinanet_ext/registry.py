"""A name -> object table for the parts that a config names."""

import difflib

from fvcore.common.registry import Registry as _FvcoreRegistry


class Registry(_FvcoreRegistry):
    """fvcore's registry with names of one's choice, and errors that say what would have been right."""

    def register(self, obj=None, *, name: str | None = None):
        """Register ``obj`` as ``name`` (default: its ``__name__``); without ``obj``, a decorator that does so.

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
            KeyError: no such name; lists the registered ones, the nearest first.
        """
        if name not in self:
            near = difflib.get_close_matches(str(name), self._obj_map, n=max(1, len(self._obj_map)), cutoff=0.0)
            legal = ", ".join(near) or "none; the module that defines it may not be imported yet"
            raise KeyError(f"no object named {name!r} in registry {self._name}; registered: {legal}")
        return super().get(name)
