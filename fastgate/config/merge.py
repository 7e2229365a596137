"""Config + State: the tree of a config file with a State document put over it.

A State document is a JSON merge patch (RFC 7396) of the config: an object is merged key by key, null removes
a key, any other value replaces what was there. Two lists are merged item by item instead of being replaced:
`routes` by name and the `targets` of an upstream by URL, so that

    {
        "routes": [{"name": "orders", "enabled": false}],
        "upstreams": {"api": {"targets": [{"url": "http://10.0.0.7:80", "weight": 0}]}}
    }

disables one route and one target and leaves the others as they are. An item that the file does not have is
added at the end. A route without a name in the file goes by the name that the gateway gives it.

`${NAME}` in a State document is an error: a caller of the admin API could otherwise read the secrets in the
environment of the gateway with a fixed response.

The result is checked as a file is. Errors have the path in the merged config, and as their place the State
version and the path in its document.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from fastgate.checks import Path
from fastgate.config.source import Document, parse, path_text
from fastgate.settings import ConfigError

__all__ = ["STATE_SECTIONS", "merge_state"]

STATE_SECTIONS: Final = ("routes", "upstreams")
"""The sections of the config that a State document may change. The others are fixed when a process starts, or
have a form of run-time change of their own.
"""

Expand = Callable[[Path, Any], Any]


def merge_state(
    file: Document,
    text: str,
    *,
    name: str,
    routes: Sequence[str],
    expand: Expand,
) -> tuple[Document | None, list[ConfigError]]:
    """The file's document with the State document in `text` over it, or None and what is wrong with that.

    name: what errors call the State document. routes: the names of the file's routes, in order.
    expand(path, value): the mapping that a shorthand in the file is short for.
    """
    state, errors = parse(text, "json", None, name)
    if state is None or errors:
        return None, errors
    errors = [
        ConfigError(path_text((key,)), "a section that State cannot change", where=name, hint=_ONLY)
        for key in state.tree
        if key not in STATE_SECTIONS
    ]
    errors += _misnamed(state.tree.get("routes"), ("routes",), "name", name)
    upstreams = state.tree.get("upstreams")
    for upstream, settings in upstreams.items() if isinstance(upstreams, dict) else ():
        if isinstance(settings, dict) and settings.get("targets") is not None:
            settings["targets"] = _target_list(settings["targets"])
            errors += _misnamed(settings["targets"], ("upstreams", upstream, "targets"), "url", name)
    if errors:
        return None, errors
    return _Merged(file, state.tree, name, routes, expand), []


_ONLY = f"State can change {' and '.join(STATE_SECTIONS)}"


class _Merged(Document):
    """The merged tree. Knows for each value from the State document where it stands there."""

    def __init__(
        self, file: Document, state: dict[str, Any], name: str, routes: Sequence[str], expand: Expand
    ) -> None:
        super().__init__(file.name, None, None)
        self.overridden = file.overridden
        self.unset = file.unset
        self._file = file
        self._state_name = name
        self._routes = routes
        self._expand = expand
        self._origins: dict[Path, Path] = {}
        self.tree = self._patched(file.tree, state, (), ())

    def where(self, path: Path) -> str:
        for length in range(len(path), 0, -1):
            origin = self._origins.get(path[:length])
            if origin is not None:
                return f"{self._state_name} {path_text((*origin, *path[length:]))}"
        return self._file.where(path)

    def _patched(self, value: Any, patch: Any, path: Path, origin: Path) -> Any:
        """The value with the patch over it. Neither is changed: an alias of YAML may share parts of them."""
        if not isinstance(patch, dict):
            self._origins[path] = origin
            return patch
        value = self._expand(path, value)
        if not isinstance(value, dict):
            self._origins[path] = origin
            value = {}
        merged = dict(value)
        for key, item in patch.items():
            at, start = (*path, key), (*origin, key)
            if item is None:
                self._origins[at] = start
                merged.pop(key, None)
            elif at == ("routes",):
                # The patch brings the name along, so the route keeps it whatever else changes.
                merged[key] = self._items(merged[key], self._routes, item, "name", at, start)
            elif len(at) == 3 and at[0] == "upstreams" and key == "targets":
                targets = [] if merged.get(key) is None else _target_list(merged[key])
                urls = [target.get("url") if isinstance(target, dict) else None for target in targets]
                merged[key] = self._items(targets, urls, item, "url", at, start)
            else:
                merged[key] = self._patched(merged.get(key), item, at, start)
        return merged

    def _items(
        self, items: list[Any], names: Sequence[Any], patches: list[Any], key: str, path: Path, origin: Path
    ) -> list[Any]:
        """The items with those patches over them that have the same name; the others are added."""
        merged = list(items)
        places = {name: index for index, name in enumerate(names)}
        for number, patch in enumerate(patches):
            index = places.get(patch[key], len(merged))
            if index == len(merged):
                merged.append(None)
            merged[index] = self._patched(merged[index], patch, (*path, index), (*origin, number))
        return merged


def _misnamed(items: Any, path: Path, key: str, where: str) -> list[ConfigError]:
    """What keeps the items of a list from being found by this key."""
    if items is None:
        return []
    if not isinstance(items, list):
        return [ConfigError(path_text(path), "no list", f"a list of objects with a {key}", where=where)]
    errors = []
    seen: set[str] = set()
    for index, item in enumerate(items):
        at = path_text((*path, index))
        name = item.get(key) if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            errors.append(ConfigError(f"{at}.{key}", "missing key", f"a {key}", where=where))
        elif name in seen:
            errors.append(ConfigError(f"{at}.{key}", f'"{name}"', f"a {key} of its own", where=where))
        else:
            seen.add(name)
    return errors


def _target_list(value: Any) -> list[Any]:
    """`targets` as a list of mappings: a single one, and a bare URL, are short for that."""
    items = value if isinstance(value, list) else [value]
    return [{"url": item} if isinstance(item, str) else item for item in items]
