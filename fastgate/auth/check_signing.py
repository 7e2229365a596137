"""Checks of the keys and rules of signed requests (`auth.hmac`, `auth.signatures`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from fastgate.auth.secrets import secret_bytes
from fastgate.auth.section import ConsumerConfig
from fastgate.auth.signatures import load_key
from fastgate.auth.signing_settings import HmacConfig, SignaturesConfig
from fastgate.checks import LOWER_TOKEN, Path, Report, nearest

__all__ = ["check_hmac", "check_signatures"]

# Valid inside a quoted string of the Authorization or Signature-Input field.
_KEY_ID = re.compile(r"[!#-\[\]-~]{1,128}", re.ASCII)
_DERIVED: Final = (
    "@authority",
    "@method",
    "@path",
    "@query",
    "@request-target",
    "@scheme",
    "@target-uri",
)


def check_hmac(
    config: HmacConfig, consumers: Mapping[str, ConsumerConfig], path: Path, report: Report
) -> None:
    """Checks the section `auth.hmac`, and the secrets of consumers."""
    for name, consumer in consumers.items():
        if consumer.hmac_secret is not None:
            where: Path = ("consumers", name, "hmac_secret")
            _check(lambda secret=consumer.hmac_secret: secret_bytes(secret), where, report)  # type: ignore[misc]
    for key_id, key in config.keys.items():
        where = (*path, "keys", key_id)
        _check_key(key_id, key.consumer, consumers, where, report)
        _check(lambda key=key: secret_bytes(key.secret), (*where, "secret"), report)  # type: ignore[misc]
    for index, name in enumerate(config.required_headers):
        if not LOWER_TOKEN.fullmatch(name):
            report((*path, "required_headers", index), f'"{name}"', "a field name in lower case", "")


def check_signatures(
    config: SignaturesConfig, consumers: Mapping[str, ConsumerConfig], path: Path, report: Report
) -> None:
    """Checks the section `auth.signatures`."""
    for key_id, key in config.keys.items():
        where = (*path, "keys", key_id)
        _check_key(key_id, key.consumer, consumers, where, report)
        _check(lambda key_id=key_id, key=key: load_key(key_id, key), where, report)  # type: ignore[misc]
    for section, names in (
        ("required", config.required),
        ("required_if_present", config.required_if_present),
    ):
        for index, name in enumerate(names):
            if name.startswith("@") and section == "required" and name in _DERIVED:
                continue
            if not LOWER_TOKEN.fullmatch(name) or name.startswith("@"):
                hint = nearest(name, _DERIVED) if name.startswith("@") else ""
                wanted = "a field name in lower case"
                if section == "required":
                    wanted += f", or one of {', '.join(_DERIVED)}"
                report((*path, section, index), f'"{name}"', wanted, hint)


def _check_key(
    key_id: str, consumer: str, consumers: Mapping[str, ConsumerConfig], path: Path, report: Report
) -> None:
    if not _KEY_ID.fullmatch(key_id):
        report(path, f'the key id "{key_id}"', "1 to 128 printable ASCII characters, no quotes or spaces", "")
    if consumer in consumers:
        return
    # Consumers created at run time are not in the file, so unknown names are accepted, unless they look like
    # a misspelling of a known one.
    near = nearest(consumer, list(consumers))
    if near:
        report((*path, "consumer"), f'"{consumer}"', "a consumer", near)


def _check(make: Callable[[], Any], path: Path, report: Report) -> None:
    """Reports why an object cannot be built, without revealing the secret in it."""
    try:
        make()
    except ValueError as error:
        report(path, "one that cannot be used", str(error), "")
    except OSError as error:
        report(path, f'"{error.filename}"', "a file that can be read", (error.strerror or "").lower())
