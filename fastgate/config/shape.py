"""Plain values into Structs, with every error and not only the first.

A reader is built once per Struct class from its type annotations, and reused: five thousand routes cost one
walk each, no reflection. msgspec's own `convert` stops at the first error and knows no units, so it is used
only for types without a reader here (dates, UUIDs), one field at a time. What a Struct can say about its file
form, beyond its types:

* `shorthand: ClassVar[str]`            a bare value stands for the mapping with this one key
* `example: ClassVar[str]`              what the mapping may look like, told to who wrote something else
* `elsewhere: ClassVar[dict[str, str]]` what to write in place of keys that one may look for here
* `Meta(extra={"unit": "duration"})`    `30s` in the file, ns in the Struct; `"size"`: `10MB`, bytes
* `Meta(extra={"one_or_many": True})`   a single value stands for a list of one
* `Meta(extra={"words": {"auto": 0}})`  words that stand for a number
* `Meta(extra={"choices": (301, 302)})` the only numbers allowed
* `Meta(extra={"shape": SomeStruct})`   on a Raw: what is in it, read as this Struct
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from msgspec import inspect

from fastgate.config.source import Path, Substituted
from fastgate.settings import (
    MAX_DURATION_NS,
    MAX_SIZE_BYTES,
    duration_text,
    parse_duration,
    parse_size,
    size_text,
)

__all__ = ["INVALID", "Reader", "Report", "Shapes", "found_text", "nearest"]

#: What a reader returns after it has reported why.
INVALID: Final[Any] = object()

#: report(path, found, expected, hint)
Report = Callable[[Path, str, str, str], None]
Reader = Callable[[Any, Path, Report], Any]


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean x?` for the closest known name, else the list of them when it is short, else ""."""
    names = sorted(known)
    folded = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    if close:
        return f"did you mean {folded[close[0]]}?"
    inside = [candidate for candidate in names if len(candidate) > 3 and candidate.lower() in name.lower()]
    if inside:
        return f"did you mean {max(inside, key=len)}?"
    return f"known: {', '.join(names)}" if names and len(names) <= 24 else ""


def found_text(value: Any) -> str:
    """A value as messages show it: short, in quotes when it is text, and never the content of an environment
    variable.
    """
    if isinstance(value, Substituted):
        return json.dumps(value.template, ensure_ascii=False)
    if isinstance(value, str):
        shown = value if len(value) <= 80 else value[:77] + "..."
        return json.dumps(shown, ensure_ascii=False)
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else str(value)


class _NoReader(Exception):
    """This type is msgspec's business."""


class Shapes:
    """Readers by Struct class. `special` overrides the reader of a class."""

    def __init__(self, special: dict[type, Reader] | None = None) -> None:
        self._structs: dict[type, Reader] = dict(special or {})

    def struct(self, cls: type) -> Reader:
        """The reader of this Struct class."""
        reader = self._structs.get(cls)
        if reader is None:
            # registered before it is built, so that a Struct may contain itself
            self._structs[cls] = lambda value, path, report: self._structs[cls](value, path, report)
            reader = self._structs[cls] = self._build_struct(cls)
        return reader

    def _build_struct(self, cls: type) -> Reader:
        fields: dict[str, tuple[str, Reader]] = {}
        takes_list = False
        required: list[tuple[str, str]] = []
        for field in msgspec.structs.fields(cls):
            try:
                reader = self._of(inspect.type_info(field.type))
            except _NoReader:
                reader = _converter(field.type)
            fields[field.encode_name] = (field.name, reader)
            if field.encode_name == getattr(cls, "shorthand", None):
                takes_list = isinstance(_bare(inspect.type_info(field.type)), inspect.VarTupleType)
            if field.required:
                required.append((field.encode_name, _expectation(inspect.type_info(field.type))))
        tag_field = cls.__struct_config__.tag_field  # type: ignore[attr-defined]
        shorthand = getattr(cls, "shorthand", None)
        mapping = f"a mapping such as {cls.example}" if hasattr(cls, "example") else "a mapping"
        elsewhere: dict[str, str] = getattr(cls, "elsewhere", {})
        strict = bool(cls.__struct_config__.forbid_unknown_fields)  # type: ignore[attr-defined]

        def read(value: Any, path: Path, report: Report) -> Any:
            if type(value) is not dict:
                if shorthand is None or value is None or (type(value) is list and not takes_list):
                    wanted = mapping if shorthand is None else f"a mapping, or its `{shorthand}` alone"
                    report(path, found_text(value), wanted, "")
                    return INVALID
                name, reader = fields[shorthand]
                inner = reader(value, path, report)
                missing = [key for key, _ in required if key != shorthand]
                if missing:
                    report(path, found_text(value), f"a mapping with {' and '.join(missing)}", "")
                    return INVALID
                return INVALID if inner is INVALID else _construct(cls, {name: inner}, path, report)
            arguments: dict[str, Any] = {}
            good = True
            for key, item in value.items():
                entry = fields.get(key)
                if entry is None:
                    if strict and key != tag_field:
                        hint = elsewhere.get(key) or nearest(str(key), fields)
                        report((*path, key), "unknown key", "", hint)
                        good = False
                    continue
                result = entry[1](item, (*path, key), report)
                if result is INVALID:
                    good = False
                else:
                    arguments[entry[0]] = result
            for key, wanted in required:
                if key not in value:
                    report((*path, key), "missing key", wanted, "")
                    good = False
            return _construct(cls, arguments, path, report) if good else INVALID

        return read

    def _of(self, info: inspect.Type, extra: dict[str, Any] | None = None) -> Reader:
        extra = extra or {}
        if isinstance(info, inspect.Metadata):
            return self._of(info.type, {**(info.extra or {}), **extra})
        if isinstance(info, inspect.UnionType):
            return self._union(info, extra)
        if isinstance(info, inspect.StructType):
            return self.struct(info.cls)
        if isinstance(info, inspect.RawType) and "shape" in extra:
            return self.struct(extra["shape"])
        if isinstance(
            info, inspect.ListType | inspect.VarTupleType | inspect.SetType | inspect.FrozenSetType
        ):
            return self._collection(info, extra)
        if isinstance(info, inspect.DictType):
            return self._mapping(info)
        if isinstance(info, inspect.IntType):
            return _unit(info, extra["unit"]) if "unit" in extra else _number(info, extra)
        if isinstance(info, inspect.FloatType):
            return _number(info, extra)
        if isinstance(info, inspect.StrType):
            return _text(info)
        if isinstance(info, inspect.BoolType):
            return _boolean
        if isinstance(info, inspect.LiteralType):
            return _literal(info.values)
        if isinstance(info, inspect.NoneType):
            return _nothing
        if isinstance(info, inspect.AnyType):
            return _anything
        raise _NoReader

    def _union(self, info: inspect.UnionType, extra: dict[str, Any]) -> Reader:
        members = [member for member in info.types if not isinstance(member, inspect.NoneType)]
        optional = len(members) < len(info.types)
        if len(members) == 1:
            only = self._of(members[0], extra)
            return (
                (lambda value, path, report: None if value is None else only(value, path, report))
                if optional
                else only
            )
        readers = [(_accepts(member), self._of(member, extra)) for member in members]
        tagged = {
            member.tag: (member.tag_field, self.struct(member.cls))
            for member in members
            if isinstance(member, inspect.StructType) and member.tag_field is not None
        }
        wanted = " or ".join(_expectation(member) for member in members)

        def read(value: Any, path: Path, report: Report) -> Any:
            if value is None and optional:
                return None
            if tagged and type(value) is dict:
                tag_field = next(iter(tagged.values()))[0] or "type"
                chosen = tagged.get(value.get(tag_field))
                if chosen is None:
                    words = [str(tag) for tag in tagged]
                    found = found_text(value[tag_field]) if tag_field in value else "missing key"
                    report((*path, tag_field), found, f"one of {', '.join(words)}", "")
                    return INVALID
                return chosen[1](value, path, report)
            for accepts, reader in readers:
                if accepts(value):
                    return reader(value, path, report)
            report(path, found_text(value), wanted, "")
            return INVALID

        return read

    def _collection(
        self,
        info: inspect.ListType | inspect.VarTupleType | inspect.SetType | inspect.FrozenSetType,
        extra: dict[str, Any],
    ) -> Reader:
        item = self._of(info.item_type, {"shape": extra["shape"]} if "shape" in extra else None)
        one_or_many = bool(extra.get("one_or_many"))
        wants = _expectation(info.item_type)
        least, most = info.min_length or 0, info.max_length
        build: Callable[[list[Any]], Any] = {
            inspect.ListType: list,
            inspect.VarTupleType: tuple,
            inspect.SetType: set,
            inspect.FrozenSetType: frozenset,
        }[type(info)]

        def read(value: Any, path: Path, report: Report) -> Any:
            if type(value) is not list:
                if isinstance(value, Substituted) and value[:1] == "[":
                    try:
                        value = [_as_substituted(part, value) for part in json.loads(value)]
                    except ValueError:
                        report(path, found_text(value), "a list as JSON", "")
                        return INVALID
                elif one_or_many and type(value) is dict and wants == "text":
                    report(path, found_text(value), "text or a list of text", "")
                    return INVALID
                elif one_or_many and value is not None:
                    result = item(value, path, report)
                    return INVALID if result is INVALID else build([result])
                else:
                    report(path, found_text(value), "a list", "")
                    return INVALID
            results = []
            good = True
            for index, part in enumerate(value):
                result = item(part, (*path, index), report)
                if result is INVALID:
                    good = False
                else:
                    results.append(result)
            if len(value) < least:
                report(path, "an empty list" if not value else f"{len(value)} items", f"at least {least}", "")
                return INVALID
            if most is not None and len(value) > most:
                report(path, f"{len(value)} items", f"at most {most}", "")
                return INVALID
            return build(results) if good else INVALID

        return read

    def _mapping(self, info: inspect.DictType) -> Reader:
        key_reader = self._of(info.key_type)
        value_reader = self._of(info.value_type)
        wants_text = isinstance(_bare(info.value_type), inspect.StrType)

        def read(value: Any, path: Path, report: Report) -> Any:
            if type(value) is not dict:
                report(path, found_text(value), "a mapping", "")
                return INVALID
            results = {}
            good = True
            for key, item in value.items():
                at = (*path, key)
                if wants_text and type(item) in (int, float, bool):
                    shown = found_text(item).removeprefix("the number ")
                    report(at, found_text(item), "text", f'put it in quotes: "{shown}"')
                    good = False
                    continue
                name, result = key_reader(key, at, report), value_reader(item, at, report)
                if result is INVALID or name is INVALID:
                    good = False
                else:
                    results[name] = result
            return results if good else INVALID

        return read


def _construct(cls: type, arguments: dict[str, Any], path: Path, report: Report) -> Any:
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:  # from __post_init__
        report(path, str(error), "", "")
        return INVALID


def _converter(kind: Any) -> Reader:
    def read(value: Any, path: Path, report: Report) -> Any:
        try:
            return msgspec.convert(value, kind, strict=not isinstance(value, Substituted))
        except msgspec.ValidationError as error:
            found, _, inner = str(error).partition(" - at `$")
            at = path if not inner else (*path, *_steps(inner.rstrip("`")))
            report(at, f"{found[:1].lower()}{found[1:]}", "", "")
            return INVALID

    return read


def _steps(text: str) -> Path:
    return tuple(int(index) if index else key for key, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", text))


def _as_substituted(value: Any, source: Substituted) -> Any:
    return Substituted(value, source.template) if isinstance(value, str) else value


def _bare(info: inspect.Type) -> inspect.Type:
    while isinstance(info, inspect.Metadata):
        info = info.type
    return info


def _extra(info: inspect.Type) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    while isinstance(info, inspect.Metadata):
        extra = {**(info.extra or {}), **extra}
        info = info.type
    return extra


def _expectation(info: inspect.Type) -> str:
    """What a value of this type is called in messages."""
    extra, bare = _extra(info), _bare(info)
    if isinstance(bare, inspect.UnionType):
        return " or ".join(
            _expectation(member) for member in bare.types if not isinstance(member, inspect.NoneType)
        )
    if isinstance(bare, inspect.LiteralType):
        return f"one of {', '.join(map(str, bare.values))}"
    if isinstance(bare, inspect.IntType):
        return {"duration": "a duration such as 30s", "size": "a size such as 10MB"}.get(
            extra.get("unit", ""), "a whole number"
        )
    if isinstance(bare, inspect.ListType | inspect.VarTupleType | inspect.SetType | inspect.FrozenSetType):
        item = _bare(bare.item_type)
        if extra.get("one_or_many") and isinstance(item, inspect.StrType):
            return "text or a list of text"
        return "a list"
    names: dict[type[inspect.Type], str] = {
        inspect.StrType: "text",
        inspect.FloatType: "a number",
        inspect.BoolType: "true or false",
        inspect.DictType: "a mapping",
        inspect.StructType: "a mapping",
    }
    return names.get(type(bare), "a value")


def _accepts(info: inspect.Type) -> Callable[[Any], bool]:
    bare, extra = _bare(info), _extra(info)
    if isinstance(bare, inspect.StructType) and getattr(bare.cls, "shorthand", None):
        return lambda value: not isinstance(value, list)
    if isinstance(bare, inspect.LiteralType):
        values = bare.values
        return lambda value: value in values
    if isinstance(bare, inspect.IntType) and "unit" in extra:
        return lambda value: isinstance(value, str | int)
    kinds: dict[type[inspect.Type], tuple[type, ...]] = {
        inspect.StrType: (str,),
        inspect.IntType: (int,),
        inspect.FloatType: (int, float),
        inspect.BoolType: (bool,),
        inspect.DictType: (dict,),
        inspect.StructType: (dict,),
        inspect.ListType: (list,),
        inspect.VarTupleType: (list,),
        inspect.SetType: (list,),
        inspect.FrozenSetType: (list,),
    }
    kind = kinds.get(type(bare), (object,))
    if kind in ((int,), (int, float)):
        return lambda value: isinstance(value, kind) and not isinstance(value, bool)
    return lambda value: isinstance(value, kind)


def _text(info: inspect.StrType) -> Reader:
    least, most = info.min_length or 0, info.max_length
    pattern = re.compile(info.pattern) if info.pattern else None
    rooted = info.pattern == "^/"

    def read(value: Any, path: Path, report: Report) -> Any:
        if not isinstance(value, str):
            hint = ""
            if type(value) in (int, float, bool):
                hint = f'put it in quotes: "{found_text(value).removeprefix("the number ")}"'
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
            report(
                path,
                found_text(value),
                "a path that begins with /" if rooted else f"text like {pattern.pattern}",
                "",
            )
            return INVALID
        return value if type(value) is str else str(value)

    return read


def _number(info: inspect.IntType | inspect.FloatType, extra: dict[str, Any]) -> Reader:
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


def _unit(info: inspect.IntType, unit: str) -> Reader:
    parse, show, kind, highest, example = {
        "duration": (parse_duration, duration_text, "a duration", MAX_DURATION_NS, "30s, 100ms, 5m or 1h30m"),
        "size": (parse_size, size_text, "a size", MAX_SIZE_BYTES, "512B, 64KB, 10MB or 1GiB"),
    }[unit]
    least = 0 if info.ge is None else int(info.ge)
    most = highest if info.le is None else int(info.le)
    suffix = "s" if unit == "duration" else "B"
    known: dict[str, int] = {}  # the same few texts come back on every route

    def read(value: Any, path: Path, report: Report) -> Any:
        if type(value) is str and value in known:
            return known[value]
        number: int | None = 0 if type(value) is int and value == 0 else None
        if isinstance(value, str):
            try:
                number = parse(value.strip())
            except ValueError:
                number = None
        if number is None:
            digits = (
                str(value).strip()
                if isinstance(value, str | int | float) and not isinstance(value, bool)
                else ""
            )
            hint = f"add the unit: {digits}{suffix}" if re.fullmatch(r"[0-9]+", digits) else ""
            if unit == "size" and re.fullmatch(r"[0-9]+ ?[kKmMgGtT]", digits):
                hint = f"write {digits.upper()}B ({digits[-1].upper()}iB counts in 1024)"
            report(path, found_text(value), f"{kind} such as {example}", hint)
            return INVALID
        if number < least or number > most:
            report(path, found_text(value), f"{kind}{_bounds(least, most, None, None, show)}", "")
            return INVALID
        if type(value) is str and len(known) < 1000:
            known[value] = number
        return number

    return read


def _boolean(value: Any, path: Path, report: Report) -> Any:
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


def _literal(values: Iterable[Any]) -> Reader:
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


def _nothing(value: Any, path: Path, report: Report) -> Any:
    if value is not None:
        report(path, found_text(value), "nothing", "")
        return INVALID
    return None


def _anything(value: Any, path: Path, report: Report) -> Any:
    return value
