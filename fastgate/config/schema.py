"""A JSON Schema of the config file for editors, and the same facts as rows for the manual.

Both are generated from the annotations that the reader uses, so they always agree with it. The schema
describes the file rather than the Structs: durations are text, a shorthand is an alternative to its mapping,
and any single value may be `${NAME}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect

from fastgate.config.root import Config, PluginUse
from fastgate.config.units import UNITS

__all__ = ["Key", "json_schema", "keys", "sections"]

_KINDS: Final[dict[type, str]] = {int: "integer", bool: "boolean", str: "string"}
_VARIABLE: Final = {"type": "string", "pattern": r"\$\{[A-Za-z_]", "description": "from the environment"}


class Key(NamedTuple):
    """One key of one mapping, for the manual."""

    name: str
    value: str
    default: str
    bounds: str
    description: str


def json_schema(plugins: Mapping[str, type | None] | None = None) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the config file.

    `plugins` are Config Structs by plugin name, so that editors know their settings too. Other plugins, by
    dotted path or installed elsewhere, are accepted with any settings.
    """
    definitions: dict[str, Any] = {"Variable": _VARIABLE}
    definitions["PluginUse"] = _plugin_use(plugins or {}, definitions)
    root = _object(Config, definitions)
    # yaml-language-server and editors look for the key; the file itself may name its schema too.
    root["properties"]["$schema"] = {"type": "string", "description": "Address of this schema, for editors."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fastgate",
        **root,
        "$defs": definitions,
    }


def _plugin_use(plugins: Mapping[str, type | None], definitions: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, shape in plugins.items():
        settings[name] = {"type": ["object", "null"], "maxProperties": 0}
        if shape is not None:
            definitions[f"plugin:{name}"] = _object(shape, definitions)
            settings[name] = {"$ref": f"#/$defs/plugin:{name}"}
    return {
        "description": (
            "A plugin: its name, `{name: {settings}}`, or `{use: package.module:Class, settings}`."
        ),
        "anyOf": [
            {"type": "string"},
            {"type": "object", "properties": {"use": {"type": "string"}}, "required": ["use"]},
            {"type": "object", "minProperties": 1, "maxProperties": 1, "properties": settings},
        ],
    }


def sections() -> list[type]:
    """Config and every Struct below it, each once, in the order of reading."""
    found: list[type] = []

    def visit(cls: type) -> None:
        if cls in found:
            return
        found.append(cls)
        for field in msgspec.structs.fields(cls):
            for below in _structs(inspect.type_info(field.type)):
                visit(below)

    visit(Config)
    return found


def keys(cls: type) -> Iterator[Key]:
    """The keys of a Struct, in the order of its definition."""
    for field in msgspec.structs.fields(cls):
        info = inspect.type_info(field.type)
        extra, description = _facts(info)
        yield Key(field.encode_name, _value(info), _default(field, info, extra), _bounds(info), description)


def _facts(info: inspect.Type) -> tuple[dict[str, Any], str]:
    """The contents of Meta: `extra` of all levels, and the outermost description."""
    extra: dict[str, Any] = {}
    description = ""
    while isinstance(info, inspect.Metadata):
        extra = {**(info.extra or {}), **extra}
        description = description or (info.extra_json_schema or {}).get("description", "")
        info = info.type
    return extra, description


def _bare(info: inspect.Type) -> inspect.Type:
    while isinstance(info, inspect.Metadata):
        info = info.type
    return info


def _members(info: inspect.Type) -> list[inspect.Type]:
    """The alternatives of a type, without None."""
    bare = _bare(info)
    if isinstance(bare, inspect.UnionType):
        return [member for member in bare.types if not isinstance(member, inspect.NoneType)]
    return [info]


def _structs(info: inspect.Type) -> Iterator[type]:
    extra, _ = _facts(info)
    for member in _members(info):
        bare = _bare(member)
        if isinstance(bare, inspect.StructType):
            yield bare.cls
        elif isinstance(bare, inspect.RawType) and "shape" in extra:
            yield extra["shape"]
        elif isinstance(bare, inspect.ListType | inspect.VarTupleType):
            shape = extra.get("shape")
            if shape is not None:
                yield shape
            yield from _structs(bare.item_type)
        elif isinstance(bare, inspect.DictType):
            yield from _structs(bare.value_type)


def _value(info: inspect.Type, extra: dict[str, Any] | None = None) -> str:
    """The accepted values of a key in words; a Struct by its class name in brackets."""
    extra = {**_facts(info)[0], **(extra or {})}
    members = _members(info)
    if len(members) > 1:
        return " or ".join(_value(member) for member in members)
    if members[0] is not info:
        return _value(members[0], extra)
    bare = _bare(info)
    if isinstance(bare, inspect.LiteralType):
        return ", ".join(f"`{value}`" for value in bare.values)
    if isinstance(bare, inspect.IntType):
        if "choices" in extra:
            return ", ".join(f"`{choice}`" for choice in extra["choices"])
        if "unit" in extra:
            return str(extra["unit"])
        return " or ".join([*(f"`{word}`" for word in extra.get("words", ())), "whole number"])
    if isinstance(bare, inspect.VarTupleType | inspect.ListType):
        item = f"[{extra['shape'].__name__}]" if "shape" in extra else _value(bare.item_type)
        return f"{item} or a list" if extra.get("one_or_many") else f"list of {item}"
    if isinstance(bare, inspect.DictType):
        return f"mapping: name to {_value(bare.value_type)}"
    if isinstance(bare, inspect.StructType):
        return f"[{bare.cls.__name__}]"
    names: dict[type[inspect.Type], str] = {
        inspect.StrType: "text",
        inspect.FloatType: "number",
        inspect.BoolType: "`true` or `false`",
        inspect.RawType: "mapping",
    }
    return names.get(type(bare), "any value")


def _default(field: msgspec.structs.FieldInfo, info: inspect.Type, extra: dict[str, Any]) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return _default_text(value, info, extra)


def _default_text(value: Any, info: inspect.Type, extra: dict[str, Any]) -> str:
    if value is None or value == "" or (isinstance(value, dict | tuple | list) and not value):
        return ""
    if isinstance(value, msgspec.Struct):
        shorthand = getattr(type(value), "shorthand", "")
        for field in msgspec.structs.fields(type(value)):
            if field.encode_name == shorthand:
                inner = inspect.type_info(field.type)
                return _default_text(getattr(value, field.name), inner, _facts(inner)[0])
        return ""
    if isinstance(value, tuple | list):
        bare = _bare(info)
        if isinstance(bare, inspect.VarTupleType | inspect.ListType):
            info = bare.item_type
            extra = {**extra, **_facts(info)[0]}
        return ", ".join(_default_text(item, info, extra) for item in value)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, bytes | msgspec.Raw):
        return ""
    for word, number in extra.get("words", {}).items():
        if number == value:
            return f"`{word}`"
    unit = extra.get("unit")
    if unit is not None:
        return f"`{UNITS[unit].show(value)}`" if value else "`0`"
    return f"`{value}`"


def _bounds(info: inspect.Type) -> str:
    extra, _ = _facts(info)
    bare = _bare(info)
    if not isinstance(bare, inspect.IntType | inspect.FloatType) or "choices" in extra:
        return ""
    show: Any = UNITS[extra["unit"]].show if "unit" in extra else "{:,}".format
    least, most = bare.ge, bare.le
    if most is not None:
        return f"{show(least or 0)} to {show(most)}".replace(",", " ")
    return f"at least {show(least)}" if least else ""


def _object(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required = []
    for field in msgspec.structs.fields(cls):
        info = inspect.type_info(field.type)
        extra, description = _facts(info)
        shape = _schema(info, definitions)
        if description:
            shape = {"description": description, **shape}
        default = _default(field, info, extra).strip("`")
        if field.required:
            required.append(field.encode_name)
        elif default and "`" not in default:
            shape["default"] = _plain_default(field, default)
        properties[field.encode_name] = shape
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if cls.__doc__:
        schema["description"] = cls.__doc__.strip()
    if required:
        schema["required"] = required
    return schema


def _plain_default(field: msgspec.structs.FieldInfo, text: str) -> Any:
    value = field.default
    return (
        value
        if (isinstance(value, bool | int | float) and str(value) == text.lower()) or isinstance(value, bool)
        else text
    )


def _schema(
    info: inspect.Type, definitions: dict[str, Any], extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    extra = {**_facts(info)[0], **(extra or {})}
    members = _members(info)
    if len(members) > 1 or members[0] is not info:
        # The `extra` of a union (a unit, words) applies to its only member, but not to one of several.
        below = extra if len(members) == 1 else None
        shapes = [_schema(member, definitions, below) for member in members]
        return {"anyOf": shapes + ([{"type": "null"}] if _optional(info) else [])}
    bare = _bare(info)
    if isinstance(bare, inspect.StructType) or (isinstance(bare, inspect.RawType) and "shape" in extra):
        return _reference(bare.cls if isinstance(bare, inspect.StructType) else extra["shape"], definitions)
    if isinstance(bare, inspect.VarTupleType | inspect.ListType):
        item = _schema(bare.item_type, definitions, {"shape": extra["shape"]} if "shape" in extra else None)
        array: dict[str, Any] = {"type": "array", "items": item}
        if bare.min_length:
            array["minItems"] = bare.min_length
        if extra.get("one_or_many"):
            return {"anyOf": [item, array]}
        if any(True for _ in _structs(info)):
            return array
        return {"anyOf": [array, {"$ref": "#/$defs/Variable"}]}  # a list as JSON
    if isinstance(bare, inspect.DictType):
        return {"type": "object", "additionalProperties": _schema(bare.value_type, definitions)}
    if isinstance(bare, inspect.StrType):
        text: dict[str, Any] = {"type": "string"}
        if bare.pattern:
            text["pattern"] = bare.pattern
        if bare.min_length:
            text["minLength"] = bare.min_length
        return {"anyOf": [text, {"$ref": "#/$defs/Variable"}]} if len(text) > 1 else text
    if isinstance(bare, inspect.AnyType):
        return {}
    return {"anyOf": [*_scalar(bare, extra), {"$ref": "#/$defs/Variable"}]}


def _scalar(bare: inspect.Type, extra: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if isinstance(bare, inspect.LiteralType):
        yield {"enum": [*bare.values, *_numbers_of(bare.values)]}
    elif isinstance(bare, inspect.BoolType):
        yield {"type": "boolean"}
    elif "choices" in extra:
        yield {"enum": list(extra["choices"])}
    elif "unit" in extra:
        yield {"type": "string", "pattern": UNITS[extra["unit"]].pattern}
        yield {"const": 0}
    elif isinstance(bare, inspect.IntType | inspect.FloatType):
        number: dict[str, Any] = {"type": "integer" if isinstance(bare, inspect.IntType) else "number"}
        for key, bound in (("minimum", bare.ge), ("maximum", bare.le)):
            if bound is not None:
                number[key] = bound
        yield number
        if extra.get("words"):
            yield {"enum": list(extra["words"])}
    else:
        yield {}


def _reference(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    name = cls.__name__
    if name not in definitions and cls is not PluginUse:
        definitions[name] = {}  # placeholder set before the fields are visited: a Struct may contain itself
        definitions[name] = _object(cls, definitions)
    options: list[dict[str, Any]] = [{"$ref": f"#/$defs/{name}"}]
    shorthand = getattr(cls, "shorthand", None)
    for field in msgspec.structs.fields(cls):
        if field.encode_name == shorthand:
            options.insert(0, _schema(inspect.type_info(field.type), definitions))
    for kind in getattr(cls, "short", {}):
        options += [{"type": _KINDS[kind]}] + ([{"$ref": "#/$defs/Variable"}] if kind is not str else [])
    return options[0] if len(options) == 1 else {"anyOf": options}


def _optional(info: inspect.Type) -> bool:
    bare = _bare(info)
    return isinstance(bare, inspect.UnionType) and any(isinstance(t, inspect.NoneType) for t in bare.types)


def _numbers_of(words: Iterable[Any]) -> Iterator[float]:
    """The numbers that YAML reads from words without quotes: `min_version: 1.2`."""
    for word in words:
        if isinstance(word, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", word):
            yield float(word) if "." in word else int(word)
