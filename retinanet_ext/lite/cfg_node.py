"""Configuration trees read from YAML, and classes that can be built from one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode as _FvcoreCfgNode
from yacs.config import CfgNode as _YacsCfgNode

from retinanet_ext.config.yaml_files import flat_items, flat_keys, read_config_file, unknown_key_message

from .other_detectors import is_of_other_detectors, keep_keys_of_other_detectors, refuse_other_detectors


class CfgNode(_FvcoreCfgNode):
    """A tree of config keys with attribute access: `cfg.SOLVER.BASE_LR`.

    A merge accepts only existing keys, and only values of the key's type (a list is accepted for a tuple, and
    anything for None). Merging a file or a tree also keeps the keys that only other detectors of Detectron2 read.
    Every merge error names the key, and the file if the key came from one.
    """

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Overrides keys by those of a YAML file and its bases; see `yaml_files.read_config_file`.

        Args:
            cfg_filename: the file.
            allow_unsafe: has no effect; files are always read by the safe loader.

        Raises:
            KeyError: a key that does not exist; the message names the file and the nearest legal keys.
            ValueError: a value of the wrong type. Errors of reading are those of `read_config_file`.
        """
        loaded = type(self)(read_config_file(cfg_filename))
        try:
            self.merge_from_other_cfg(loaded)
        except (KeyError, ValueError) as error:
            raise type(error)(f"{cfg_filename}: {error.args[0]}") from None

    def merge_from_other_cfg(self, cfg_other: _YacsCfgNode) -> None:
        """Overrides keys by those of another tree. Raises KeyError and ValueError as `merge_from_file` does."""
        self._check_keys_exist(cfg_other, self, "")
        refuse_other_detectors(flat_items(cfg_other))
        self.keep_keys_of_other_detectors(cfg_other)
        super().merge_from_other_cfg(cfg_other)

    def keep_keys_of_other_detectors(self, loaded: dict) -> None:
        """Adds keys that `lite` lacks because only other detectors read them; see `other_detectors.py`."""
        if not self.is_frozen():
            keep_keys_of_other_detectors(self, loaded)

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        """Overrides keys by `["KEY.A", value, "KEY.B", value, ...]`; strings are read as Python literals.

        Raises:
            KeyError: a key that does not exist; the message names the nearest legal keys.
            ValueError: a value of the wrong type, or a key without a value.
        """
        if len(cfg_list) % 2:
            raise ValueError(f"overrides must be pairs of KEY VALUE; found an odd number of items: {cfg_list}")
        for key in cfg_list[0::2]:
            node: Any = self
            for part in str(key).split("."):
                if not isinstance(node, dict) or part not in node:
                    raise KeyError(self._unknown_key_message(key))
                node = node[part]
        values = map(self._decode_cfg_value, cfg_list[1::2])
        refuse_other_detectors(zip(cfg_list[::2], values))
        super().merge_from_list(cfg_list)

    def _check_keys_exist(self, other: dict, node: _YacsCfgNode, prefix: str) -> None:
        if node.is_new_allowed():
            return
        for key, value in other.items():
            full_key = prefix + key
            if self.key_is_deprecated(full_key) or self.key_is_renamed(full_key):
                continue
            if key not in node and is_of_other_detectors(full_key):
                continue
            if key not in node:
                raise KeyError(self._unknown_key_message(full_key))
            if isinstance(value, dict) and isinstance(node[key], _YacsCfgNode):
                self._check_keys_exist(value, node[key], full_key + ".")

    def _unknown_key_message(self, full_key: str) -> str:
        return unknown_key_message(full_key, flat_keys(self))


def get_cfg() -> CfgNode:
    """A new copy of the default config."""
    from .config_defaults import default_config  # imported here because that module builds its tree from CfgNode

    return default_config()


def configurable(init_func: Callable | None = None, *, from_config: Callable | None = None) -> Callable:
    """Lets callers of a class or function pass a config in place of explicit arguments.

    A class decorates `__init__` and has a classmethod `from_config(cls, cfg, ...)` that returns the keyword
    arguments of `__init__`; a function is decorated by `@configurable(from_config=...)`. Legal calls are then:

        Part(a=1, b=2)          # plain call
        Part(cfg)               # arguments from from_config(cfg); also cfg=cfg
        Part(cfg, a=1)          # the same with a overridden; parameters of from_config are passed to it instead

    Raises:
        TypeError: something else is decorated, `from_config` is not a classmethod, or its first parameter is not `cfg`.
        AttributeError: a class, when it is called, has no `from_config`.
    """
    if init_func is None and inspect.isfunction(from_config):
        _check_from_config(from_config)
        return lambda function: _also_from_config(function, from_config)
    if inspect.isfunction(init_func) and init_func.__name__ == "__init__" and from_config is None:
        return _also_from_config(init_func, None)
    raise TypeError(
        "use @configurable on __init__, or @configurable(from_config=FUNCTION) on a function; found "
        f"{init_func!r}, from_config={from_config!r}"
    )


def _also_from_config(function: Callable, from_config: Callable | None) -> Callable:
    """Wraps ``function`` so that it also takes a config in place of its arguments.

    Args:
        from_config: returns the arguments for a config; None: ``function`` is an ``__init__`` whose class has that
            method.
    """
    num_self = 0 if from_config else 1

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        self_args, args = args[:num_self], args[num_self:]
        # Checked in every call, so that a class without a legal from_config does not fail at its first config only.
        arguments_of = from_config or _method_from_config(self_args[0])
        if isinstance(args[0] if args else kwargs.get("cfg"), _YacsCfgNode):
            kwargs = _arguments(arguments_of, args, kwargs)
            args = ()
        return function(*self_args, *args, **kwargs)

    if from_config:
        call.from_config = from_config
    return call


def _method_from_config(instance: Any) -> Callable:
    method = getattr(type(instance), "from_config", None)
    if not inspect.ismethod(method):
        error = AttributeError if method is None else TypeError
        raise error(f"{type(instance).__name__} needs a classmethod from_config(cls, cfg, ...)")
    _check_from_config(method)
    return method


def _check_from_config(from_config: Callable) -> None:
    if next(iter(inspect.signature(from_config).parameters), None) != "cfg":
        raise TypeError(f"{from_config.__qualname__} must take `cfg` as its first argument")


def _arguments(from_config: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that ``from_config`` returns, overridden by those of ``kwargs`` that it does not take itself."""
    parameters = inspect.signature(from_config).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return from_config(*args, **kwargs)
    names = {parameter.name for parameter in parameters}
    arguments = from_config(*args, **{name: value for name, value in kwargs.items() if name in names})
    return {**arguments, **{name: value for name, value in kwargs.items() if name not in names}}
