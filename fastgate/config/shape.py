"""Converts plain values into Structs, and reports every error instead of only the first.

A reader is built once per Struct class from its type annotations, and reused: five thousand routes cost one
traversal each, without reflection. msgspec's `convert` stops at the first error and knows no units, so it is
used only for types without a reader here (dates, UUIDs), one field at a time. Attributes with which a Struct
describes its file form, beyond its types:

* `shorthand: ClassVar[str]`            a bare value is short for the mapping with this one key
* `short: ClassVar[dict[type, …]]`      a bare value of this type is short for the result of the function
* `example: ClassVar[str]`              an example of the mapping, for the message if the value is none
* `elsewhere: ClassVar[dict[str, str]]` hints for keys that users may expect here
* `Meta(extra={"unit": "duration"})`    `30s` in the file, ns in the Struct; `"size"`: `10MB`, bytes;
  `"share"`: `10%`, parts per million
* `Meta(extra={"one_or_many": True})`   a single value is short for a list of one
* `Meta(extra={"words": {"auto": 0}})`  words accepted instead of a number
* `Meta(extra={"choices": (301, 302)})` the only numbers allowed
* `Meta(extra={"shape": SomeStruct})`   on a Raw: the Struct of its content
* `Meta(extra={"file": True})`          a file name, relative to the config; a tuple: words that are not file
  names
* `Meta(extra={"places": True})`        text with `{name}` placeholders; braces from the environment are
  literal
* `Meta(extra={"number": "a:{}"})`      on text: the hint for a bare number
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect

from fastgate.checks import Path, Report, nearest
from fastgate.config import scalars
from fastgate.config.foreign import foreign_hint, value_hint
from fastgate.config.scalars import INVALID, Reader, found_text
from fastgate.config.source import Substituted
from fastgate.config.units import UNITS

__all__ = ["INVALID", "Reader", "Shapes", "found_text"]


CLASSES = 1024  # classes whose fields are cached: three times those of the whole config


@lru_cache(CLASSES)
def _fields(cls: type) -> list[tuple[msgspec.structs.FieldInfo, inspect.Type]]:
    """The fields with msgspec's type information. This call takes as long as everything else here."""
    found = msgspec.structs.fields(cls)
    return list(zip(found, inspect.multi_type_info([field.type for field in found]), strict=True))


class _NoReader(Exception):
    """The type has no reader here; msgspec converts it."""


class Shapes:
    """Readers by Struct class. `special` overrides the reader of a class; names of files are relative to
    `folder`."""

    def __init__(self, special: dict[type, Reader] | None = None, folder: str = "") -> None:
        self._structs: dict[type, Reader] = dict(special or {})
        self._folder = folder

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
        for field, info in _fields(cls):
            try:
                reader = self._of(info)
            except _NoReader:
                reader = _converter(field.type)
            fields[field.encode_name] = (field.name, reader)
            if field.encode_name == getattr(cls, "shorthand", None):
                takes_list = isinstance(_bare(info), inspect.VarTupleType)
            if field.required:
                required.append((field.encode_name, _expectation(info)))
        tag_field = cls.__struct_config__.tag_field  # type: ignore[attr-defined]
        shorthand = getattr(cls, "shorthand", None)
        mapping = f"a mapping such as {cls.example}" if hasattr(cls, "example") else "a mapping"
        elsewhere: dict[str, str] = getattr(cls, "elsewhere", {})
        short: Mapping[type, Callable[[Any], dict[str, Any]]] = getattr(cls, "short", {})
        strict = bool(cls.__struct_config__.forbid_unknown_fields)  # type: ignore[attr-defined]

        def read(value: Any, path: Path, report: Report) -> Any:
            if type(value) is not dict:
                value = _from_short(value, short)
            if type(value) is not dict:
                if shorthand is None or value is None or (type(value) is list and not takes_list):
                    wanted = mapping if shorthand is None else f"a mapping, or its `{shorthand}` alone"
                    report(path, found_text(value), wanted, "")
                    return INVALID
                name, reader = fields[shorthand]
                inner = reader(value, path, _without_quotes(report, f"a mapping, or its `{shorthand}` alone"))
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
                        hint = (
                            elsewhere.get(key)
                            or foreign_hint(cls, str(key), fields)
                            or nearest(str(key), fields)
                        )
                        report((*path, key), "unknown key", "", hint)
                        good = False
                    continue
                foreign = value_hint(cls, key, item)
                result = entry[1](item, (*path, key), _with_hint(report, foreign) if foreign else report)
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
            return scalars.unit(info, extra["unit"]) if "unit" in extra else scalars.number(info, extra)
        if isinstance(info, inspect.FloatType):
            return scalars.number(info, extra)
        if isinstance(info, inspect.StrType):
            return scalars.text(info, extra, self._folder)
        if isinstance(info, inspect.BoolType):
            return scalars.boolean
        if isinstance(info, inspect.LiteralType):
            return scalars.literal(info.values)
        if isinstance(info, inspect.NoneType):
            return scalars.nothing
        if isinstance(info, inspect.AnyType):
            return scalars.anything
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
                    report(path, found_text(value), "a list", _as_list(value))
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
                report(path, found_text(value), "a mapping", _as_mapping(value))
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


def _from_short(value: Any, short: Mapping[type, Callable[[Any], dict[str, Any]]]) -> Any:
    """The mapping that a bare value is short for, or the value itself. A number or boolean may come from the
    environment, where everything is text."""
    kind: type = type(value)
    if isinstance(value, str):
        kind = str
        if bool in short and value in ("true", "false") and isinstance(value, Substituted):
            return short[bool](value == "true")
        if int in short and isinstance(value, Substituted) and value.isdecimal() and len(value) < 10:
            return short[int](int(value))
    return short[kind](value) if kind in short else value


def _with_hint(report: Report, hint: str) -> Report:
    """Adds a hint for a value of the wrong type."""

    def told(path: Path, found: str, expected: str, known: str) -> None:
        report(path, found, expected, known or hint)

    return told


def _without_quotes(report: Report, wanted: str) -> Report:
    """For a value that is short for a whole mapping: quotes around a number would not make it valid."""

    def told(path: Path, found: str, expected: str, hint: str) -> None:
        if expected == "text":
            expected = wanted
        if hint.startswith("put it in quotes"):
            hint = ""
        report(path, found, expected, hint)

    return told


def _as_list(value: Any) -> str:
    """A mapping of named entries, written as a list."""
    if type(value) is dict and value and all(isinstance(item, dict) for item in value.values()):
        return f"write a list: [{{name: {next(iter(value))}, …}}]"
    return ""


def _as_mapping(value: Any) -> str:
    """A list of entries with names, written as a mapping."""
    if type(value) is list and value and isinstance(value[0], dict) and isinstance(value[0].get("name"), str):
        return f"the names are the keys: {value[0]['name']}: {{…}}"
    return ""


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
    """The name of this type in messages."""
    extra, bare = _extra(info), _bare(info)
    if isinstance(bare, inspect.UnionType):
        return " or ".join(
            _expectation(member) for member in bare.types if not isinstance(member, inspect.NoneType)
        )
    if isinstance(bare, inspect.LiteralType):
        return f"one of {', '.join(map(str, bare.values))}"
    if isinstance(bare, inspect.IntType):
        if "unit" not in extra:
            return "a whole number"
        unit = UNITS[extra["unit"]]
        return f"{unit.kind} such as {unit.example}"
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
