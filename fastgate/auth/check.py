"""Checks of the `auth` section: unusable keys, URLs, hashes, contradictions.

One function per method. The libraries that a method needs are imported only when it is configured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from fastgate._core.http.field_names import REQUEST_FIELDS
from fastgate.auth.check_signing import check_hmac, check_signatures
from fastgate.auth.consumers import NAME_PATTERN
from fastgate.auth.section import AuthConfig, ConsumerConfig
from fastgate.auth.settings import ForwardConfig, JwtConfig, JwtIssuerConfig
from fastgate.checks import TOKEN, WORD_PATTERN, Path, Report, RouteSite, nearest, snake_case
from fastgate.upstream.check import check_client_tls
from fastgate.upstream.fetch import check_url

__all__ = ["check_root", "check_route", "check_together"]

_KEY_SOURCES: Final = ("secret", "public_key", "jwks_file", "jwks_url", "discovery")
#: Names of these methods in other gateways, and the equivalents here.
_FOREIGN_SCHEMES: Final = {
    name: hint
    for hint, names in (
        ("write api_key", "key_auth keyauth key keys token apikeys"),
        (
            "write jwt; for tokens that only their issuer can read, introspection",
            "oauth2 oauth oidc openid_connect openid bearer bearer_token",
        ),
        ("write basic", "basic_auth basicauth auth_basic password htpasswd ldap_auth"),
        ("write forward", "forward_auth forwardauth ext_authz auth_request external"),
        ("write mtls", "mtls_auth client_cert client_certificate tls"),
        ("write hmac", "hmac_auth"),
        ("write auth: false", "none off no"),
    )
    for name in names.split()
}


def check_root(config: Any, report: Report) -> None:
    """Consumers, and the settings of each method."""
    auth: AuthConfig = config.auth
    for name, consumer in config.consumers.items():
        _check_consumer(name, consumer, ("consumers", name), report)
    check_hmac(auth.hmac, config.consumers, ("auth", "hmac"), report)
    check_signatures(auth.signatures, config.consumers, ("auth", "signatures"), report)
    if auth.jwt is not None:
        _check_jwt(auth.jwt, ("auth", "jwt"), report)
    if auth.introspection is not None:
        _check_url(auth.introspection.url, ("auth", "introspection", "url"), report)
    if auth.forward is not None:
        _check_forward(auth.forward, ("auth", "forward"), report)
    _check_basic(config, report)
    _check_mtls(config, report)
    for name in ("jwt", "introspection", "forward"):
        settings = getattr(auth, name)
        if settings is not None:
            check_client_tls(settings.tls, ("auth", name, "tls"), report)


def _check_consumer(name: str, consumer: ConsumerConfig, path: Path, report: Report) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        report(path, f'the name "{name}"', "1 to 255 printable ASCII characters, no space at the ends", "")
    for kind, words in (("scopes", consumer.scopes), ("roles", consumer.roles)):
        for index, word in enumerate(words):
            if not re.fullmatch(WORD_PATTERN, word):
                report((*path, kind, index), f'"{word}"', "printable ASCII without spaces and quotes", "")


def check_route(route: Any, site: RouteSite) -> None:
    """The methods of a route."""
    if route.auth is None:
        return
    schemes = route.auth.schemes
    for at, scheme in enumerate(schemes):
        where: Path = (*site.path, "auth", at)
        if scheme not in AuthConfig.__struct_fields__:
            hint = _FOREIGN_SCHEMES.get(snake_case(scheme)) or nearest(scheme, AuthConfig.__struct_fields__)
            known = ", ".join(AuthConfig.__struct_fields__)
            site.report(where, f'"{scheme}"', f"one of {known}", hint)
        elif scheme == "api_key" and not site.has_controller:
            hint = "API keys are published by the controller, which requires an admin listener: unix:/path"
            site.report(where, '"api_key" with admin.listen off', "", hint)
        elif scheme == "anonymous" and at < len(schemes) - 1:
            hint = f"put it last: it accepts every request, so {schemes[at + 1]} is never tried"
            site.report(where, '"anonymous" before other methods', "", hint)


def check_together(config: Any, routes: Sequence[Any], report: Report) -> None:
    """Each route lists only methods that are configured in the root, and sets no header that one of them
    sets."""
    auth: AuthConfig = config.auth
    claimed = {_folded(name) for name in (auth.forward.upstream_headers if auth.forward is not None else ())}
    for index, route in enumerate(routes):
        if route.auth is not None and "forward" in route.auth.schemes and route.request_headers is not None:
            for old, new in route.request_headers.rename.items():
                if _folded(new) in claimed:
                    hint = "auth.forward.upstream_headers has it: only the service may set it"
                    where: Path = ("routes", index, "request_headers", "rename", old)
                    report(where, f'"{new}"', "another name", hint)
        for at, name in enumerate(route.auth.schemes if route.auth is not None else ()):
            if name in AuthConfig.__struct_fields__ and getattr(auth, name) is None:
                report(
                    ("routes", index, "auth", at),
                    f'"{name}"',
                    f"a section $.auth.{name} that says how",
                    f"write auth: {{{name}: {{…}}}} at the root",
                )


def _folded(name: str) -> str:
    return re.sub(r"[_.]", "-", name.lower())


def _check_jwt(config: JwtConfig, path: Path, report: Report) -> None:
    seen: dict[str | None, int] = {}
    for index, issuer in enumerate(config.issuers):
        here: Path = (*path, "issuers", index)
        first = seen.setdefault(issuer.issuer, index)
        if first != index:
            found = "no issuer" if issuer.issuer is None else f'"{issuer.issuer}"'
            report((*here, "issuer"), found, "a unique issuer", f"issuers[{first}] already has it")
        _check_issuer(issuer, here, report)


def _check_issuer(issuer: JwtIssuerConfig, path: Path, report: Report) -> None:
    given = [name for name in _KEY_SOURCES if getattr(issuer, name)]
    if len(given) != 1:
        report(path, " and ".join(given) or "none of them", f"exactly one of {', '.join(_KEY_SOURCES)}", "")
        return
    if issuer.discovery:
        if issuer.issuer is None:
            report((*path, "issuer"), "nothing", "an issuer, required by discovery", "")
        else:
            _check_url(issuer.issuer, (*path, "issuer"), report)
    elif issuer.jwks_url is not None:
        _check_url(issuer.jwks_url, (*path, "jwks_url"), report)
    else:
        _check_keys(issuer, (*path, given[0]), report)
    symmetric = [name for name in issuer.algorithms if name.startswith("HS")]
    if symmetric and given[0] in ("public_key", "jwks_url", "discovery"):
        hint = "a shared secret is not a public key; HS… is for secret and jwks_file"
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
        # The value found is not shown: it might be the secret itself.
        found = (
            f"one of {len(issuer.secret.encode())} bytes" if issuer.secret else "a value that is not shown"
        )
        report(path, found, str(error), "")


def _check_forward(config: ForwardConfig, path: Path, report: Report) -> None:
    _check_url(config.url, (*path, "url"), report)
    lists = ("request_headers", "required_headers", "upstream_headers")
    named = [((*path, key, at), name) for key in lists for at, name in enumerate(getattr(config, key))]
    single = ("consumer_header", "tier_header", "scopes_header", "roles_header")
    named += [((*path, key), getattr(config, key)) for key in single if getattr(config, key) is not None]
    for where, name in named:
        if not TOKEN.fullmatch(name):
            report(where, f'"{name}"', "the name of a header field", "")
        elif where[2] == "request_headers" and name.lower() in REQUEST_FIELDS:
            hint = "X-Forwarded-Host is always sent and contains it" if name.lower() == "host" else ""
            report(where, f'"{name}"', "a field other than those of the connection and the framing", hint)
        elif where[2] == "upstream_headers" and name.lower() in REQUEST_FIELDS:
            report(where, f'"{name}"', "a field other than those of the connection and the framing", "")


def _check_basic(config: Any, report: Report) -> None:
    hashes: list[tuple[Path, str]] = [
        (("auth", "basic", "users", name), text) for name, text in config.auth.basic.users.items()
    ]
    hashes += [
        (("consumers", name, "basic_password_hash"), consumer.basic_password_hash)
        for name, consumer in config.consumers.items()
        if consumer.basic_password_hash is not None
    ]
    if not hashes:
        return
    from fastgate.auth.passwords import password_checker

    for path, text in hashes:
        try:
            password_checker(text)
        except ValueError as error:
            # The value found is not shown: it might be the password itself.
            report(path, "something else", f"a hash created by `fastgate hash-password`: {error}", "")


def _check_mtls(config: Any, report: Report) -> None:
    entries: list[tuple[Path, str]] = [
        (("auth", "mtls", "certificates", text), text) for text in config.auth.mtls.certificates
    ]
    entries += [
        (("consumers", name, "certificate", at), text)
        for name, consumer in config.consumers.items()
        for at, text in enumerate(consumer.certificate)
    ]
    if not entries:
        return
    from fastgate.auth.mtls import certificate_key

    seen: dict[str, Path] = {}
    for path, text in entries:
        try:
            key = certificate_key(text)
        except ValueError as error:
            report(path, f'"{text}"', str(error), "")
            continue
        if key in seen:
            report(path, f'"{text}"', "a certificate of one consumer", "it is listed twice")
        seen[key] = path


def _check_url(url: str, path: Path, report: Report) -> None:
    try:
        check_url(url)
    except ValueError as error:
        report(path, f'"{url}"', str(error), "")
