"""Checks of upstreams: names, targets, TLS, credentials."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec

from fastgate._core.http.field_names import REQUEST_FIELDS
from fastgate.certificates import CertificateError, load_authorities, load_pair
from fastgate.checks import TOKEN, Path, Report, check_field_name, nearest
from fastgate.upstream.balancing import check_balance
from fastgate.upstream.credentials import check_credential
from fastgate.upstream.settings import CredentialConfig, UpstreamConfig, UpstreamTlsConfig, parse_target

__all__ = [
    "check_client_tls",
    "check_credentials",
    "check_health_rows",
    "check_upstream",
    "target_hint",
    "try_certificate",
    "with_credentials",
]

_UPSTREAM_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9_])?", re.ASCII)


def check_upstream(name: str, upstream: UpstreamConfig, path: Path, report: Report) -> None:
    """One entry of `upstreams`."""
    if not _UPSTREAM_NAME.fullmatch(name):
        report(path, f'the name "{name}"', "letters, digits, _ - and . only", "")
    secure = False
    for index, target in enumerate(upstream.targets):
        try:
            secure = parse_target(target.url).secure or secure
        except ValueError as error:
            report((*path, "targets", index), f'"{target.url}"', str(error), target_hint(target.url))
            secure = True  # unknown: do not check tls
    if all(target.weight == 0 for target in upstream.targets):
        report((*path, "targets"), "weight 0 everywhere", "at least one target with a weight", "")
    if not secure and upstream.tls != UpstreamTlsConfig():
        report(
            (*path, "tls"), "settings for TLS, but no https:// target", "", "write https:// or take tls away"
        )
    seen: dict[str, int] = {}
    for index, target in enumerate(upstream.targets):
        if seen.setdefault(target.url, index) != index:
            report((*path, "targets", index), f'"{target.url}" again', "each target once", "raise its weight")
    check_balance(upstream, path, report)
    pool = upstream.pool
    if pool.reserve is not None and pool.max_connections and pool.reserve > pool.max_connections // 2:
        report(
            (*path, "pool", "reserve"),
            str(pool.reserve),
            f"at most half of max_connections ({pool.max_connections // 2})",
            "",
        )
    check_client_tls(upstream.tls, (*path, "tls"), report)
    if upstream.timeouts.deadline_header is not None:
        check_field_name(upstream.timeouts.deadline_header, (*path, "timeouts", "deadline_header"), report)


def check_health_rows(upstreams: Iterable[UpstreamConfig], rows: int, report: Report) -> None:
    """Twice the rows in use: during a reload, the workers hold those of both configs."""
    needed = 2 * sum(1 + len(upstream.targets) for upstream in upstreams)
    if needed > rows:
        report(
            ("memory", "health_rows"),
            str(rows),
            f"at least {needed}, twice the number of targets and upstreams",
            "",
        )


def check_client_tls(tls: UpstreamTlsConfig, path: Path, report: Report) -> None:
    """The files that a TLS client reads."""

    def context() -> ssl.SSLContext:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    if tls.ca is not None:
        authorities = tls.ca
        try_certificate(lambda: load_authorities(context(), authorities), (*path, "ca"), report)
    if (tls.certificate is None) != (tls.key is None):
        missing = "key" if tls.key is None else "certificate"
        report((*path, missing), "missing key", "a file, as the other of certificate and key is given", "")
    elif tls.certificate is not None and tls.key is not None:
        certificate, key = tls.certificate, tls.key
        try_certificate(lambda: load_pair(context(), certificate, key), path, report)


def try_certificate(load: Callable[[], None], path: Path, report: Report) -> None:
    """Reports why certificates cannot be loaded."""
    try:
        load()
    except CertificateError as error:
        report(path, str(error), "", "")


def target_hint(url: str) -> str:
    """The correct form of a target's URL; "" if it cannot be derived."""
    if re.match(r"https?://[^/]+/.+", url):
        return "leave the path out and use rewrite on the route"
    if re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]+)?", url):
        return f"write http://{url}"
    return ""


def check_credentials(
    credentials: Mapping[str, CredentialConfig], upstreams: Mapping[str, UpstreamConfig], report: Report
) -> None:
    """The root section `credentials`, and `credentials` of every upstream."""
    found: list[tuple[Path, CredentialConfig]] = [
        (("credentials", name), settings) for name, settings in credentials.items()
    ]
    for name, upstream in upstreams.items():
        path: Path = ("upstreams", name, "credentials")
        if isinstance(upstream.credentials, str):
            if upstream.credentials not in credentials:
                hint = nearest(upstream.credentials, credentials)
                found_text = f'"{upstream.credentials}"'
                if not hint.startswith("did you mean"):
                    # Never the value found: it might be the secret itself.
                    found_text = "another text"
                    hint = "a secret never stands in the config: {env: NAME}, {file: path} or {store: name}"
                report(path, found_text, "the name of an entry of $.credentials", hint)
        elif upstream.credentials is not None:
            found.append((path, upstream.credentials))
    for path, settings in found:
        check_credential(settings, partial(_deep_below, report, path))
        shown = settings.name
        if shown is not None and settings.send == "header":
            if not TOKEN.fullmatch(shown) or shown.lower() in REQUEST_FIELDS:
                report((*path, "name"), f'"{shown}"', "a header name that is not the connection's own", "")
        elif shown is not None and not (shown.isascii() and shown.isprintable()):
            report((*path, "name"), f'"{shown}"', "printable ASCII", "")


def with_credentials(
    credentials: Mapping[str, CredentialConfig], upstreams: Mapping[str, UpstreamConfig]
) -> dict[str, UpstreamConfig]:
    """The upstreams, with the names of credentials replaced by their settings."""
    return {
        name: msgspec.structs.replace(upstream, credentials=credentials[upstream.credentials])
        if isinstance(upstream.credentials, str)
        else upstream
        for name, upstream in upstreams.items()
    }


def _deep_below(report: Report, path: Path, key: str, found: str, expected: str, hint: str) -> Any:
    return report((*path, *(key.split(".") if key else ())), found, expected, hint)
