"""The building blocks of config Structs: the parent Struct, durations, sizes, and the error that names its
path.

A Struct here or in a plugin describes one mapping of the config file. Its fields carry the unit in their name
(`idle_timeout_ns`, `max_body_bytes`), the file carries it in the value (`idle_timeout: 75s`, `max_body:
10MB`); `short_key` maps one to the other. Values in a Struct are therefore already decoded, and msgspec can
encode and decode it without knowing the units. Each field's `Meta(description=…)` is its manual: the
generated docs/config.md and the JSON Schema print it.

`fastgate.config` reads a file into Structs and reports every error at once. Third-party plugins subclass
`Settings` too.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final

import msgspec

__all__ = [
    "ConfigError",
    "Duration",
    "FileName",
    "Places",
    "RootedPath",
    "Settings",
    "Share",
    "Size",
    "Text",
    "duration_text",
    "parse_duration",
    "parse_share",
    "parse_size",
    "share_text",
    "short_key",
    "size_text",
    "wildcard_matches",
]

MICROSECOND: Final = 1_000
MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

# 30 days: longer is always a mistake for anything a gateway waits for, and sums of ns stay far from 2**63.
MAX_DURATION_NS: Final = 30 * DAY
# 1 PiB: above any body; far from 2**63.
MAX_SIZE_BYTES: Final = 1 << 50

_DURATION_UNITS: Final = {
    "us": MICROSECOND,
    "µs": MICROSECOND,
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": HOUR,
    "d": DAY,
}
PPM: Final = 1_000_000
PERCENT: Final = PPM // 100

# As in nginx, Caddy and common usage: KB is 1000 bytes (SI), KiB is 1024 (IEC 80000-13). A bare K, M or G is
# rejected, because tools disagree on its meaning.
_SIZE_UNITS: Final = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
DURATION_PATTERN: Final = r"^([0-9]+(\.[0-9]+)?(us|µs|ms|s|m|h|d))+$(?!\n)"
SIZE_PATTERN: Final = r"^[0-9]+(\.[0-9]+)? ?(B|[KMGT]i?B)$(?!\n)"
LONGEST_NUMBER: Final = 64
"""Characters of a duration or a size: Python converts at most 4 300 digits."""
_DURATION = re.compile(DURATION_PATTERN, re.ASCII)
_DURATION_PART = re.compile(r"([0-9]+)(?:\.([0-9]+))?(us|µs|ms|s|m|h|d)")
_SIZE = re.compile(r"([0-9]+)(?:\.([0-9]+))? ?([A-Za-z]+)", re.ASCII)
_SHARE = re.compile(r"([0-9]+)(?:\.([0-9]{1,4}))? ?%", re.ASCII)
_SIZE_UNITS_FOLDED: Final = {unit.lower(): unit for unit in _SIZE_UNITS}

#: Nanoseconds in the Struct, `30s` in the file. The reader and the docs use `extra["unit"]`.
Duration = Annotated[int, msgspec.Meta(extra={"unit": "duration"})]
#: Bytes in the Struct, `10MB` in the file.
Size = Annotated[int, msgspec.Meta(extra={"unit": "size"})]

#: Parts per million in the Struct, `10%` in the file.
Share = Annotated[int, msgspec.Meta(extra={"unit": "share"})]

#: A non-empty string.
Text = Annotated[str, msgspec.Meta(min_length=1)]
#: The name of a file. A relative one is relative to the folder of the config file.
FileName = Annotated[str, msgspec.Meta(min_length=1, extra={"file": True})]
#: A URL path, or the beginning of one.
RootedPath = Annotated[str, msgspec.Meta(pattern="^/")]
Places = Annotated[str, msgspec.Meta(extra={"places": True})]
"""Text with `{name}` placeholders."""


def short_key(field: str) -> str:
    """The key in the file for a Struct field: without the unit, and without the trailing `_` that avoids a
    Python keyword."""
    # One unit only: `between_bytes_ns` is the time between bytes.
    name = field.removesuffix("_")
    for unit in ("_ns", "_bytes", "_ppm"):
        if name.endswith(unit):
            return name.removesuffix(unit)
    return name


class Settings(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    omit_defaults=True,
    rename=short_key,
):
    """The parent of every config Struct: frozen, strict about keys, comparable, and short when encoded.

    `kw_only=True` is not inherited by msgspec: state it on the subclass too, or give every field a default.
    """

    manual_order: ClassVar[int] = 500
    """For a Struct whose keys become keys of a route or of the root: its position among the others there."""
    elsewhere: ClassVar[dict[str, str]] = {}
    """Hints for keys that users may expect here."""


class ConfigError(Exception):
    """One error of the config: its `path`, what was `found`, what was `expected`, and a `hint` on how to fix
    it.

    `where` is `file:line` if known. Raised alone by code that only runs on a checked config (`build` of a
    plugin, freeze); the check itself collects a list of them.
    """

    def __init__(
        self, path: str, found: str = "", expected: str = "", hint: str = "", where: str = ""
    ) -> None:
        self.path, self.found, self.expected = _sendable(path), _sendable(found), _sendable(expected)
        self.hint, self.where = _sendable(hint), _sendable(where)
        super().__init__(self.path, self.found, self.expected, self.hint, self.where)

    def __str__(self) -> str:
        if not self.expected:
            text = f"{self.path}: {self.found}"
        elif self.found == "missing key":
            text = f"{self.path}: missing key, expected {self.expected}"
        else:
            text = f"{self.path}: expected {self.expected}, got {self.found or 'nothing'}"
        if self.hint:
            text = f"{text} ({self.hint})"
        return f"{self.where}: {text}" if self.where else text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfigError) and self.args == other.args

    def __hash__(self) -> int:
        return hash(self.args)


def _sendable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot encode, written as escapes."""
    return text.encode(errors="backslashreplace").decode()


def parse_duration(text: str) -> int:
    """Nanoseconds for `30s`, `100ms`, `1h30m`, `1.5s`; the bare number `0` needs no unit.

    Raises ValueError with the text that was expected. Fractions are exact: `0.1s` is 100 000 000 ns.
    """
    if text == "0":
        return 0
    if len(text) > LONGEST_NUMBER or not _DURATION.match(text):
        raise ValueError("a duration such as 30s, 100ms, 5m or 1h30m")
    total_ns = 0
    for whole, fraction, unit in _DURATION_PART.findall(text):
        scale = _DURATION_UNITS[unit]
        total_ns += int(whole) * scale
        if fraction:
            total_ns += int(fraction) * scale // 10 ** len(fraction)
    return total_ns


def parse_size(text: str) -> int:
    """Bytes for `512B`, `64KB` (64 000), `1MiB` (1 048 576), `1.5GB`; the bare number `0` needs no unit.

    Raises ValueError with the text that was expected. Case-insensitive (`10mb`): bits are never meant.
    """
    if text == "0":
        return 0
    match = _SIZE.fullmatch(text) if len(text) <= LONGEST_NUMBER else None
    unit = _SIZE_UNITS_FOLDED.get(match[3].lower()) if match else None
    if match is None or unit is None:
        raise ValueError("a size such as 512B, 64KB, 10MB or 1GiB")
    scale = _SIZE_UNITS[unit]
    fraction = match[2] or ""
    return int(match[1]) * scale + (int(fraction) * scale // 10 ** len(fraction) if fraction else 0)


def parse_share(text: str) -> int:
    """Parts per million for `20%` or `0.5%`, with at most four decimals; the bare number `0` needs no unit.

    Raises ValueError with the text that was expected.
    """
    if text == "0":
        return 0
    match = _SHARE.fullmatch(text) if len(text) <= LONGEST_NUMBER else None
    if match is None:
        raise ValueError("a share such as 20% or 0.5%")
    return int(match[1]) * PERCENT + int((match[2] or "").ljust(4, "0"))


def duration_text(ns: int) -> str:
    """The shortest exact notation of a duration: `1h30m`, `75s` up to two minutes, `100ms`, `0s`."""
    if ns < 2 * MINUTE:
        for unit, scale in (("s", SECOND), ("ms", MILLISECOND), ("us", MICROSECOND)):
            if ns % scale == 0:
                return f"{ns // scale}{unit}"
        return f"{ns / SECOND:.9f}".rstrip("0") + "s"
    parts = []
    for unit, scale in (("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", MILLISECOND)):
        count, ns = divmod(ns, scale)
        if count:
            parts.append(f"{count}{unit}")
    if ns:
        parts.append(duration_text(ns))
    return "".join(parts)


def size_text(count: int) -> str:
    """The shortest exact notation of a size: `10MB`, `32KB`, `1MiB`, `0B`."""
    for unit in ("TB", "TiB", "GB", "GiB", "MB", "MiB", "KB", "KiB"):
        if count and count % _SIZE_UNITS[unit] == 0:
            return f"{count // _SIZE_UNITS[unit]}{unit}"
    return f"{count}B"


def share_text(ppm: int) -> str:
    """The shortest exact notation of a share: `20%`, `0.5%`."""
    whole, rest = divmod(ppm, PERCENT)
    return f"{whole}.{rest:04}".rstrip("0").rstrip(".") + "%"


def wildcard_matches(pattern: str, text: str) -> bool:
    """True if the text matches the pattern, in which `*` is any text, including none. Linear time for any
    pattern."""
    if "*" not in pattern:
        return pattern == text
    first, *middle, last = pattern.split("*")
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
