"""Checks across sections: unknown names, patterns, templates, files, contradictions.

Every function takes a Struct and its path, reports all errors and does not stop at the first one. Two passes:
the root once (`check_root`), then each route separately (`RouteCheck`) in microseconds, so that thousands of
routes take far less than a second.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Collection, Mapping
from typing import Final

from fastgate._core.http.patterns import compile_host, compile_pattern
from fastgate.certificates import load_authorities, load_pair
from fastgate.checks import (
    TOKEN,
    Path,
    Report,
    RouteSite,
    check_field_name,
    check_network,
    check_regex,
    nearest,
)
from fastgate.config.foreign import address_hint, path_hint
from fastgate.config.root import ACTIONS, NEEDS_UPSTREAM, TRUSTED_UNIX, Config, RouteConfig
from fastgate.config.server import AdminConfig, ListenerConfig, parse_address
from fastgate.features.registry import FEATURES
from fastgate.upstream.check import target_hint, try_certificate
from fastgate.upstream.settings import parse_target

__all__ = ["RouteCheck", "check_root"]

# Equal to ROUTER_MAX_PARAMS and ROUTER_MAX_SEGMENTS in `_core/http/router.pxd`.
MAX_PARAMS: Final = 16
MAX_SEGMENTS: Final = 63

_STORE_HEADER: Final = b"SQLite format 3\0"  # https://sqlite.org/fileformat.html §1.3.1
_STANDARD_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")


def check_root(config: Config, report: Report) -> None:
    """Checks everything except the routes and their upstreams."""
    addresses: dict[str, int] = {}
    for index, listener in enumerate(config.listen):
        path: Path = ("listen", index)
        _check_listener(listener, path, report)
        if listener.address in addresses and not listener.address.endswith(":0"):
            report(
                path,
                f'"{listener.address}"',
                "",
                f"the same address as $.listen[{addresses[listener.address]}]",
            )
        addresses.setdefault(listener.address, index)
    _check_admin(config.admin, addresses, report)
    for index, network in enumerate(config.trusted_proxies):
        if network != TRUSTED_UNIX:
            check_network(network, ("trusted_proxies", index), report, f", or {TRUSTED_UNIX}")
    if config.store.path is not None:
        _check_store(config.store.path, report)
    for feature in FEATURES:
        if feature.check_root is not None:
            feature.check_root(config, report)
    output = config.access_log.output
    if output not in ("off", "stdout"):
        _check_log_file(output, ("access_log", "output"), report)


def _check_store(path: str, report: Report) -> None:
    """Checks the file without opening the database, which only the controller does."""
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        report(("store", "path"), f'"{path}"', "a file in a directory that exists", f"make {directory}")
        return
    try:
        with open(path, "rb") as file:
            head = file.read(len(_STORE_HEADER))
    except FileNotFoundError:
        return
    except OSError as error:
        report(("store", "path"), f'"{path}"', "a file that can be read", (error.strerror or "").lower())
        return
    if head and head != _STORE_HEADER:
        report(("store", "path"), f'"{path}"', "a SQLite file", "another file, or a damaged one")


class RouteCheck:
    """Checks routes one by one, and remembers the names and matches of earlier ones."""

    def __init__(
        self,
        upstreams: Collection[str],
        report: Report,
        *,
        has_controller: bool = True,
        merges_slashes: bool = True,
    ) -> None:
        self._upstreams = upstreams
        self._merges_slashes = merges_slashes
        self._has_controller = has_controller
        self._report = report
        self._names: dict[str, int] = {}
        self._matches: dict[object, int] = {}
        self._patterns: dict[str, frozenset[str] | None] = {}

    def check(self, route: RouteConfig, path: Path, index: int) -> None:
        """Reports every error of this route."""
        report = self._report
        if route.name:
            first = self._names.setdefault(route.name, index)
            if first != index:
                report(
                    (*path, "name"),
                    f'"{route.name}"',
                    "a unique name",
                    f"$.routes[{first}] already has it",
                )
        for at, host in enumerate(route.host):
            try:
                compile_host(host)
            except ValueError:
                hint = "remove the port" if re.fullmatch(r"[^\[\]:]+:[0-9]+", host) else ""
                wanted = "a name such as api.example.com or *.example.com, in ASCII"
                report(
                    (*path, "host", at) if len(route.host) > 1 else (*path, "host"), f'"{host}"', wanted, hint
                )
        params = self._check_paths(route, path)
        self._check_predicates(route, path)
        self._check_action(route, path)
        site = RouteSite(path, report, params, self._has_controller)
        for feature in FEATURES:
            if feature.check_route is not None:
                feature.check_route(route, site)
        if route.enabled:
            key = (
                route.host,
                route.path,
                route.methods,
                tuple(route.headers.items()),
                tuple(route.query.items()),
            )
            first = self._matches.setdefault(key, index)
            if first != index:
                hint = f"it matches the same requests as $.routes[{first}]"
                report(path, "a route that is never reached", "", hint)

    def _check_paths(self, route: RouteConfig, path: Path) -> frozenset[str] | None:
        """The parameters that every path of the route defines, or None if a pattern is invalid."""
        shared: frozenset[str] | None = None
        good = True
        for at, pattern in enumerate(route.path):
            where = (*path, "path", at) if len(route.path) > 1 else (*path, "path")
            params = self._patterns.get(pattern)
            if params is None:
                # Both compile, and neither can match what its author means.
                if foreign := path_hint(pattern) if re.match(r"~\s|/(?:.*/)?:\w", pattern) else "":
                    self._report(where, f'"{pattern}"', "", foreign)
                    good = False
                    continue
                try:
                    compiled = compile_pattern(pattern, MAX_PARAMS, MAX_SEGMENTS)
                except ValueError as error:
                    position, _, why = str(error).partition(", position ")[2].partition(": ")
                    hint = path_hint(pattern) or f"at character {int(position or 0) + 1}: {why}"
                    self._report(
                        where,
                        f'"{pattern}"',
                        "",
                        hint,
                    )
                    good = False
                    continue
                params = self._patterns[pattern] = frozenset(name.decode() for name in compiled.param_names)
            if self._merges_slashes and "//" in pattern and pattern[0] != "~":
                hint = "server.merge_slashes is on: no path has an empty segment"
                self._report(where, f'"{pattern}"', "a pattern that a path can match", hint)
            shared = params if shared is None else shared & params
        return shared or frozenset() if good else None

    def _check_predicates(self, route: RouteConfig, path: Path) -> None:
        for at, method in enumerate(route.methods):
            where = (*path, "methods", at)
            if method == "CONNECT":
                self._report(
                    where, "CONNECT is not allowed", "", "tunnels to arbitrary hosts are rejected by design"
                )
            elif not TOKEN.fullmatch(method):
                self._report(where, f'"{method}"', "a method such as GET", "")
            elif method.upper() in _STANDARD_METHODS and method not in _STANDARD_METHODS:
                self._report(where, f'"{method}"', "", f"methods are case-sensitive: write {method.upper()}")
        for section, conditions in (("headers", route.headers), ("query", route.query)):
            for name, wanted in conditions.items():
                where = (*path, section, name)
                if section == "headers":
                    check_field_name(name, where, self._report, own_fields=True)
                    if not wanted.isascii():
                        self._report(where, f'"{wanted}"', "ASCII, as header values are", "")
                if wanted.startswith("~"):
                    check_regex(wanted[1:], where, self._report)

    def _check_action(self, route: RouteConfig, path: Path) -> None:
        report = self._report
        actions = [name for name in ACTIONS if getattr(route, name) is not None]
        if len(actions) != 1:
            found = "none of them" if not actions else " and ".join(actions)
            report(path, found, f"exactly one of {', '.join(ACTIONS[:-1])} and {ACTIONS[-1]}", "")
        if route.upstream is not None:
            self._check_upstream_name(route.upstream, (*path, "upstream"))
        elif actions:
            for name in NEEDS_UPSTREAM:
                if getattr(route, name) is not None:
                    report(
                        (*path, name),
                        f"a setting without effect with {actions[0]}",
                        "",
                        "only for routes with an upstream",
                    )
        if route.timeouts is not None and route.timeouts.deadline_header is not None:
            check_field_name(route.timeouts.deadline_header, (*path, "timeouts", "deadline_header"), report)

    def _check_upstream_name(self, name: str, where: Path) -> None:
        if "://" in name or name.startswith("unix:"):
            try:
                parse_target(name)
            except ValueError as error:
                self._report(where, f'"{name}"', str(error), target_hint(name))
        elif name not in self._upstreams:
            hint = nearest(name, self._upstreams)
            if re.fullmatch(r"[A-Za-z0-9.-]+:[0-9]+", name):
                hint = f"write http://{name}"
            self._report(
                where, f'"{name}"', "the name of an upstream or a URL", hint or "there are no upstreams"
            )


def _check_listener(listener: ListenerConfig, path: Path, report: Report) -> None:
    _check_address(listener.address, path, report)
    tls = listener.tls
    if tls is None:
        return
    if listener.redirect:
        report((*path, "redirect"), "a setting without effect", "", "this listener serves https itself")
    for index, pair in enumerate(tls.certificates):
        try_certificate(
            lambda pair=pair: load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair.certificate, pair.key),  # type: ignore[misc]
            (*path, "tls", "certificates", index),
            report,
        )
    if tls.client_ca is not None:
        authorities = tls.client_ca
        try_certificate(
            lambda: load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), authorities),
            (*path, "tls", "client_ca"),
            report,
        )
        if tls.client_certificate == "ignored":
            hint = "set client_certificate to optional or required"
            report((*path, "tls", "client_ca"), "a setting without effect", "", hint)
    elif tls.client_certificate != "ignored":
        report(
            (*path, "tls", "client_ca"),
            "missing key",
            f"a file, since client_certificate is {tls.client_certificate}",
            "",
        )


def _check_admin(admin: AdminConfig, taken: Mapping[str, int], report: Report) -> None:
    path = ("admin", "listen")
    if admin.listen == "off" or not _check_address(admin.listen, path, report):
        return
    if admin.listen in taken and not admin.listen.endswith(":0"):
        hint = f"the same address as $.listen[{taken[admin.listen]}]"
        report(path, f'"{admin.listen}"', "another address", hint)
    address = parse_address(admin.listen)
    if admin.token is None and not address.unix_path and not _is_loopback(address.host):
        hint = "set admin.token, for instance to ${FASTGATE_ADMIN_TOKEN}"
        report(path, f'"{admin.listen}" without a token', "a loopback address or a Unix socket", hint)


def _check_address(text: str, path: Path, report: Report) -> bool:
    try:
        folder = os.path.dirname(parse_address(text).unix_path)
        if folder and not os.path.isdir(folder):
            report(path, f'"{text}"', "", f"there is no directory {folder}")
            return False
    except ValueError as error:
        report(path, f'"{text}"', str(error), address_hint(text))
        return False
    return True


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_log_file(output: str, path: Path, report: Report) -> None:
    folder = os.path.dirname(output) or "."
    if "/" not in output:
        hint = nearest(output, ("off", "stdout"))
        report(
            path,
            f'"{output}"',
            "stdout, off or a file's path",
            hint if hint.startswith("did") else f"./{output}",
        )
    elif not os.path.isdir(folder):
        report(path, f'"{output}"', "", f"there is no directory {folder}")
    elif os.path.isdir(output) or not os.access(output if os.path.exists(output) else folder, os.W_OK):
        report(path, f'"{output}"', "a file that can be written", "")
