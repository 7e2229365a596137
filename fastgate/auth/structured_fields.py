"""Structured field values (RFC 9651, §3 to §4), as far as message signatures and digests need them.

`dictionary`, `items` and `item` parse a field value strictly; the `…_text` functions serialize one in its
canonical form. A value is a str (sf-string), a Token, bytes, bool, int or Decimal; dates and display strings
are rejected, because no supported field has them. A member is an item or an inner list, each with parameters.
Of duplicate parameters the last value is used, in the position of the first, as the RFC requires; duplicate
members of a dictionary are rejected, because two parsers that use different ones would disagree about what
was signed.
"""

from __future__ import annotations

import base64
import binascii
import re
from decimal import Decimal
from typing import Final, NamedTuple

from fastgate._core.http.field_names import TCHAR

__all__ = [
    "InnerList",
    "Item",
    "Member",
    "Token",
    "dictionary",
    "dictionary_text",
    "item",
    "item_text",
    "items",
    "items_text",
    "member_text",
]

# Far more than real fields have; these bound the work that a hostile header can cause.
MOST_MEMBERS: Final = 128
MOST_PARAMETERS: Final = 32

_KEY = re.compile(r"[a-z*][a-z0-9_.*-]*", re.ASCII)
_TOKEN = re.compile(rf"[A-Za-z*][{TCHAR}:/]*", re.ASCII)
_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"', re.ASCII)
_BYTES = re.compile(r":([A-Za-z0-9+/]*=*):", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,3})?", re.ASCII)
_BLANKS = re.compile(r"[ \t]*")


class Token(str):
    """An sf-token: a word without quotes."""

    __slots__ = ()


Bare = str | Token | bytes | bool | int | Decimal


class Item(NamedTuple):
    """A value with its parameters, in order."""

    value: Bare
    parameters: dict[str, Bare]


class InnerList(NamedTuple):
    """A list of items in parentheses, with its own parameters."""

    items: tuple[Item, ...]
    parameters: dict[str, Bare]


Member = Item | InnerList


def dictionary(text: str) -> dict[str, Member]:
    """The members of a dictionary by key. Raises ValueError for anything else."""
    reader = _Reader(text)
    found: dict[str, Member] = {}
    while not reader.at_end():
        key = reader.key()
        if key in found or len(found) >= MOST_MEMBERS:
            raise ValueError(f"member {key!r} is repeated, or there are too many")
        found[key] = reader.member() if reader.take("=") else Item(True, reader.parameters())
        reader.comma()
    return found


def items(text: str) -> list[Member]:
    """The members of a list. Raises ValueError for anything else."""
    reader = _Reader(text)
    found: list[Member] = []
    while not reader.at_end():
        found.append(reader.member())
        if len(found) > MOST_MEMBERS:
            raise ValueError("too many members")
        reader.comma()
    return found


def item(text: str) -> Item:
    """One item. Raises ValueError for anything else."""
    reader = _Reader(text)
    found = reader.item()
    if not reader.at_end():
        raise ValueError(f"unexpected {text[reader.at :]!r} after an item")
    return found


def dictionary_text(members: dict[str, Member]) -> str:
    """The dictionary in canonical form (§4.1.2)."""
    parts = []
    for key, member in members.items():
        if isinstance(member, Item) and member.value is True:
            parts.append(key + _parameters_text(member.parameters))
        else:
            parts.append(f"{key}={member_text(member)}")
    return ", ".join(parts)


def items_text(members: list[Member]) -> str:
    """The list in canonical form (§4.1.1)."""
    return ", ".join(member_text(member) for member in members)


def member_text(member: Member) -> str:
    """An item or an inner list in canonical form."""
    if isinstance(member, Item):
        return item_text(member)
    inner = " ".join(item_text(each) for each in member.items)
    return f"({inner}){_parameters_text(member.parameters)}"


def item_text(one: Item) -> str:
    """An item in canonical form (§4.1.3)."""
    return _bare_text(one.value) + _parameters_text(one.parameters)


def _parameters_text(parameters: dict[str, Bare]) -> str:
    if not parameters:
        return ""
    return "".join(
        f";{key}" if value is True else f";{key}={_bare_text(value)}" for key, value in parameters.items()
    )


def _bare_text(value: Bare) -> str:
    if isinstance(value, Token):
        return str(value)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, bool):
        return "?1" if value else "?0"
    if isinstance(value, bytes):
        return f":{base64.b64encode(value).decode()}:"
    if isinstance(value, Decimal):
        text = f"{value:f}".rstrip("0")
        return text + "0" if text.endswith(".") else text
    return str(value)


class _Reader:
    """The position of one pass over a value. The steps of §4.2, each raising ValueError."""

    def __init__(self, text: str) -> None:
        self.text = text.strip(" ")
        self.at = 0

    def at_end(self) -> bool:
        return self.at >= len(self.text)

    def take(self, character: str) -> bool:
        if self.text.startswith(character, self.at):
            self.at += 1
            return True
        return False

    def match(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise ValueError(f"expected {what} at {self.at}")
        self.at = found.end()
        return found

    def comma(self) -> None:
        """Skips a comma and the white space around it; a trailing comma is an error."""
        self.match(_BLANKS, "")
        if self.at_end():
            return
        if not self.take(","):
            raise ValueError(f"expected a comma at {self.at}")
        self.match(_BLANKS, "")
        if self.at_end():
            raise ValueError("a comma at the end")

    def key(self) -> str:
        return self.match(_KEY, "a key")[0]

    def member(self) -> Member:
        if not self.take("("):
            return self.item()
        found: list[Item] = []
        while True:
            before = self.at
            while self.take(" "):
                pass
            if self.take(")"):
                return InnerList(tuple(found), self.parameters())
            if found and self.at == before:
                raise ValueError(f"expected a space or ) at {self.at}")
            if len(found) >= MOST_MEMBERS:
                raise ValueError("too many items in an inner list")
            found.append(self.item())

    def item(self) -> Item:
        return Item(self.bare(), self.parameters())

    def parameters(self) -> dict[str, Bare]:
        found: dict[str, Bare] = {}
        while self.take(";"):
            while self.take(" "):
                pass
            key = self.key()
            value = self.bare() if self.take("=") else True
            found[key] = value  # the last value is used, in the position of the first (§4.2.3.2)
            if len(found) > MOST_PARAMETERS:
                raise ValueError("too many parameters")
        return found

    def bare(self) -> Bare:
        first = self.text[self.at : self.at + 1]
        if first == '"':
            return re.sub(r"\\(.)", r"\1", self.match(_STRING, "a string")[1])
        if first == ":":
            return _decoded(self.match(_BYTES, "a byte sequence")[1])
        if first == "?":
            flag = self.text[self.at + 1 : self.at + 2]
            if flag not in ("0", "1"):
                raise ValueError(f"expected ?0 or ?1 at {self.at}")
            self.at += 2
            return flag == "1"
        if first == "-" or first.isdigit():
            number = self.match(_NUMBER, "a number")[0]
            if "." not in number:
                if self.text.startswith(".", self.at):
                    raise ValueError(f"a number ends in a dot at {self.at}")
                return int(number)
            if len(number.lstrip("-").partition(".")[0]) > 12:
                raise ValueError(f"a decimal of more than 12 digits at {self.at}")
            return Decimal(number)
        return Token(self.match(_TOKEN, "a value")[0])


def _decoded(text: str) -> bytes:
    """The bytes of a byte sequence. Spare bits and non-standard padding are rejected: a signature must have
    only one encoding."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a byte sequence is not base64: {error}") from error
    if base64.b64encode(raw).decode() != text:
        raise ValueError("a byte sequence is not canonical base64")
    return raw
