"""Look-up tables whose entries are imported on first use, so that listing their names needs no PyTorch."""

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def resolve(reference: str) -> Any:
    """Import ``package.module`` or ``package.module:attribute`` and return the module or the attribute."""
    module, _, attribute = reference.partition(":")
    loaded = import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


class Registry(MutableMapping[str, T], Generic[T]):
    """A dictionary whose values may be given as import references, see :func:`resolve`."""

    def __init__(self, entries: dict[str, T | str]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> T:
        value = self._entries[name]
        if isinstance(value, str):
            value = self._entries[name] = resolve(value)
        return value

    def __setitem__(self, name: str, value: T | str) -> None:
        self._entries[name] = value

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
