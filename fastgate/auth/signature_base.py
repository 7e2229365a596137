"""The signature base of RFC 9421: the exact bytes signed, from a request and a Signature-Input member.

Pure: no keys, no clock. Requests only, so `@status` and the `req` parameter are errors, and so is `tr`,
because a gateway decides before the trailers arrive. Components are defined in §2.1 and §2.2, the lines in
§2.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_plus

from fastgate.auth.structured_fields import (
    InnerList,
    Item,
    Token,
    dictionary,
    dictionary_text,
    item,
    item_text,
    items,
    items_text,
    member_text,
)
from fastgate.checks import LOWER_TOKEN

__all__ = ["Message", "component_values", "coverage", "signature_base"]

MOST_COMPONENTS: Final = (
    64  # a field may be covered in several ways; more components than this are an attempt to cause work
)


# Structured fields whose type is registered, which `;sf` requires (RFC 9421 §2.1.1).
_STRUCTURED: Final[dict[str, str]] = {
    **dict.fromkeys(
        (
            "accept-signature",
            "cache-status",
            "cdn-cache-control",
            "content-digest",
            "priority",
            "repr-digest",
            "signature",
            "signature-input",
            "want-content-digest",
            "want-repr-digest",
        ),
        "dictionary",
    ),
    **dict.fromkeys(("accept-ch", "client-cert-chain", "proxy-status"), "list"),
    **dict.fromkeys(("client-cert", "deprecation", "idempotency-key", "sec-gpc"), "item"),
}
_STRUCTURED["cache-status"] = "list"


class Message(NamedTuple):
    """The parts of a request that a signature covers."""

    method: str
    scheme: str  # http or https, as used by the client
    authority: str  # the Host field, or the authority of an absolute-form target
    target: str  # the request target as received
    field: Callable[[str], list[str]]  # every value of a field, in order


class Component(NamedTuple):
    """One covered component: its name and parameters."""

    name: str
    item: Item

    @property
    def identifier(self) -> str:
        """The component identifier in the form used in a signature base."""
        return item_text(self.item)


def coverage(covered: InnerList) -> list[Component]:
    """The components of a Signature-Input member, each once. Raises ValueError if one is invalid."""
    if len(covered.items) > MOST_COMPONENTS:
        raise ValueError(f"{len(covered.items)} components")
    seen: set[object] = set()
    out: list[Component] = []
    for each in covered.items:
        if not isinstance(each.value, str) or isinstance(each.value, Token):
            raise ValueError("a component that is not a string")
        identity = (each.value, frozenset(each.parameters.items()))  # without order (§2)
        if identity in seen:
            raise ValueError(f"{item_text(each)} is covered twice")
        seen.add(identity)
        out.append(Component(each.value, each))
    return out


def signature_base(message: Message, covered: InnerList) -> bytes:
    """The signed bytes. Raises ValueError if a component is missing or unsupported."""
    lines = [f"{component.identifier}: {value}" for component, value in component_values(message, covered)]
    lines.append(f'"@signature-params": {member_text(covered)}')
    base = "\n".join(lines)
    if not base.isascii():
        raise ValueError("a component with non-ASCII bytes")
    return base.encode()


def component_values(message: Message, covered: InnerList) -> list[tuple[Component, str]]:
    """Every covered component with its value."""
    out = []
    for component in coverage(covered):
        name, parameters = component.name, component.item.parameters
        if name.startswith("@"):
            value = _derived(message, name, parameters)
        else:
            value = _field(message, name, parameters)
        if "\n" in value or "\r" in value:
            raise ValueError(f"{name} spans lines")
        out.append((component, value))
    return out


def _derived(message: Message, name: str, parameters: Mapping[str, object]) -> str:
    if name == "@query-param":
        if parameters.keys() != {"name"} or not isinstance(parameters["name"], str):
            raise ValueError("@query-param without its name")
        return _query_parameter(message, parameters["name"])
    if parameters:
        raise ValueError(f"{name} has unsupported parameters: {sorted(parameters)}")
    if name == "@method":
        return message.method
    if name == "@authority":
        return _authority(message)
    if name == "@scheme":
        return message.scheme
    if name == "@request-target":
        return message.target
    path, query = _path_and_query(message.target)
    if name == "@path":
        return path
    if name == "@query":
        return "?" + (query or "")
    if name == "@target-uri":
        if "://" in message.target[:8]:
            return message.target
        if message.target == "*":
            path = ""
        return f"{message.scheme}://{message.authority}{path}{'' if query is None else '?' + query}"
    raise ValueError(f"{name} is not a component of a request")


def _authority(message: Message) -> str:
    """Lower case, without the port of the scheme (§2.2.3)."""
    authority = message.authority.lower()
    default = ":443" if message.scheme == "https" else ":80"
    return authority.removesuffix(default)


def _path_and_query(target: str) -> tuple[str, str | None]:
    """The path ("/" if empty) and the query (None if there is no question mark), as received."""
    if target[:1] != "/" and "://" in target[:8]:
        rest = target.partition("://")[2]
        cut = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
        target = rest[cut:]
    path, question, query = target.partition("?")
    return path or "/", query if question else None


def _query_parameter(message: Message, name: str) -> str:
    """The single value of a query parameter, decoded and re-encoded (§2.2.8). A repeated parameter must not
    be signed this way."""
    query = _path_and_query(message.target)[1] or ""
    found = []
    for pair in query.split("&"):
        if not pair:
            continue
        key, _, value = pair.partition("=")
        if _form_encoded(unquote_plus(key, errors="replace")) == name:
            found.append(value)
    if len(found) != 1:
        raise ValueError(f"the query parameter {name} occurs {len(found)} times")
    return _form_encoded(unquote_plus(found[0], errors="replace"))


def _form_encoded(text: str) -> str:
    """Percent-encoding of form data as in the URL standard, with %20 for a space."""
    return quote(text, safe="*").replace("~", "%7E")


def _field(message: Message, name: str, parameters: Mapping[str, object]) -> str:
    if not LOWER_TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not a field name in lower case")
    values = message.field(name)
    if not values:
        raise ValueError(f"{name} is covered, but missing")
    if not parameters:
        return ", ".join(value.strip(" \t") for value in values)
    unknown = parameters.keys() - {"sf", "key", "bs"}
    if unknown or any(parameters.get(flag, True) is not True for flag in ("sf", "bs")):
        raise ValueError(f"{name} with unsupported parameters: {sorted(parameters)}")
    if "bs" in parameters:
        if len(parameters) > 1:
            raise ValueError(f"{name}: bs excludes sf and key")
        return items_text([Item(value.strip(" \t").encode("latin-1"), {}) for value in values])
    joined = ", ".join(values)
    key = parameters.get("key")
    if key is not None:
        if not isinstance(key, str):
            raise ValueError(f"{name}: the key is not a string")
        member = dictionary(joined).get(key)
        if member is None:
            raise ValueError(f"{name} has no member {key}")
        return member_text(member)
    kind = _STRUCTURED.get(name)
    if kind == "dictionary":
        return dictionary_text(dictionary(joined))
    if kind == "list":
        return items_text(items(joined))
    if kind == "item":
        return item_text(item(joined))
    raise ValueError(f"{name} is not known to be a structured field")
