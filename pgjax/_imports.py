"""Modules that are imported when something of them is used."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """In place of a module; what it is asked for it gets from there."""

    def __getattr__(self, name: str) -> Any:
        _forget(self)
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def postponed(name: str) -> Iterator[None]:
    """What is imported meanwhile imports a module only when it uses it.

    For what others import and hardly ever use: gymnax draws one of its games with seaborn, which takes longer
    to import than all the rest of gymnax. Afterwards an import of the module is a usual one.

    Args:
        name: of the module, as it is imported.

    Yields:
        Nothing.
    """
    if name in sys.modules:
        yield
        return
    later = sys.modules[name] = _Later(name)
    try:
        yield
    finally:
        _forget(later)


def _forget(later: _Later) -> None:
    if sys.modules.get(later.__name__) is later:
        del sys.modules[later.__name__]
