"""What is wrong between values that are each fine: unknown names, patterns, templates, files, contradictions.

Every function takes a Struct and the path it was read at, and reports; none stops at the first error. Two
passes: the root once (`check_root`), then each route alone (`RouteCheck`), in microseconds, so that thousands
of routes stay far below a second.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import ssl
from collections.abc import Callable, Collection, Mapping
from typing import Final

import msgspec

from fastgate._core.http.edits import PLACE
from fastgate._core.http.patterns import compile_host, compile_pattern
from fastgate.auth.consumers import NAME_PATTERN as CONSUMER_PATTERN
from fastgate.auth.consumers import WORD_PATTERN
from fastgate.auth.section import AuthConfig, AuthUse, ConsumerConfig
from fastgate.caching.settings import check_cache, check_cache_store
from fastgate.certificates import CertificateError, load_authorities, load_pair
from fastgate.config.check_content import check_cors, check_security_headers, check_validation
from fastgate.config.check_signing import check_hmac, check_signatures
from fastgate.config.foreign import address_hint, path_hint, scheme_hint
from fastgate.config.root import TRUSTED_UNIX, AdminConfig, Config, ListenerConfig, RouteConfig, parse_address
from fastgate.config.shape import Report, nearest
from fastgate.config.source import Path
from fastgate.features.access.build import AccessConfig
from fastgate.features.ratelimit import build as ratelimit
from fastgate.features.ratelimit.build import LimitsConfig
from fastgate.features.routing.build import RedirectConfig, RespondConfig, RewriteConfig
from fastgate.features.transform.build import HeaderEditsConfig
from fastgate.upstream.settings import UpstreamConfig, UpstreamTlsConfig, parse_target

__all__ = ["RouteCheck", "check_client_tls", "check_root", "check_upstream"]

# As `_core/http/router.pxd` has them: ROUTER_MAX_PARAMS, ROUTER_MAX_SEGMENTS.
MAX_PARAMS: Final = 16
MAX_SEGMENTS: Final = 63

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)  # RFC 9110 §5.6.2
_FIELD_VALUE = re.compile(r"[!-~]([ -~\t]*[!-~])?|", re.ASCII)  # RFC 9110 §5.5 without obs-text
_UPSTREAM_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9_])?", re.ASCII)
_GROUP = re.compile(r"\\(?:([1-9][0-9]?)|g<([^>]*)>)")
_REQUEST_PLACES: Final = frozenset(
    ("client_ip", "host", "hostname", "method", "path", "query", "request_id", "route", "scheme")
)
# The connection's own fields and the framing: an edit here could turn one message into two.
_GATEWAY_FIELDS: Final = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
_STORE_HEADER: Final = b"SQLite format 3\0"  # https://sqlite.org/fileformat.html §1.3.1
_STANDARD_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")


def check_root(config: Config, report: Report) -> None:
    """Everything but the routes and their upstreams."""
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
            _check_network(network, ("trusted_proxies", index), report, f", or {TRUSTED_UNIX}")
    if config.store.path is not None:
        _check_store(config.store.path, report)
    for name, consumer in config.consumers.items():
        _check_consumer(name, consumer, ("consumers", name), report)
    check_hmac(config.auth.hmac, config.consumers, ("auth", "hmac"), report)
    check_signatures(config.auth.signatures, config.consumers, ("auth", "signatures"), report)
    _check_tiers(config, report)
    if config.limits is not None:
        _check_limits(config.limits, ("limits",), report, at_root=True)
    if config.access is not None:
        _check_access(config.access, ("access",), report)
    if config.cors is not None:
        check_cors(config.cors, (), ("cors",), report)
    if config.security_headers is not None:
        check_security_headers(config.security_headers, ("security_headers",), report)
    check_cache_store(config.cache_store, ("cache_store",), report)
    output = config.access_log.output
    if output not in ("off", "stdout"):
        _check_log_file(output, ("access_log", "output"), report)


def _lets_unnamed_pass(use: AuthUse) -> bool:
    """Whether a request may pass without the gateway knowing who of many it is from: in shadow mode, where
    another service answers for it, or where such a service may be passed over (`on_error: allow`)."""
    return not use.enforce or not {"forward", "introspection", "jwt"}.isdisjoint(use.schemes)


def _check_store(path: str, report: Report) -> None:
    """What can be seen without opening it, which only the controller does."""
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


def _check_consumer(name: str, consumer: ConsumerConfig, path: Path, report: Report) -> None:
    if not re.fullmatch(CONSUMER_PATTERN, name):
        report(path, f'the name "{name}"', "1 to 255 printable ASCII characters, no space at the ends", "")
    for kind, words in (("scopes", consumer.scopes), ("roles", consumer.roles)):
        for index, word in enumerate(words):
            if not re.fullmatch(WORD_PATTERN, word):
                report((*path, kind, index), f'"{word}"', "printable ASCII without spaces and quotes", "")


def _check_tiers(config: Config, report: Report) -> None:
    """The tiers, and what consumers say of tiers and limits."""
    known = ratelimit.tiers_of(config)
    for name, tier in config.tiers.items():
        if not re.fullmatch(WORD_PATTERN, name):
            report(("tiers", name), f'the name "{name}"', "printable ASCII without spaces and quotes", "")
        for inner, found, expected, hint in ratelimit.amounts_problems(tier, tier.algorithm):
            report(("tiers", name, *inner), found, expected, hint)
    for name, consumer in config.consumers.items():
        path: Path = ("consumers", name)
        if consumer.tier is not None and consumer.tier not in known:
            report((*path, "tier"), f'"{consumer.tier}"', "the name of a tier", nearest(consumer.tier, known))
        try:
            amounts = ratelimit.amounts_of(consumer.limits)
        except msgspec.ValidationError as error:
            found = str(error)
            report((*path, "limits"), f"{found[:1].lower()}{found[1:]}", "", "as in a tier")
            continue
        base = known.get(consumer.tier or "", ratelimit.TierConfig())
        whole = {key: getattr(base, key) for key in ratelimit.Amounts.__struct_fields__} | consumer.limits
        amounts = ratelimit.amounts_of(whole)
        for inner, found, expected, hint in ratelimit.amounts_problems(amounts, base.algorithm):
            if inner[0] in consumer.limits:
                report((*path, "limits", *inner), found, expected, hint)


def _check_limits(settings: LimitsConfig, path: Path, report: Report, at_root: bool = False) -> None:
    for inner, found, expected, hint in ratelimit.problems(settings, at_root):
        report((*path, *inner), found, expected, hint)
    for index, rule in enumerate((settings, *settings.rules)):
        where = path if index == 0 else (*path, "rules", index - 1)
        for at, part in enumerate(rule.by):
            if isinstance(part, ratelimit.KeyPart) and part.header is not None:
                _check_field_name(part.header, (*where, "by", at, "header"), report, own_fields=True)
    if settings.cost.header is not None:
        _check_field_name(settings.cost.header, (*path, "cost", "header"), report)


def _check_access(settings: AccessConfig, path: Path, report: Report) -> None:
    for section, networks in (("allow", settings.allow), ("deny", settings.deny)):
        for index, network in enumerate(networks):
            _check_network(network, (*path, section, index), report)


def check_upstream(name: str, upstream: UpstreamConfig, path: Path, report: Report) -> None:
    """One entry of `upstreams`."""
    if not _UPSTREAM_NAME.fullmatch(name):
        report(path, f'the name "{name}"', "letters, digits, _ - and . only", "")
    secure = False
    for index, target in enumerate(upstream.targets):
        try:
            secure = parse_target(target.url).secure or secure
        except ValueError as error:
            report((*path, "targets", index), f'"{target.url}"', str(error), _target_hint(target.url))
            secure = True  # unknown: say nothing about tls
    if all(target.weight == 0 for target in upstream.targets):
        report((*path, "targets"), "weight 0 everywhere", "at least one target with a weight", "")
    if not secure and upstream.tls != UpstreamTlsConfig():
        report(
            (*path, "tls"), "settings for TLS, but no https:// target", "", "write https:// or take tls away"
        )
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
        _check_field_name(upstream.timeouts.deadline_header, (*path, "timeouts", "deadline_header"), report)


class RouteCheck:
    """Checks routes one by one, remembering names and matches that were taken."""

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
        """Reports everything that is wrong with this route."""
        report = self._report
        if route.name:
            first = self._names.setdefault(route.name, index)
            if first != index:
                report(
                    (*path, "name"),
                    f'"{route.name}"',
                    "a name of its own",
                    f"$.routes[{first}] has it already",
                )
        for at, host in enumerate(route.host):
            try:
                compile_host(host)
            except ValueError:
                hint = "leave the port out" if re.fullmatch(r"[^\[\]:]+:[0-9]+", host) else ""
                wanted = "a name such as api.example.com or *.example.com, in ASCII"
                report(
                    (*path, "host", at) if len(route.host) > 1 else (*path, "host"), f'"{host}"', wanted, hint
                )
        params = self._check_paths(route, path)
        self._check_predicates(route, path)
        self._check_auth(route, path)
        if route.cors is not None:
            check_cors(route.cors, route.methods, (*path, "cors"), report)
        if route.security_headers is not None:
            check_security_headers(route.security_headers, (*path, "security_headers"), report)
        if route.validation is not None:
            check_validation(route.validation, (*path, "validation"), report)
        if route.cache is not None:
            check_cache(
                route.cache,
                (*path, "cache"),
                self._report,
                guarded=route.auth is not None,
                unnamed=route.auth is not None and _lets_unnamed_pass(route.auth),
            )
        if route.limits is not None:
            _check_limits(route.limits, (*path, "limits"), self._report)
        if route.access is not None:
            _check_access(route.access, (*path, "access"), self._report)
        self._check_action(route, path, params)
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
        """The parameters that every path of the route defines; None when a pattern is bad."""
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
                    where, "CONNECT is not allowed", "", "tunnels to arbitrary hosts are refused by design"
                )
            elif not _TOKEN.fullmatch(method):
                self._report(where, f'"{method}"', "a method such as GET", "")
            elif method.upper() in _STANDARD_METHODS and method not in _STANDARD_METHODS:
                self._report(where, f'"{method}"', "", f"methods are case-sensitive: write {method.upper()}")
        for section, conditions in (("headers", route.headers), ("query", route.query)):
            for name, wanted in conditions.items():
                where = (*path, section, name)
                if section == "headers":
                    _check_field_name(name, where, self._report, own_fields=True)
                    if not wanted.isascii():
                        self._report(where, f'"{wanted}"', "ASCII, as header values are", "")
                if wanted.startswith("~"):
                    _check_regex(wanted[1:], where, self._report)

    def _check_auth(self, route: RouteConfig, path: Path) -> None:
        if route.auth is None:
            return
        schemes = route.auth.schemes
        for at, scheme in enumerate(schemes):
            if scheme not in AuthConfig.__struct_fields__:
                hint = scheme_hint(scheme) or nearest(scheme, AuthConfig.__struct_fields__)
                known = ", ".join(AuthConfig.__struct_fields__)
                self._report((*path, "auth", at), f'"{scheme}"', f"one of {known}", hint)
            elif scheme == "api_key" and not self._has_controller:
                hint = "the controller, which has the keys, runs where there is an admin listener: unix:/path"
                self._report((*path, "auth", at), '"api_key" with admin.listen off', "", hint)
            elif scheme == "anonymous" and at < len(schemes) - 1:
                hint = f"put it last: it lets everybody in, so {schemes[at + 1]} is never asked"
                self._report((*path, "auth", at), '"anonymous" before other methods', "", hint)

    def _check_action(self, route: RouteConfig, path: Path, params: frozenset[str] | None) -> None:
        report = self._report
        actions = [name for name in ("upstream", "redirect", "respond") if getattr(route, name) is not None]
        if len(actions) != 1:
            found = "none of them" if not actions else " and ".join(actions)
            report(path, found, "exactly one of upstream, redirect and respond", "")
        if route.upstream is not None:
            self._check_upstream_name(route.upstream, (*path, "upstream"))
        elif actions:
            for name in ("rewrite", "timeouts", "preserve_host", "request_headers", "cache"):
                if getattr(route, name) is not None:
                    report(
                        (*path, name),
                        f"a setting without effect beside {actions[0]}",
                        "",
                        "it is for upstream routes",
                    )
        if route.rewrite is not None:
            _check_rewrite(route.rewrite, (*path, "rewrite"), params, report)
        if route.redirect is not None:
            _check_redirect(route.redirect, (*path, "redirect"), params, report)
        if route.respond is not None:
            _check_respond(route.respond, (*path, "respond"), report)
        if route.timeouts is not None and route.timeouts.deadline_header is not None:
            _check_field_name(route.timeouts.deadline_header, (*path, "timeouts", "deadline_header"), report)
        for section in ("request_headers", "response_headers"):
            edits: HeaderEditsConfig | None = getattr(route, section)
            if edits is not None:
                _check_edits(edits, (*path, section), params, report)
                if section == "request_headers":
                    _check_identity_names(edits, (*path, section), report)

    def _check_upstream_name(self, name: str, where: Path) -> None:
        if "://" in name or name.startswith("unix:"):
            try:
                parse_target(name)
            except ValueError as error:
                self._report(where, f'"{name}"', str(error), _target_hint(name))
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
        _try_certificate(
            lambda pair=pair: load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair.certificate, pair.key),  # type: ignore[misc]
            (*path, "tls", "certificates", index),
            report,
        )
    if tls.client_ca is not None:
        authorities = tls.client_ca
        _try_certificate(
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
        report(path, f'"{admin.listen}"', "an address of its own", hint)
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


def _check_network(text: str, path: Path, report: Report, others: str = "") -> None:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        hint = ""
        with contextlib.suppress(ValueError):
            hint = f"did you mean {ipaddress.ip_network(text, strict=False)}?"
        report(path, f'"{text}"', f"an address or a range such as 10.0.0.0/8 or fd00::/8{others}", hint)


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


def check_client_tls(tls: UpstreamTlsConfig, path: Path, report: Report) -> None:
    def context() -> ssl.SSLContext:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    if tls.ca is not None:
        authorities = tls.ca
        _try_certificate(lambda: load_authorities(context(), authorities), (*path, "ca"), report)
    if (tls.certificate is None) != (tls.key is None):
        missing = "key" if tls.key is None else "certificate"
        report((*path, missing), "missing key", "a file, as the other of certificate and key is given", "")
    elif tls.certificate is not None and tls.key is not None:
        certificate, key = tls.certificate, tls.key
        _try_certificate(lambda: load_pair(context(), certificate, key), path, report)


def _try_certificate(load: Callable[[], None], path: Path, report: Report) -> None:
    try:
        load()
    except CertificateError as error:
        report(path, str(error), "", "")


def _target_hint(url: str) -> str:
    if re.match(r"https?://[^/]+/.+", url):
        return "leave the path out and use rewrite on the route"
    if re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]+)?", url):
        return f"write http://{url}"
    return ""


def _check_field_name(name: str, path: Path, report: Report, own_fields: bool = False) -> bool:
    if not _TOKEN.fullmatch(name):
        report(path, f'"{_printable(name)}"', "a header name (letters, digits and -)", "")
        return False
    if not own_fields and name.lower() in _GATEWAY_FIELDS:
        report(
            path,
            "not allowed",
            "",
            "this field is the gateway's own: it belongs to the connection or the framing",
        )
        return False
    return True


def _check_field_value(value: str, path: Path, report: Report) -> None:
    if not _FIELD_VALUE.fullmatch(value):
        hint = "a line break would start another field" if "\n" in value or "\r" in value else ""
        report(path, f'"{_printable(value)}"', "a header value: printable ASCII, no spaces at its ends", hint)


def _printable(text: str) -> str:
    return text.encode("unicode_escape").decode()


def _check_regex(pattern: str, path: Path, report: Report) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except re.error as error:
        at = "" if error.pos is None else f"at character {error.pos + 1}: "
        report(path, f'"{pattern}"', "a regular expression", f"{at}{error.msg}")
    except (OverflowError, RecursionError) as error:
        report(path, f'"{pattern}"', "a regular expression", str(error))
    return None


def _check_places(text: str, path: Path, params: Collection[str] | None, report: Report) -> None:
    """`{name}` must be a parameter of the route's every path, or a property of the request."""
    if params is None or "{" not in text:
        return
    for place in PLACE.finditer(text):
        name = place[1]
        if name is not None and name not in params and name not in _REQUEST_PLACES:
            hint = nearest(place[0], [f"{{{param}}}" for param in params]) if params else ""
            has = (
                f"the path has {', '.join(f'{{{param}}}' for param in sorted(params))}"
                if params
                else "the path has none"
            )
            report(
                path,
                f"{{{name}}}",
                "a parameter of the route's path",
                hint if hint.startswith("did") else has,
            )


def _check_rewrite(
    rewrite: RewriteConfig, path: Path, params: Collection[str] | None, report: Report
) -> None:
    forms = [
        form
        for form in ("strip_prefix", "replace_prefix", "path", "regex")
        if getattr(rewrite, form) is not None
    ]
    if len(forms) != 1:
        found = " and ".join(forms) or "none of them"
        report(path, found, "exactly one of strip_prefix, replace_prefix, path and regex", "")
    if rewrite.path is not None:
        _check_places(rewrite.path, (*path, "path"), params, report)
    if (rewrite.regex is None) != (rewrite.to is None):
        missing, given = ("to", "regex") if rewrite.to is None else ("regex", "to")
        report((*path, missing), "missing key", f"text, as {given} is given", "")
    for name, text in (("path", rewrite.path), ("strip_prefix", rewrite.strip_prefix), ("to", rewrite.to)):
        _check_path_text(text, (*path, name), report)
    if rewrite.replace_prefix is not None:
        _check_path_text(rewrite.replace_prefix.to, (*path, "replace_prefix", "to"), report)
    if rewrite.regex is not None:
        if not rewrite.regex.isascii():
            hint = "a path is percent-encoded where it must be"
            report((*path, "regex"), f'"{rewrite.regex}"', "ASCII", hint)
        compiled = _check_regex(rewrite.regex, (*path, "regex"), report)
        if compiled is not None and rewrite.to is not None:
            _check_groups(compiled, rewrite.to, (*path, "to"), report)


def _check_path_text(text: str | None, path: Path, report: Report) -> None:
    if text is not None and re.search(r"[^!-~]|[?#]", text):
        report(path, f'"{_printable(text)}"', "a path in printable ASCII, without spaces, ? and #", "")


def _check_groups(compiled: re.Pattern[str], to: str, path: Path, report: Report) -> None:
    for dollar in re.finditer(r"\$(\{?)([0-9]+)", to):
        report(path, dollar[0], "a group of the regex", f"write \\{dollar[2]}")
    for match in _GROUP.finditer(to):
        group = match[1] or match[2]
        number = int(group) if group.isascii() and group.isdigit() and len(group) < 4 else None
        if not (number <= compiled.groups if number is not None else group in compiled.groupindex):
            known = [*map(str, range(1, compiled.groups + 1)), *compiled.groupindex]
            report(
                path,
                match[0],
                "a group of the regex",
                f"it has {', '.join(known)}" if known else "it has none",
            )


def _check_redirect(
    redirect: RedirectConfig, path: Path, params: Collection[str] | None, report: Report
) -> None:
    where = (*path, "to")
    if not re.match(r"https?://[^/]|/(?!/)|\{", redirect.to):
        report(where, f'"{redirect.to}"', "a URL with http:// or https://, or a path that begins with /", "")
    elif re.search(r"[^!-~]", redirect.to):
        report(where, f'"{_printable(redirect.to)}"', "a URL in printable ASCII, without spaces", "")
    _check_places(redirect.to, where, params, report)


def _check_respond(respond: RespondConfig, path: Path, report: Report) -> None:
    if respond.body is not None and respond.json is not None:
        report(path, "body and json", "at most one of them", "")
    if respond.status in (204, 205, 304) and (respond.body or respond.json is not None):
        report(
            (*path, "status"),
            f"{respond.status} with a body",
            "",
            f"an answer with {respond.status} has none",
        )
    for name, value in respond.headers.items():
        if name.lower() == "date":
            report((*path, "headers", name), "not allowed", "", "the gateway sets it")
        elif _check_field_name(name, (*path, "headers", name), report):
            _check_field_value(value, (*path, "headers", name), report)


def _check_edits(
    edits: HeaderEditsConfig, path: Path, params: Collection[str] | None, report: Report
) -> None:
    for section, fields in (("set", edits.set), ("add", edits.add)):
        for name, value in fields.items():
            where = (*path, section, name)
            if _check_edited_name(name, where, report):
                _check_field_value(value, where, report)
                _check_places(value, where, params, report)
    for index, name in enumerate(edits.remove):
        _check_edited_name(name, (*path, "remove", index), report)
    for old, new in edits.rename.items():
        where = (*path, "rename", old)
        if _check_edited_name(old, where, report):
            _check_edited_name(new, where, report)


def _check_identity_names(edits: HeaderEditsConfig, path: Path, report: Report) -> None:
    """Who a request is from is said by the gateway alone: beside its field no other one may stand."""
    made = [
        *(((*path, "rename", old), new) for old, new in edits.rename.items()),
        *(((*path, "set", name), name) for name in edits.set),
        *(((*path, "add", name), name) for name in edits.add),
    ]
    for where, name in made:
        if re.fullmatch(r"x-consumer(-.*)?", re.sub(r"[_.]", "-", name.lower())):
            report(where, f'"{name}"', "another name", "X-Consumer-… says who a request is from")


def _check_edited_name(name: str, path: Path, report: Report) -> bool:
    if name.lower() == "host":
        report(path, "not allowed", "", "Host is the target's, or the client's with preserve_host")
        return False
    return _check_field_name(name, path, report)
