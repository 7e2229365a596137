"""What is wrong inside the `auth` section: keys that cannot be used, URLs, hashes, contradictions.

One function per method. The libraries that a method needs are imported only when it is configured.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fastgate.auth.settings import JwtConfig, JwtIssuerConfig
from fastgate.config.root import Config, RouteConfig
from fastgate.config.shape import Report
from fastgate.config.source import Path
from fastgate.upstream.fetch import check_url

__all__ = ["check_auth"]

_KEY_SOURCES: Final = ("secret", "public_key", "jwks_file", "jwks_url", "discovery")


def check_auth(config: Config, routes: Iterable[RouteConfig], report: Report) -> None:
    """The whole section, and that each route lists only methods that it describes."""
    auth = config.auth
    if auth.jwt is not None:
        _check_jwt(auth.jwt, ("auth", "jwt"), report)
    for index, route in enumerate(routes):
        for at, name in enumerate(route.auth.schemes if route.auth is not None else ()):
            if getattr(auth, name, None) is None:
                report(
                    ("routes", index, "auth", at), f'"{name}"', f"a section $.auth.{name} that says how", ""
                )


def _check_jwt(config: JwtConfig, path: Path, report: Report) -> None:
    seen: dict[str | None, int] = {}
    for index, issuer in enumerate(config.issuers):
        here: Path = (*path, "issuers", index)
        first = seen.setdefault(issuer.issuer, index)
        if first != index:
            found = "no issuer" if issuer.issuer is None else f'"{issuer.issuer}"'
            report((*here, "issuer"), found, "an issuer of its own", f"issuers[{first}] has it already")
        _check_issuer(issuer, here, report)


def _check_issuer(issuer: JwtIssuerConfig, path: Path, report: Report) -> None:
    given = [name for name in _KEY_SOURCES if getattr(issuer, name)]
    if len(given) != 1:
        report(path, " and ".join(given) or "none of them", f"exactly one of {', '.join(_KEY_SOURCES)}", "")
        return
    if issuer.discovery:
        if issuer.issuer is None:
            report((*path, "issuer"), "nothing", "an issuer, since discovery asks it", "")
        else:
            _check_url(issuer.issuer, (*path, "issuer"), report)
    elif issuer.jwks_url is not None:
        _check_url(issuer.jwks_url, (*path, "jwks_url"), report)
    else:
        _check_keys(issuer, (*path, given[0]), report)
    symmetric = [name for name in issuer.algorithms if name.startswith("HS")]
    if symmetric and given[0] in ("public_key", "jwks_url", "discovery"):
        hint = "a shared secret is no public key; HS… is for secret and jwks_file"
        report((*path, "algorithms"), f'"{symmetric[0]}"', f"an algorithm for {given[0]}", hint)


def _check_keys(issuer: JwtIssuerConfig, path: Path, report: Report) -> None:
    from fastgate.auth.jwks import check_local_keys

    try:
        check_local_keys(issuer)
    except OSError as error:
        report(
            path, f"{error.filename}: {(error.strerror or str(error)).lower()}", "a file that can be read", ""
        )
    except ValueError as error:
        report(path, "what is there", str(error), "")


def _check_url(url: str, path: Path, report: Report) -> None:
    try:
        check_url(url)
    except ValueError as error:
        report(path, f'"{url}"', str(error), "")
