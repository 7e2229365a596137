"""The vocabulary of checks: paths in the config, reports of problems, and the checks of single values that
several sections need.

Checks of a section are next to its Structs (`features/<name>/check.py`, `auth/check.py` …); `fastgate.config`
calls them and turns their reports into errors with a line number. A check reports all problems and does not
stop at the first one.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import re
from collections.abc import Callable, Collection, Iterable
from typing import Final, NamedTuple

from fastgate._core.http.edits import PLACE
from fastgate._core.http.field_names import MESSAGE_FIELDS, TCHAR

__all__ = [
    "FIELD_VALUE",
    "LOWER_TOKEN",
    "TOKEN",
    "WORD_PATTERN",
    "Path",
    "Report",
    "RouteSite",
    "check_field_name",
    "check_field_value",
    "check_network",
    "check_places",
    "check_regex",
    "nearest",
    "printable",
    "snake_case",
]

#: Keys and indexes from the root of the config to a value.
Path = tuple[str | int, ...]
#: report(path, found, expected, hint)
Report = Callable[[Path, str, str, str], None]

TOKEN: Final = re.compile(f"[{TCHAR}]+", re.ASCII)
"""RFC 9110 §5.6.2: a method, the name of a header field."""
LOWER_TOKEN: Final = re.compile(f"[{TCHAR.replace('A-Z', '')}]+", re.ASCII)
"""The name of a header field where only lower case is allowed, as in RFC 9421 and in HTTP/2."""
FIELD_VALUE: Final = re.compile(r"[!-~]([ -~\t]*[!-~])?|", re.ASCII)
"""RFC 9110 §5.5 without obs-text."""

WORD_PATTERN: Final = r"[!#-\[\]-~]{1,255}"
"""A scope or role: scope-token of RFC 6749 §3.3, the element of the lists in headers and tokens."""

_REQUEST_PLACES: Final = frozenset(
    ("client_ip", "host", "hostname", "method", "path", "query", "request_id", "route", "scheme")
)


class RouteSite(NamedTuple):
    """Context for the check of one route."""

    path: Path
    """Path of the route in the config."""
    report: Report
    params: frozenset[str] | None
    """The parameters that every path of the route defines; None if a path is invalid."""
    has_controller: bool
    """Whether there is an admin listener, and thus a process that publishes the contents of the store."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean x?` for the closest known name, else the list of names if it is short, else ""."""
    names = sorted(known)
    folded = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    if close:
        return f"did you mean {folded[close[0]]}?"
    inside = [candidate for candidate in names if len(candidate) > 3 and candidate.lower() in name.lower()]
    if inside:
        return f"did you mean {max(inside, key=len)}?"
    return f"known: {', '.join(names)}" if names and len(names) <= 24 else ""


def snake_case(name: str) -> str:
    """A name in the spelling of the config: `keyAuth` and `key-auth` are `key_auth`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").replace(".", "_").lower()


def printable(text: str) -> str:
    """The text with control and non-ASCII characters escaped."""
    return text.encode("unicode_escape").decode()


def check_field_name(name: str, path: Path, report: Report, own_fields: bool = False) -> bool:
    """Checks the name of a header field that the config may set, or with `own_fields` one that it may
    read."""
    if not TOKEN.fullmatch(name):
        report(path, f'"{printable(name)}"', "a header name (letters, digits and -)", "")
        return False
    if not own_fields and name.lower() in MESSAGE_FIELDS:
        report(
            path,
            "not allowed",
            "",
            "owned by the gateway: it belongs to the connection or the framing",
        )
        return False
    return True


def check_field_value(value: str, path: Path, report: Report) -> None:
    """The value of a header field."""
    if not FIELD_VALUE.fullmatch(value):
        hint = "a line break would start another field" if "\n" in value or "\r" in value else ""
        report(path, f'"{printable(value)}"', "a header value: printable ASCII, no spaces at its ends", hint)


def check_regex(pattern: str, path: Path, report: Report) -> re.Pattern[str] | None:
    """A Python regular expression, compiled."""
    try:
        return re.compile(pattern)
    except re.error as error:
        at = "" if error.pos is None else f"at character {error.pos + 1}: "
        report(path, f'"{pattern}"', "a regular expression", f"{at}{error.msg}")
    except (OverflowError, RecursionError) as error:
        report(path, f'"{pattern}"', "a regular expression", str(error))
    return None


def check_network(text: str, path: Path, report: Report, others: str = "") -> None:
    """An address or a CIDR range; `others` names further accepted values, for the message."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        hint = ""
        with contextlib.suppress(ValueError):
            hint = f"did you mean {ipaddress.ip_network(text, strict=False)}?"
        report(path, f'"{text}"', f"an address or a range such as 10.0.0.0/8 or fd00::/8{others}", hint)


def check_places(text: str, path: Path, params: Collection[str] | None, report: Report) -> None:
    """`{name}` must be a parameter of every path of the route, or a property of the request."""
    if params is None or "{" not in text:
        return
    for place in PLACE.finditer(text):
        name = place[1]
        if name is not None and name not in params and name not in _REQUEST_PLACES:
            hint = nearest(place[0], [f"{{{param}}}" for param in params]) if params else ""
            has = (
                f"the path has {', '.join(f'{{{param}}}' for param in sorted(params))}"
                if params
                else "the path has none"
            )
            report(
                path,
                f"{{{name}}}",
                "a parameter of the route's path",
                hint if hint.startswith("did") else has,
            )
