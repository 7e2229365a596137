"""Readers of single values: text, file names, numbers, values with a unit, words. Each takes a value of the
file and its path, and returns the value of the Struct, or INVALID after reporting an error.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from msgspec import inspect

from fastgate.checks import Path, Report, nearest
from fastgate.config.source import Substituted
from fastgate.config.units import UNITS

__all__ = [
    "INVALID",
    "Reader",
    "anything",
    "boolean",
    "found_text",
    "literal",
    "nothing",
    "number",
    "text",
    "unit",
]

#: Returned by a reader after it has reported an error.
INVALID: Final[Any] = object()

Reader = Callable[[Any, Path, Report], Any]


def found_text(value: Any) -> str:
    """A value as messages show it: short, text in quotes, and never the content of an environment
    variable."""
    if isinstance(value, Substituted):
        return json.dumps(value.template, ensure_ascii=False)
    if isinstance(value, str):
        shown = value if len(value) <= 80 else value[:77] + "..."
        return json.dumps(shown, ensure_ascii=False)
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 64:  # Python converts at most 4 300 digits
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else str(value)


def text(info: inspect.StrType, extra: dict[str, Any], folder: str) -> Reader:
    number_means = extra.get("number", "")
    file = bool(extra.get("file")) and folder != ""
    words = extra["file"] if isinstance(extra.get("file"), tuple) else ()
    least, most = info.min_length or 0, info.max_length
    pattern = re.compile(info.pattern) if info.pattern else None
    rooted = info.pattern == "^/"
    has_places = bool(extra.get("places"))

    def read(value: Any, path: Path, report: Report) -> Any:
        if not isinstance(value, str):
            hint = ""
            if type(value) in (int, float):
                quoted = found_text(value).removeprefix("the number ")
                if number_means:
                    hint = f"write {number_means.format(quoted)}"
                elif pattern is None or pattern.search(quoted):
                    hint = f'put it in quotes: "{quoted}"'
            report(path, found_text(value), "text", hint)
            return INVALID
        if len(value) < least:
            wanted = "text that is not empty" if least == 1 else f"at least {least} characters"
            report(path, f"{len(value)} characters" if value else '""', wanted, "")
            return INVALID
        if most is not None and len(value) > most:
            report(path, f"{len(value)} characters", f"at most {most}", "")
            return INVALID
        if pattern is not None and not pattern.search(value):
            like = "text like " + pattern.pattern.removesuffix(r"(?!\n)")
            report(path, found_text(value), "a path that begins with /" if rooted else like, "")
            return INVALID
        if file and value and value not in words and not os.path.isabs(value):
            return os.path.join(folder, value)
        if has_places and isinstance(value, Substituted):
            return value.literal
        return value if type(value) is str else str(value)

    return read


def number(info: inspect.IntType | inspect.FloatType, extra: dict[str, Any]) -> Reader:
    whole = isinstance(info, inspect.IntType)
    words: dict[str, int] = extra.get("words", {})
    choices: tuple[int, ...] = extra.get("choices", ())
    least, most, above, below = info.ge, info.le, info.gt, info.lt
    bounds = _bounds(least, most, above, below, str)
    wanted = f"{'a whole number' if whole else 'a number'}{bounds}"
    if words:
        wanted = f"{wanted} or {' or '.join(words)}"
    if choices:
        wanted = f"one of {', '.join(map(str, choices))}"

    def read(value: Any, path: Path, report: Report) -> Any:
        number = value
        if isinstance(value, str):
            if value in words:
                return words[value]
            if isinstance(value, Substituted):
                try:
                    number = int(value) if whole else float(value)
                except ValueError:
                    number = None
                if number is not None and not math.isfinite(number):
                    number = None
        kind = type(number)
        if kind is float and whole and number.is_integer():
            number = int(number)
        elif kind is not int and (whole or kind is not float):
            hint = nearest(value, words) if words and type(value) is str else ""
            if type(value) is str and value.isdigit():
                hint = "write it without quotes"
            hint = hint if hint.startswith(("did", "write")) else ""
            report(path, found_text(value), wanted, hint)
            return INVALID
        if (
            (least is not None and number < least)
            or (most is not None and number > most)
            or (above is not None and number <= above)
            or (below is not None and number >= below)
            or (choices and number not in choices)
            or number != number
        ):
            report(path, found_text(value).removeprefix("the number "), wanted, "")
            return INVALID
        return number if whole else float(number)

    return read


def _bounds(
    least: float | None,
    most: float | None,
    above: float | None,
    below: float | None,
    show: Callable[[Any], str],
) -> str:
    if least is not None and most is not None:
        return f" from {show(least)} to {show(most)}"
    parts = []
    if least is not None:
        parts.append(f"at least {show(least)}")
    if above is not None:
        parts.append(f"above {show(above)}")
    if most is not None:
        parts.append(f"at most {show(most)}")
    if below is not None:
        parts.append(f"below {show(below)}")
    return f" {' and '.join(parts)}" if parts else ""


def unit(info: inspect.IntType, kind_of_unit: str) -> Reader:
    known_as = UNITS[kind_of_unit]
    least = 0 if info.ge is None else int(info.ge)
    most = known_as.most if info.le is None else int(info.le)
    known: dict[str, int] = {}  # the same few texts recur on every route

    def read(value: Any, path: Path, report: Report) -> Any:
        if type(value) is str and value in known:
            return known[value]
        number: int | None = 0 if type(value) is int and value == 0 else None
        if isinstance(value, str):
            try:
                number = known_as.parse(value.strip())
            except ValueError:
                number = None
        if number is None:
            digits = (
                str(value).strip()
                if isinstance(value, str | int | float) and not isinstance(value, bool)
                else ""
            )
            hint = f"add the unit: {digits}{known_as.suffix}" if re.fullmatch(r"[0-9]+", digits) else ""
            if kind_of_unit == "size" and re.fullmatch(r"[0-9]+ ?[kKmMgGtT]", digits):
                hint = f"write {digits.upper()}B ({digits[-1].upper()}iB counts in 1024)"
            report(path, found_text(value), f"{known_as.kind} such as {known_as.examples}", hint)
            return INVALID
        if number < least or number > most:
            report(
                path,
                found_text(value),
                f"{known_as.kind}{_bounds(least, most, None, None, known_as.show)}",
                "",
            )
            return INVALID
        if type(value) is str and len(known) < 1000:
            known[value] = number
        return number

    return read


def boolean(value: Any, path: Path, report: Report) -> Any:
    if isinstance(value, Substituted) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if type(value) is bool:
        return value
    said = str(value).lower() if isinstance(value, str) else ""
    hint = (
        "write true"
        if said in ("yes", "on", "true")
        else "write false"
        if said in ("no", "off", "false")
        else ""
    )
    report(path, found_text(value), "true or false", hint)
    return INVALID


def literal(values: Iterable[Any]) -> Reader:
    words = tuple(values)
    wanted = f"one of {', '.join(map(str, words))}"

    def read(value: Any, path: Path, report: Report) -> Any:
        for word in words:
            if value == word and (type(word) is not bool or type(value) is bool):
                return word
            if isinstance(value, int | float | Substituted) and str(value) == word:  # min_version: 1.2
                return word
        hint = nearest(value, map(str, words)) if isinstance(value, str) else ""
        report(path, found_text(value), wanted, hint if hint.startswith("did") else "")
        return INVALID

    return read


def nothing(value: Any, path: Path, report: Report) -> Any:
    if value is not None:
        report(path, found_text(value), "nothing", "")
        return INVALID
    return None


def anything(value: Any, path: Path, report: Report) -> Any:
    return value
