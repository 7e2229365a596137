"""Calls of the running gateway's admin API from a command; exits with a message if it cannot be reached."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from fastgate.cli.config_file import (
    DEFAULT_FILES,
    EXIT_NO,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    fail,
    find_config,
    print_errors,
)

if TYPE_CHECKING:
    from fastgate.config import AdminConfig

__all__ = ["admin_json", "admin_of", "call"]

ADMIN_TIMEOUT_S: Final = 60.0  # a reload returns when the new config is in effect


def call(
    method: str, target: str, config: str | None, address: str | None, body: Any = None
) -> tuple[int, dict[str, Any]]:
    """Status and JSON of the admin API at this address, or at the configured one. AdminUnreachable."""
    from fastgate.cli.admin_client import AdminClient

    token = os.environ.get("FASTGATE_ADMIN_TOKEN")
    if address is None:
        found = admin_of(config)
        if found.listen == "off":
            fail("the admin API is off in this config (admin.listen)", EXIT_USAGE)
        address, token = found.listen, token or found.token
    try:
        return AdminClient(address, token, ADMIN_TIMEOUT_S).call(method, target, body)
    except ValueError as error:
        return fail(f"{address}: expected {error}", EXIT_USAGE)


def admin_json(
    method: str, target: str, config: str | None, address: str | None, body: Any = None
) -> dict[str, Any]:
    """The JSON response of the admin API. Exits with 3 if it cannot be reached, with 1 if it refuses."""
    from fastgate.cli.admin_client import AdminUnreachable

    try:
        code, response = call(method, target, config, address, body)
    except AdminUnreachable as error:
        fail(
            f"{error}. Is the gateway running? The admin address is admin.listen of the config, or --admin",
            EXIT_UNREACHABLE,
        )
    if code in (401, 403):
        fail("the admin API requires a token: set $FASTGATE_ADMIN_TOKEN", EXIT_NO)
    if code >= 400 and not any(key in response for key in ("errors", "problems", "error")):
        fail(f"the admin API returned {code}", EXIT_NO)
    return response


def admin_of(config: str | None) -> AdminConfig:
    """The address of the running gateway's admin API. Without a config it is the default, as for `fastgate
    demo`. A file with errors elsewhere is accepted, because the gateway runs with the previous one."""
    from fastgate.config import AdminConfig, InvalidConfig, load_admin

    if not config and not os.environ.get("FASTGATE_CONFIG") and not any(map(os.path.exists, DEFAULT_FILES)):
        return AdminConfig()
    try:
        return load_admin(find_config(config))
    except InvalidConfig as problem:
        print_errors(list(problem.errors))
        return fail("this config has no valid admin address: use --admin ADDRESS", EXIT_NO)
