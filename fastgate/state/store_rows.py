"""Keys and consumers as rows of the store: columns, conditions, conversion. Lists and maps are JSON."""

from __future__ import annotations

import json
from typing import Any

from fastgate.state.records import KeyState, StoredConsumer, StoredKey

__all__ = [
    "CONSUMER_COLUMNS",
    "INSERT_KEY",
    "KEY_COLUMNS",
    "consumer_of",
    "key_conditions",
    "key_of",
    "row_of",
]

KEY_COLUMNS = StoredKey.__struct_fields__
CONSUMER_COLUMNS = StoredConsumer.__struct_fields__
_JSON_COLUMNS = frozenset({"scopes", "roles", "metadata", "limits"})
_TUPLES = frozenset({"scopes", "roles"})
INSERT_KEY = f"INSERT INTO keys ({', '.join(KEY_COLUMNS)}) VALUES ({', '.join('?' * len(KEY_COLUMNS))})"


def key_conditions(consumer: str | None, state: KeyState | None, now_ns: int) -> tuple[list[str], list[Any]]:
    """Conditions of a WHERE clause over keys, and their values."""
    where: list[str] = []
    values: list[Any] = []
    if consumer is not None:
        where.append("consumer = ?")
        values.append(consumer)
    if state == "revoked":
        where.append("revoked_ns != 0")
    elif state is not None:
        where.append("revoked_ns = 0")
        is_expired = "(expires_ns != 0 AND expires_ns <= ?)"
        where.append(is_expired if state == "expired" else f"NOT {is_expired}")
        values.append(now_ns)
        if state != "expired":
            where.append("not_before_ns > ?" if state == "pending" else "not_before_ns <= ?")
            values.append(now_ns)
            if state != "pending":
                where.append("replaced_by != ''" if state == "rotating" else "replaced_by = ''")
    return where, values


def row_of(stored: StoredKey | StoredConsumer) -> list[Any]:
    """The values of all columns, in the order of KEY_COLUMNS or CONSUMER_COLUMNS."""
    row = []
    for column in stored.__struct_fields__:
        value = getattr(stored, column)
        if column in _JSON_COLUMNS and value is not None:
            value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        row.append(int(value) if isinstance(value, bool) else value)
    return row


def _values(columns: tuple[str, ...], row: Any) -> dict[str, Any]:
    values = dict(zip(columns, row, strict=True))
    for column in _JSON_COLUMNS & values.keys():
        if values[column] is not None:
            decoded = json.loads(values[column])
            values[column] = tuple(decoded) if column in _TUPLES else decoded
    return values


def key_of(row: Any) -> StoredKey:
    """The key in a row of all columns."""
    return StoredKey(**_values(KEY_COLUMNS, row))


def consumer_of(row: Any) -> StoredConsumer:
    """The consumer in a row of all columns."""
    values = _values(CONSUMER_COLUMNS, row)
    if values["disabled"] is not None:
        values["disabled"] = bool(values["disabled"])
    return StoredConsumer(**values)
