"""The files that a config names, with a digest of their contents.

A reload may keep a part of the gateway that read a file when it was built (a client certificate, a CA, a
public key, a schema) only if the content of the file is unchanged. The loader therefore adds a digest of each
such file to the config, which makes the contents part of its identity, and the plan uses `Changes` to find
out what it may keep. The types of the fields mark file names (`FileName`, or `Meta(extra={"file": True})`),
also in the Structs of plugins. Files that the gateway writes itself, its store and its access log, are
excluded.
"""

from __future__ import annotations

import hashlib
import os
import stat
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from fastgate.config.root import Config, PluginUse
from fastgate.plugin import PLUGINS

__all__ = ["Changes", "named_files"]

_OWN_SECTIONS = frozenset({"store", "access_log", "routes"})

_BLOCK_BYTES = 1 << 20

#: Config Struct of a plugin by its name or dotted path; None if it has no settings. LookupError gives the
#: reason if there is none.
PluginShapes = Callable[[str], type | None]


def _registered(name: str) -> type | None:
    return PLUGINS.load(name).Config


def named_files(config: Config, plugins: PluginShapes = _registered) -> dict[str, str]:
    """Digest by name of every file that the config names. `plugins` finds the Struct of a plugin."""
    names = {
        name
        for section in Config.__struct_fields__
        if section not in _OWN_SECTIONS
        for name in _names_in(getattr(config, section), plugins)
    }
    for route in config.each_route():
        names.update(_names_in(route, plugins))
    return {name: _digest(name) for name in sorted(names)}


class Changes:
    """The differences between the files of two configs."""

    def __init__(self, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        self._names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        self._known: dict[bytes, bool] = {}

    def concern(self, encoded: bytes) -> bool:
        """True if these settings, encoded as msgpack, name a file whose content has changed."""
        if not self._names:
            return False
        found = self._known.get(encoded)
        if found is None:
            found = self._known[encoded] = self._mentioned(msgspec.msgpack.decode(encoded, ext_hook=_ignored))
        return found

    def _mentioned(self, value: Any) -> bool:
        if isinstance(value, str):
            return value in self._names
        if isinstance(value, dict):
            return any(map(self._mentioned, value.values()))
        if isinstance(value, list | tuple):
            return any(map(self._mentioned, value))
        return False


def _ignored(_code: int, _data: memoryview) -> None:
    return None


def _names_in(value: Any, plugins: PluginShapes) -> Iterator[str]:
    if isinstance(value, PluginUse):
        shape = plugins(value.use)
        if shape is not None:
            yield from _names_in(value.read(shape), plugins)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            inner = getattr(value, name)
            yield from _texts_in(inner) if _names_a_file(type(value), name) else _names_in(inner, plugins)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _names_in(inner, plugins)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from _names_in(inner, plugins)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts_in(inner)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from _texts_in(inner)


_marked: dict[type, frozenset[str]] = {}  # a cache: the fields of a Struct class never change


def _names_a_file(shape: type, field: str) -> bool:
    known = _marked.get(shape)
    if known is None:
        hints = typing.get_type_hints(shape, include_extras=True)
        known = _marked[shape] = frozenset(name for name, hint in hints.items() if _is_marked(hint))
    return field in known


def _is_marked(hint: Any) -> bool:
    extras = [getattr(note, "extra", None) or {} for note in getattr(hint, "__metadata__", ())]
    if any(extra.get("file") for extra in extras):
        return True
    return any(_is_marked(inner) for inner in typing.get_args(hint) if not isinstance(inner, str))


def _digest(name: str) -> str:
    """A digest of the content of this file, or the reason why it cannot be read."""
    try:
        # O_NONBLOCK: a FIFO without a writer must not block the loader.
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return f"errno {error.errno}"
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "not a regular file"
        digest = hashlib.sha256()
        while block := os.read(fd, _BLOCK_BYTES):
            digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        return f"errno {error.errno}"
    finally:
        os.close(fd)
