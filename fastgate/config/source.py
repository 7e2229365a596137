"""Parses the text of a config file into plain values, and finds the line of each value.

YAML, TOML and JSON yield the same dicts and lists. YAML follows the rules of YAML 1.2 (`off` and `no` are
words, `1:30` is not a number), keys must be unique, and aliases cannot expand a small file into a large one.
After parsing, never before, `${NAME}` and `${NAME:-default}` are replaced inside string values (so a value
cannot inject structure; `$${` is a literal `${`), and variables named `FASTGATE__SERVER__IDLE_TIMEOUT`
replace single values. Lines are looked up only for errors, so a valid file does not pay for them.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import yaml

from fastgate.checks import Path
from fastgate.settings import ConfigError

__all__ = ["FORMATS", "MAX_FILE_BYTES", "Document", "Substituted", "parse", "path_text"]

FORMATS: Final = {".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}
# 50 000 routes of 300 bytes. A larger file is a mistake, and reading it must not exhaust the memory.
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_DEPTH: Final = 64
# Values after expansion of aliases; 5 000 routes have about 60 000.
MAX_VALUES: Final = 1_000_000

LEAST_NUMBER = -(1 << 63)
MOST_NUMBER = (1 << 64) - 1  # MessagePack and JSON decoders accept 64 bits, signed or unsigned
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)
# The core schema of YAML 1.2 (§10.3.2); YAML 1.1 would read `off` as false, `010` as 8 and `1:30` as 90.
_INTEGER = re.compile(r"[-+]?[0-9]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_WORDS: Final[dict[str, bool | float | None]] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|\$\{", re.ASCII)

_NO_VARIABLES = "this document cannot read the environment of the gateway; write $${ for a literal ${"


class Substituted(str):
    """A value from the environment: text that may represent a number or a boolean.

    `template` is the text in the file; messages show that and never the value, which may be a secret.
    `literal` is the value for a setting with placeholders such as `{client_ip}`: braces from the environment
    are literal there.
    """

    template: str
    literal: str

    def __new__(cls, value: str, template: str, literal: str | None = None) -> Substituted:
        text = super().__new__(cls, value)
        text.template = template
        text.literal = value if literal is None else literal
        return text


class Document:
    """Plain values and their positions."""

    def __init__(self, name: str, tree: Any, node: yaml.Node | None, json_text: str = "") -> None:
        self.name = name
        self.tree = tree
        self._node = node
        self._json_text = json_text
        self.overridden: dict[Path, str] = {}
        self.unset: set[Path] = (
            set()
        )  # values with an unset variable: already reported, and not checked further

    def where(self, path: Path) -> str:
        """`file:line` of the value at path, or of the nearest position above it; the name of the variable for
        an override."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.overridden:
                return self.overridden[path[:length]]
        if self._node is None and self._json_text:
            self._node = _compose_json(self._json_text)
        if self._node is None:
            return self.name
        return f"{self.name}:{_line(self._node, path)}"


def path_text(path: Path) -> str:
    """`$.routes[2].headers["x y"]` for ("routes", 2, "headers", "x y")."""
    parts = ["$"]
    for step in path:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif _PLAIN_KEY.fullmatch(step):
            parts.append(f".{step}")
        else:
            parts.append(f"[{json.dumps(step, ensure_ascii=False)}]")
    return "".join(parts)


def parse(
    text: str, form: str, environ: Mapping[str, str] | None, name: str = "config"
) -> tuple[Document | None, list[ConfigError]]:
    """The document in `text` (`yaml`, `toml` or `json`), with values from the environment inserted. `environ`
    None: the document must not read the environment, so every `${` except the escape `$${` is an error.

    The document is None if it does not parse at all. Otherwise it may come with errors (repeated keys, unset
    variables), so that the rest can be checked too.
    """
    if len(text) > MAX_FILE_BYTES:
        return None, [ConfigError("$", f"{len(text)} characters", f"at most {MAX_FILE_BYTES}", where=name)]
    errors: list[ConfigError] = []
    if not _is_encodable(text):
        return None, [ConfigError("$", "a lone surrogate", "characters", where=name)]
    try:
        document = _PARSERS[form](text, name, errors)
    except _Unreadable as error:
        return None, [error.reason]
    except RecursionError:
        return None, [ConfigError("$", "deeper nesting", f"at most {MAX_DEPTH} levels", where=name)]
    if document.tree is None:
        document.tree = {}
    if not isinstance(document.tree, dict):
        errors.append(
            ConfigError("$", _kind(document.tree), "a mapping of settings", where=document.where(()))
        )
        return None, errors
    if _is_too_deep(
        document.tree
    ):  # JSON and TOML: their parsers have a limit of their own, and it is a high one
        return None, [ConfigError("$", "deeper nesting", f"at most {MAX_DEPTH} levels", where=name)]
    if "\\u" in text or "\\U" in text:
        _check_escapes(document.tree, (), document, errors)
    _check_numbers(document.tree, (), document, errors)
    document.tree = _substitute(document.tree, (), environ, document, errors)
    return document, errors


def _is_too_deep(tree: object) -> bool:
    level: dict[int, object] = {id(tree): tree}
    for _ in range(MAX_DEPTH + 1):
        level = {  # aliases of YAML share parts: each is looked at once
            id(item): item
            for value in level.values()
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        }
        if not level:
            return False
    return True


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_escapes(value: Any, path: Path, document: Document, errors: list[ConfigError]) -> None:
    """Reports lone surrogates, which an escape can write: they are not characters and cannot be printed."""
    if isinstance(value, str) and not _is_encodable(value):
        errors.append(ConfigError(path_text(path), "half of a character", "text", where=document.where(path)))
        document.unset.add(path)
    elif isinstance(value, dict):
        for key, item in list(value.items()):
            if not _is_encodable(key):
                del value[key]
                errors.append(
                    ConfigError(path_text(path), "half of a character in a key", where=document.where(path))
                )
            else:
                _check_escapes(item, (*path, key), document, errors)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_escapes(item, (*path, index), document, errors)


def _check_numbers(value: Any, path: Path, document: Document, errors: list[ConfigError]) -> None:
    """Reports integers of more than 64 bits and infinite numbers: no consumer of the values accepts them."""
    if type(value) is int and not LEAST_NUMBER <= value <= MOST_NUMBER:
        found = f"a number of {value.bit_length()} bits"
        expected = "a number of at most 64 bits"
    elif type(value) is float and not math.isfinite(value):
        found, expected = f"the number {value}", "a number of at most 64 bits"
    else:
        below: Any = value if isinstance(value, dict) else {}
        if isinstance(value, list):
            below = dict(enumerate(value))
        for key, item in below.items():
            if isinstance(item, int | float | dict | list):
                _check_numbers(item, (*path, key), document, errors)
        return
    errors.append(ConfigError(path_text(path), found, expected, where=document.where(path)))
    document.unset.add(path)


def _json_number(digits: str) -> int:
    # Python refuses to convert more than 4 300 digits; anything above 64 bits is reported with its path.
    return int(digits[:40])


class _Unreadable(Exception):
    def __init__(self, name: str, line: int | None, problem: str, path: Path = (), hint: str = "") -> None:
        super().__init__(problem)
        self.reason = ConfigError(
            path_text(path), problem, hint=hint, where=f"{name}:{line}" if line else name
        )


def _parse_toml(text: str, name: str, errors: list[ConfigError]) -> Document:
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r" \(at line (\d+), column (\d+)\)\Z", str(error))
        problem = str(error)[: match.start()] if match else str(error)
        problem = f"not valid TOML: {problem[:1].lower()}{problem[1:]}"
        raise _Unreadable(name, int(match[1]) if match else None, problem) from None
    except ValueError:  # more digits than Python converts
        raise _Unreadable(name, None, "a number of more than 64 bits") from None
    return Document(name, tree, None)


def _parse_json(text: str, name: str, errors: list[ConfigError]) -> Document:
    repeated = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        mapping = dict(items)
        repeated = repeated or len(mapping) != len(items)
        return mapping

    try:
        tree = json.loads(text, object_pairs_hook=pairs, parse_constant=_no_number, parse_int=_json_number)
    except json.JSONDecodeError as error:
        problem = f"not valid JSON: {error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}"
        raise _Unreadable(name, error.lineno, problem) from None
    document = Document(name, tree, None, text)
    if repeated:  # JSON is a subset of YAML, and the YAML reader knows the line
        node = _compose_json(text)
        if node is None:
            errors.append(ConfigError("$", "repeated key in an object", where=name))
        else:
            _Values(name, errors).of(node)
    return document


def _no_number(word: str) -> NoReturn:
    raise json.JSONDecodeError(f"{word} is not a JSON number", word, 0)


def _parse_yaml(text: str, name: str, errors: list[ConfigError]) -> Document:
    try:
        node = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        at_fault = text[mark.index : mark.index + 1] if mark else ""
        hint = "indent with spaces, not tabs" if at_fault == "\t" else ""
        begins = "*" if "alias" in problem else at_fault
        if begins in ("*", "@", "`", "%"):
            hint = f"quote a value that begins with {begins}"
        if "block collection" in problem or "block mapping" in problem:
            hint = "check the indentation: entries of one block must begin in the same column"
        if "flow" in problem:
            hint = 'inside { } and [ ], quote what contains braces or commas: "/orders/{id}"'
        line = mark.line + 1 if mark else None
        raise _Unreadable(name, line, f"not valid YAML: {problem}", hint=hint) from None
    except yaml.reader.ReaderError as error:
        problem = f"not valid YAML: {error.reason} (character {error.position})"
        raise _Unreadable(name, None, problem) from None
    tree = None if node is None else _Values(name, errors).of(node)
    return Document(name, tree, node)


_PARSERS: Final = {"yaml": _parse_yaml, "toml": _parse_toml, "json": _parse_json}


class _Composer(yaml.CSafeLoader):
    """libyaml's parser, stopped at the node graph; scalars are typed here."""

    depth = 0

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        # Of a collection, `implicit` is a bool: False after a lone `!`.
        return "plain" if isinstance(implicit, tuple) and implicit[0] else "text"

    # Called around every node. The composer recurses in C, so without a bound a line of brackets would crash
    # the process.
    def descend_resolver(self, parent: yaml.Node | None, index: Any) -> None:
        self.depth += 1
        if self.depth > 3 * MAX_DEPTH:
            raise RecursionError

    def ascend_resolver(self) -> None:
        self.depth -= 1


def _compose(text: str) -> yaml.Node | None:
    loader = _Composer(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _compose_json(text: str) -> yaml.Node | None:
    try:
        return _compose(text)
    except yaml.YAMLError:  # tabs, for example: then no lines are known
        return None


class _Values:
    """Converts the node graph to plain values, and counts the values that aliases expand to."""

    def __init__(self, name: str, errors: list[ConfigError]) -> None:
        self._name = name
        self._errors = errors
        self._count = 0
        self._path: list[str | int] = []

    def of(self, node: yaml.Node) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            self._stop(node, f"more than {MAX_VALUES} values once its aliases are expanded")
        tag = node.tag
        if isinstance(node, yaml.ScalarNode):
            if tag == "plain":
                return _scalar(node.value)
            return node.value if tag in ("text", "tag:yaml.org,2002:str") else self._unknown_tag(node)
        if len(self._path) > MAX_DEPTH:
            self._stop(node, f"more than {MAX_DEPTH} levels of nesting")
        if isinstance(node, yaml.MappingNode) and tag in ("text", "tag:yaml.org,2002:map"):
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and tag in ("text", "tag:yaml.org,2002:seq"):
            values = []
            path = self._path
            for index, item in enumerate(node.value):
                path.append(index)
                values.append(self.of(item))
                path.pop()
            return values
        return self._unknown_tag(node)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        path = self._path
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                self._report(key_node, "a key that is not text", "a name")
                continue
            if key == "<<" and key_node.tag == "plain":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            path.append(key)
            if key in mapping:
                first = next(other for other, _ in node.value if other.value == key).start_mark.line + 1
                self._report(key_node, "repeated key", hint=f"the first is on line {first}")
            else:
                self._count += 1
                if isinstance(value_node, yaml.ScalarNode) and value_node.tag == "plain":
                    mapping[key] = _scalar(value_node.value)
                else:
                    mapping[key] = self.of(value_node)
            path.pop()
        for source in merged:
            values = self.of(source)
            if not isinstance(values, dict):
                self._report(source, _kind(values), "a mapping after <<")
                continue
            for key, value in values.items():
                mapping.setdefault(key, value)
        return mapping

    def _report(self, node: yaml.Node, found: str, expected: str = "", hint: str = "") -> None:
        where = f"{self._name}:{node.start_mark.line + 1}"
        self._errors.append(ConfigError(path_text(tuple(self._path)), found, expected, hint, where))

    def _stop(self, node: yaml.Node, problem: str) -> NoReturn:
        raise _Unreadable(self._name, node.start_mark.line + 1, problem, tuple(self._path[:1]))

    def _unknown_tag(self, node: yaml.Node) -> None:
        self._report(node, f"the tag {node.tag}", "a plain value")


def _scalar(text: str) -> Any:
    if len(text) <= 5 and text in _WORDS:
        return _WORDS[text]
    if text[0] in "+-.0123456789":
        if _INTEGER.fullmatch(text):
            return int(text) if len(text) < 25 else text
        if _FLOAT.fullmatch(text):
            return float(text)
        if _BASED.fullmatch(text):
            return int(text, 0)
    return text


def _line(node: yaml.Node, path: Path) -> int:
    line: int = node.start_mark.line + 1
    for step in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
        elif isinstance(node, yaml.MappingNode):
            found = _entry(node, str(step))
            if found is None:
                return line
            line, node = found
            continue
        else:
            return line
        line = node.start_mark.line + 1
    return line


def _entry(node: yaml.MappingNode, key: str, depth: int = 0) -> tuple[int, yaml.Node] | None:
    for key_node, value_node in node.value:
        if key_node.value == key:
            return key_node.start_mark.line + 1, value_node
    for key_node, value_node in node.value:
        if key_node.value == "<<" and depth < MAX_DEPTH:
            for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                found = _entry(source, key, depth + 1) if isinstance(source, yaml.MappingNode) else None
                if found is not None:
                    return found
    return None


def _substitute(
    value: Any,
    path: Path,
    environ: Mapping[str, str] | None,
    document: Document,
    errors: list[ConfigError],
) -> Any:
    if len(path) > MAX_DEPTH:
        raise RecursionError
    if type(value) is str:
        return _expand(value, path, environ, document, errors) if "${" in value else value
    if type(value) is dict:
        for key, item in value.items():
            kind = type(item)
            if kind is dict or kind is list or (kind is str and "${" in item):
                value[key] = _substitute(item, (*path, key), environ, document, errors)
    elif type(value) is list:
        for index, item in enumerate(value):
            kind = type(item)
            if kind is dict or kind is list or (kind is str and "${" in item):
                value[index] = _substitute(item, (*path, index), environ, document, errors)
    return value


def _expand(
    template: str,
    path: Path,
    environ: Mapping[str, str] | None,
    document: Document,
    errors: list[ConfigError],
) -> str:
    if environ is None:
        if any(match[0] != "$${" for match in _VARIABLE.finditer(template)):
            found, expected = json.dumps(template, ensure_ascii=False), "text without ${…}"
            errors.append(ConfigError(path_text(path), found, expected, _NO_VARIABLES, document.name))
            return ""
        environ = {}
    from_environment = False
    from_variable = False

    def replace(match: re.Match[str]) -> str:
        nonlocal from_environment, from_variable
        from_variable = False
        if match[0] == "$${":
            return "${"
        from_environment = True
        name, default = match[1], match[2]
        if name is None:
            found = json.dumps(template)
            hint = "write $${ for a literal ${"
            errors.append(
                ConfigError(path_text(path), found, "${NAME} or ${NAME:-default}", hint, document.where(path))
            )
            return ""
        if default is not None:
            from_variable = bool(environ.get(name))
            return environ.get(name) or default
        if name not in environ:
            document.unset.add(path)
            hint = f"set it, or give a default: ${{{name}:-…}}"
            found = f"the environment variable {name} is not set"
            errors.append(ConfigError(path_text(path), found, hint=hint, where=document.where(path)))
            return ""
        from_variable = True
        return environ[name]

    pieces = []
    literals = []
    end = 0
    for match in _VARIABLE.finditer(template):
        value = replace(match)
        pieces += [template[end : match.start()], value]
        literals += [template[end : match.start()], value.replace("{", "{{}") if from_variable else value]
        end = match.end()
    text = "".join([*pieces, template[end:]])
    if not _is_encodable(text):
        document.unset.add(path)
        errors.append(
            ConfigError(
                path_text(path), f"bytes that are not UTF-8 in {template}", where=document.where(path)
            )
        )
        return Substituted("", template)
    return Substituted(text, template, "".join([*literals, template[end:]])) if from_environment else text


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | int | float) else str(value)
