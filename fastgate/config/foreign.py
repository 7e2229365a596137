"""Hints for keys of other gateways (nginx, HAProxy, Envoy, Caddy, Traefik, Kong, APISIX, LiteLLM).

A migrated config is full of keys that are not misspelt fastgate keys, so suggesting the nearest known key
would mislead. Each row gives the key to write, with its section if that is another mapping.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from fastgate.checks import snake_case

__all__ = [
    "FOREIGN",
    "address_hint",
    "foreign_hint",
    "path_hint",
    "plugin_hint",
    "value_hint",
]

_UPSTREAM = "write upstream"
_RETRIES = "write retry: {attempts: 3} at a route"
_HEALTH = "there are no active health checks: write ejection at the upstream for passive ones"
_LIMITS = "write limits: {per_minute: 100}"
_ACCESS = "write access: {allow: [10.0.0.0/8], deny: […]}"
_TLS = "write tls at an entry of listen: {address: ':443', tls: {certificates: …}}"
_PAIR = "write certificates: {certificate: FILE, key: FILE}"
_TOTAL = "write timeouts: {total: 30s}"
_TARGETS = "write targets: [http://host:port, …]"
_TO_ROUTE = "it belongs at a route of routes"
_TO_UPSTREAM = "it belongs at an entry of upstreams"
_ADDRESS = "write address: host:port, or ':port' for every interface"
_SET_REQUEST = "write request_headers: {set: {Name: value}}"
_SET_RESPONSE = "write response_headers: {set: {Name: value}}"
_STRIP = "write rewrite: {strip_prefix: /prefix}"
_AI = "write upstreams at the root: an entry for each provider, with its URL and credentials"
_NO_UPGRADE = "leave it out: upgrades such as WebSocket pass by themselves"


def _rows(hint: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), hint)


#: Hint by Struct and key, the key in lower case with `_` between words.
FOREIGN: Final[dict[str, dict[str, str]]] = {
    "Config": {
        **_rows("write listen: host:port, or a port alone",
                "port bind listeners entry_points entrypoints address"),
        **_rows("write routes: [{path: /api/*, upstream: http://host:port}]",
                "location locations routers virtual_hosts vhosts endpoints rules paths apis frontend "
                "frontends proxies proxy handlers handle servers http https route reverse_proxy "
                "static_resources apps"),
        **_rows("write upstreams: {name: {targets: [http://host:port]}}",
                "backend backends services service clusters cluster pools origins targets "
                "default_backend"),
        **_rows("write upstream at a route of routes: {path: /*, upstream: http://host:port}",
                "proxy_pass"),
        **_rows(_TLS, "tls ssl ssl_certificate ssl_certificate_key certificates certs cert https_port"),
        **_rows("write workers", "worker_processes nbproc nbthread threads processes concurrency"),
        **_rows("write server: {max_connections: 65536}", "worker_connections maxconn max_connections"),
        **_rows("write server: {max_body: 10MB}", "client_max_body_size max_body max_body_size body_limit"),
        **_rows("write server: {idle_timeout: 75s}", "keepalive_timeout keep_alive idle_timeout"),
        **_rows("write timeouts at a route or an entry of upstreams",
                "timeout timeouts proxy_read_timeout"),
        **_rows("write access_log: stdout, off or a file; the gateway's own messages go to stderr",
                "log logs logging error_log log_format log_level"),
        **_rows("write admin: host:port, which serves /metrics, /health and the API",
                "api metrics prometheus stats dashboard status health telemetry"),
        **_rows("write trusted_proxies: [10.0.0.0/8]",
                "set_real_ip_from real_ip_header trusted_ips forwarded_headers trust_proxy "
                "xff_num_trusted_hops"),
        **_rows(_LIMITS,
                "rate_limit rate_limits ratelimit rate_limiting limit_req limit_req_zone "
                "limit_conn_zone throttle quotas"),
        **_rows(_ACCESS,
                "allow deny ip_restriction ip_allow_list ip_whitelist ip_blacklist whitelist blacklist"),
        **_rows("write cache at a route of routes, and cache_store for where responses are kept",
                "cache caching proxy_cache proxy_cache_path"),
        **_rows("write cache_store: {redis: {url: redis://host:6379}}", "redis valkey"),
        **_rows("write store: file.db", "database db storage sqlite"),
        **_rows("write auth at a route, and make keys with fastgate keys create",
                "keys api_keys apikeys key_auth authentication"),
        **_rows("write consumers: {name: {…}}", "users clients accounts customers"),
        **_rows("write credentials", "secrets"),
        **_rows("write security_headers: basic, or response_headers at a route", "headers add_header"),
        **_rows("write plugins, or the feature itself at a route: auth, limits, cors, cache, …",
                "middleware middlewares filters http_filters"),
        **_rows("leave it out",
                "version _format_version api_version kind events user pid daemon master defaults "
                "global"),
        **_rows("leave it out: responses are not compressed here", "gzip compress compression brotli encode"),
        **_rows("leave it out: one config is one file", "include includes import imports providers"),
        **_rows("write workers, listen and so on at the root", "settings options general general_settings"),
        **_rows(_AI, "model_list models providers_ai litellm_settings router_settings llm"),
        **_rows(_RETRIES, "retry retries"),
        **_rows(_TO_ROUTE, "rewrite redirect redirects respond path host methods"),
    },
    "RouteConfig": {
        **_rows(_UPSTREAM,
                "proxy_pass backend backends service services cluster target targets url urls uri_to "
                "upstream_url upstreams server servers reverse_proxy default_backend use_backend "
                "destination forward forward_to origin proxy to"),
        **_rows("write path: /api/* for a prefix, /exact for one path, ~regex for a regular expression",
                "location prefix path_prefix match rule rules uri uris paths regex pattern url_path "
                "route"),
        **_rows("write upstream, redirect or respond", "handle handler action"),
        **_rows("write host", "hosts domain domains server_name server_names hostname hostnames sni vhost"),
        **_rows("write methods", "method verb verbs"),
        **_rows("write retry: {attempts: 3}",
                "retries num_retries max_retries retry_policy retry_on retry_budget attempts "
                "proxy_next_upstream proxy_next_upstream_tries"),
        **_rows(_TOTAL, "timeout request_timeout timeout_ms total_timeout"),
        **_rows("write timeouts: {between_bytes: 60s, first_byte: 60s}",
                "proxy_read_timeout read_timeout response_timeout proxy_send_timeout"),
        **_rows("write timeouts: {connect: 5s}", "proxy_connect_timeout connect_timeout"),
        **_rows(_STRIP, "strip_path strip_prefix stripprefix handle_path trim_prefix path_rewrite"),
        **_rows("write rewrite: {replace_prefix: {from: /a, to: /b}}",
                "prefix_rewrite replace_path replace_prefix"),
        **_rows("write rewrite: {regex: ^/a/(.*), to: /b/\\1}", "regex_rewrite rewrite_target"),
        **_rows(_SET_REQUEST,
                "proxy_set_header header_up set_headers add_request_headers request_headers_to_add "
                "set_request_headers request_header"),
        **_rows(_SET_RESPONSE,
                "add_header header_down response_headers_to_add add_response_headers headers_out "
                "set_response_headers response_header"),
        **_rows("write respond: text, or respond: {status: 404, body: text}",
                "return static direct_response static_response response status fixed body"),
        **_rows("write redirect: URL, or redirect: {to: URL, status: 301}",
                "redir redirects return_redirect"),
        **_rows("write cache: {ttl: 60s}", "proxy_cache caching cache_ttl proxy_cache_valid"),
        **_rows(_LIMITS,
                "rate_limit rate_limits ratelimit rate_limiting limit_req limit_rate throttle quota "
                "rps"),
        **_rows("write limits: {concurrent: 10}", "limit_conn max_concurrent max_connections concurrency"),
        **_rows(_ACCESS,
                "allow deny ip_restriction ip_allow_list ip_whitelist ip_blacklist whitelist blacklist "
                "allowed_ips denied_ips allowlist denylist remote_ip"),
        **_rows("write scopes, roles or policies: who may is decided after authentication",
                "acl authorize"),
        **_rows("leave it out: responses are not compressed here", "gzip compress compression brotli encode"),
        **_rows("write max_body",
                "client_max_body_size max_body_size max_size body_limit request_size_limiting"),
        **_rows("write preserve_host: true",
                "host_header pass_host_header preserve_host_header rewrite_host"),
        **_rows("write auth: [api_key]",
                "key_auth api_keys require_key apikey authentication authorization"),
        **_rows("write auth: [basic]", "basic_auth basicauth auth_basic"),
        **_rows("write auth: [forward], and auth: {forward: {url: …}} at the root",
                "forward_auth forwardauth auth_request ext_authz"),
        **_rows("write auth: [jwt], and auth: {jwt: …} at the root", "openid_connect oidc oauth2"),
        **_rows("write plugins, or the feature itself: auth, limits, cors, cache, …",
                "middleware middlewares filters"),
        **_rows("leave it out: the most specific route wins, in any order", "priority order weight rank"),
        **_rows(_NO_UPGRADE, "websocket websockets upgrade proxy_http_version upgrade_configs"),
        **_rows("leave it out: bodies stream", "proxy_buffering buffering proxy_request_buffering"),
        **_rows("write tls at an entry of listen, or of upstreams", "tls ssl"),
        **_rows("write enabled: false", "disabled disable"),
        **_rows("write name", "id route_id"),
        **_rows("write cors", "cors_policy"),
        **_rows(_TO_UPSTREAM, "pool balance lb_policy load_balancing credentials"),
        **_rows(_HEALTH, "health_check healthcheck health_checks"),
        **_rows(_AI, "model models model_name litellm_params"),
    },
    "UpstreamConfig": {
        **_rows(_TARGETS,
                "servers server url urls nodes endpoints hosts host backends addresses address "
                "load_assignment loadbalancer load_balancer lb_endpoints origin uri"),
        **_rows("write balance: round_robin, least_requests, p2c_ewma, hash …",
                "lb_policy algorithm policy load_balancing strategy method lb"),
        **_rows(_RETRIES,
                "retry retries num_retries max_retries proxy_next_upstream"),
        **_rows("write ejection: {consecutive_failures: 5, time: 10s}",
                "max_fails fail_timeout outlier_detection passive passive_health_check"),
        **_rows("write breaker: {failure_threshold: 5}", "circuit_breaker circuit_breakers"),
        **_rows(_HEALTH, "health_check healthcheck health_checks healthchecks check checks active"),
        **_rows("write pool: {max_idle: 64, idle_timeout: 60s}",
                "keepalive keep_alive keepalive_timeout idle_timeout max_idle"),
        **_rows("write pool: {max_connections: 256}", "max_connections maxconn max_conns connections"),
        **_rows(_TOTAL, "timeout request_timeout"),
        **_rows("write timeouts: {connect: 5s}", "connect_timeout proxy_connect_timeout"),
        **_rows("write timeouts: {between_bytes: 60s, first_byte: 60s}",
                "read_timeout response_timeout proxy_read_timeout"),
        **_rows("write tls", "ssl tls_context transport_socket https"),
        **_rows("write preserve_host: true", "host_header pass_host_header"),
        **_rows("write credentials: {env: NAME}", "api_key key token auth authorization headers"),
        **_rows("leave it out: the name is the key in upstreams", "name id"),
        **_rows("leave it out", "type zone protocol scheme"),
        **_rows("write weight at a target: {url: http://host:port, weight: 3}", "weight weights"),
    },
    "TargetConfig": {
        **_rows("write url: http://host:port",
                "server address host addr target uri endpoint socket_address port ip"),
        **_rows("write weight: 0 to take a target out", "down disabled enabled drain"),
        **_rows("write priority: 1 to use a target when those of priority 0 fail", "backup failover"),
        **_rows("write ejection: {consecutive_failures: 5, time: 10s} at the upstream",
                "max_fails fail_timeout"),
        **_rows(_RETRIES, "retries"),
        **_rows(_HEALTH, "check health_check healthcheck"),
        **_rows("write pool: {max_connections: 256} at the upstream", "max_conns maxconn max_connections"),
    },
    "ListenerConfig": {
        **_rows(_ADDRESS, "port bind host listen addr socket_address ip interface hostname"),
        **_rows("write tls: {certificates: {certificate: FILE, key: FILE}}",
                "ssl https certificate certificates cert key ssl_certificate ssl_certificate_key "
                "certfile keyfile"),
        **_rows("write redirect: https",
                "redirect_https https_redirect force_https ssl_redirect redirections"),
        **_rows("write host at a route of routes", "server_name domains hosts"),
        **_rows("write proxy_protocol: true", "accept_proxy proxyprotocol"),
        **_rows("leave it out", "name protocol type http2"),
    },
    "TlsConfig": {
        **_rows(_PAIR,
                "cert certificate key certfile keyfile ssl_certificate ssl_certificate_key cert_file "
                "key_file crt"),
        **_rows("write client_ca: FILE", "ca cafile ca_file ssl_client_certificate trusted_ca"),
        **_rows("write min_version: \"1.2\"",
                "protocols ssl_protocols version versions minversion min_tls_version"),
        **_rows("write client_certificate: required", "client_auth verify_client ssl_verify_client mtls"),
        **_rows("leave it out: certificates are files; an ACME client renews them in place",
                "acme auto email cert_resolver letsencrypt"),
    },
    "CertificateConfig": {
        **_rows("write certificate", "cert crt chain fullchain certfile cert_file ssl_certificate"),
        **_rows("write key", "private_key keyfile key_file ssl_certificate_key"),
    },
    "ServerConfig": {
        **_rows("write listen at the root", "listen port bind host address"),
        **_rows("write routes at the root", "location locations routes paths"),
        **_rows("write max_body", "client_max_body_size body_limit max_body_size"),
        **_rows("write idle_timeout", "keepalive_timeout keep_alive timeout_idle"),
        **_rows("write header_timeout", "client_header_timeout read_header_timeout request_timeout"),
        **_rows("write body_timeout", "client_body_timeout read_timeout timeout"),
        **_rows("write workers at the root", "workers threads"),
        **_rows("write host at a route of routes", "server_name server_names name"),
        **_rows("write drain_timeout", "shutdown_timeout graceful_timeout grace_period"),
        **_rows(_TLS, "tls ssl ssl_certificate"),
    },
    "AdminConfig": {
        **_rows("write listen: host:port", "address port bind host addr"),
        **_rows("write token", "api_key key password secret auth"),
        **_rows("write listen: off", "enabled disabled"),
    },
    "TimeoutsConfig": {
        **_rows("write between_bytes", "read idle send write response_read stream_idle"),
        **_rows("write first_byte", "response response_header server wait"),
        **_rows("write total", "request timeout overall max"),
        **_rows("write connect", "dial open connection"),
    },
    "LimitsConfig": {
        **_rows("write per_second, per_minute, per_hour or per_day",
                "rate rps rpm second minute hour day requests limit average window period "
                "requests_per_second requests_per_minute count max"),
        **_rows("write concurrent", "connections max_concurrent conn inflight"),
        **_rows("write by", "key key_by limit_by zone identifier descriptor"),
    },
    "CacheConfig": {
        **_rows("write ttl", "max_age expires default_ttl valid proxy_cache_valid duration"),
        **_rows("write max_size", "max_object_size max_body limit"),
        **_rows("write stale_while_revalidate", "stale grace use_stale proxy_cache_use_stale"),
        **_rows("write coalesce: true", "lock proxy_cache_lock"),
        **_rows("write cache_store at the root", "size memory disk redis path storage backend"),
    },
    "CorsConfig": {
        **_rows("write origins",
                "allow_origin allow_origins allowed_origins origin allow_origin_string_match "
                "access_control_allow_origin"),
        **_rows("write methods", "allow_methods allowed_methods"),
        **_rows("write headers", "allow_headers allowed_headers"),
        **_rows("write expose", "expose_headers exposed_headers"),
        **_rows("write credentials: true", "allow_credentials"),
    },
    "PolicyConfig": {
        **_rows("write when: the condition, and action: deny, allow, tag, route or limit",
                "deny allow if condition expression expr rule cel match"),
        **_rows("write action", "effect then do decision"),
        **_rows("write message", "reason error text"),
    },
    "StoreConfig": {**_rows("write path: FILE", "file database db url filename")},
    "AccessLogConfig": {
        **_rows("write output: stdout, off or a file", "path file destination target"),
        **_rows("write format: json or common", "log_format fields template"),
        **_rows("write output: off", "enabled disabled off"),
    },
    "RedirectConfig": {
        **_rows("write to", "url location target destination uri"),
        **_rows("write status: 301", "permanent code"),
        **_rows("write redirect: https at an entry of listen", "https scheme https_redirect"),
    },
    "RespondConfig": {
        **_rows("write status", "code status_code"),
        **_rows("write body", "text content message"),
    },
}  # fmt: skip
FOREIGN["TimeoutOverrides"] = FOREIGN["TimeoutsConfig"]
FOREIGN["RuleConfig"] = FOREIGN["LimitsConfig"]


#: Hint by Struct, key and type of the value, for our keys with values in the syntax of another gateway.
_VALUES: Final[dict[tuple[str, str, type], str]] = {
    ("RouteConfig", "upstream", list): "write upstreams: {name: {targets: […]}} at the root, its name here",
    ("RouteConfig", "upstream", dict): "write it under upstreams at the root, and its name here",
    ("RouteConfig", "rewrite", str): "write rewrite: {path: /new/{name}}, with parameters of the path",
    ("RouteConfig", "auth", bool): "write auth: [api_key], or another method",
    ("Config", "upstreams", list): "write upstreams: {name: {targets: [http://host:port]}}",
}  # fmt: skip

#: Plugins of other gateways, and the equivalent settings.
_PLUGINS: Final[dict[str, str]] = {
    **_rows("write auth: [api_key] at the route", "key_auth api_key apikey"),
    **_rows("write auth: [jwt] at the route, and auth: {jwt: …} at the root",
            "jwt jwt_auth oauth2 openid_connect oidc"),
    **_rows("write auth: [basic] at the route", "basic_auth basicauth basic"),
    **_rows("write auth: [hmac] at the route", "hmac_auth hmac"),
    **_rows("write auth: [mtls] at the route", "mtls_auth mtls"),
    **_rows("write auth: [forward] at the route", "forward_auth forwardauth ext_authz"),
    **_rows(_LIMITS, "rate_limiting rate_limiting_advanced rate_limit ratelimit limit_req limit_count"),
    **_rows("write limits: {concurrent: 10}", "limit_conn inflightreq"),
    **_rows("write cors", "cors"),
    **_rows("write cache: {ttl: 60s}", "proxy_cache cache"),
    **_rows(_ACCESS, "ip_restriction ip_allow_list ipallowlist ipwhitelist rbac_ip"),
    **_rows("write scopes, roles or policies", "acl rbac opa authz_casbin"),
    **_rows(_SET_REQUEST, "request_transformer request_transformer_advanced headers proxy_rewrite"),
    **_rows(_SET_RESPONSE, "response_transformer response_transformer_advanced response_rewrite"),
    **_rows(_STRIP, "stripprefix strip_prefix"),
    **_rows("write max_body", "request_size_limiting buffering"),
    **_rows("write respond", "request_termination fault_injection mocking"),
    **_rows("leave it out: the admin listener serves /metrics", "prometheus"),
    **_rows("leave it out: every request has an X-Request-ID", "correlation_id request_id"),
}  # fmt: skip

_FOREIGN_PARAM = re.compile(r"/:([A-Za-z_]\w*)(?=/|\Z)")
_TYPED_PARAM = re.compile(r"\{([A-Za-z_]\w*):(.*)\}")


def path_hint(pattern: str) -> str:
    """Replacement for a path in the syntax of nginx, Express, chi or Spring; "" for our own syntax."""
    if pattern in ("", "*"):
        return "write /* for every path"
    if nginx := re.match(r"(~\*|~|=|\^~)\s+(?=\S)|~\*", pattern):
        rest = pattern[nginx.end() :]
        how = {"~*": f"~(?i){rest}", "~": f"~{rest}", "=": rest, "^~": f"{rest.rstrip('/')}/*"}
        return f"write {how[nginx[0].strip()]}"
    if named := _FOREIGN_PARAM.search(pattern) if pattern[0] == "/" else None:
        return f"a parameter is written {{{named[1]}}}, not :{named[1]}"
    if typed := _TYPED_PARAM.search(pattern) if pattern[0] == "/" else None:
        return f"write {{{typed[1]}}}, or a regular expression: ~^/a/(?P<{typed[1]}>{typed[2]})$"
    if pattern.endswith("/**"):
        return f"write {pattern[:-1]}"
    if pattern[0] == "^":
        return f"write ~{pattern}"
    if pattern[0].isalnum():
        return f"write /{pattern}"
    return ""


def plugin_hint(name: str) -> str:
    """The setting equivalent to this plugin of another gateway; "" if unknown."""
    return _PLUGINS.get(snake_case(name), "")


def value_hint(struct: type, key: str, value: object) -> str:
    """Replacement for a value of this type that other gateways accept for the same key, or ""."""
    return _VALUES.get((_section(struct), key, type(value)), "")


def _section(struct: type) -> str:
    """The name of a section of the config; "" for settings of a plugin, whose class is called Config too."""
    return struct.__qualname__ if struct.__module__.startswith("fastgate.") else ""


def address_hint(text: str) -> str:
    """Replacement for this listener address; "" if there is no hint."""
    if re.fullmatch(r"[0-9]+", text):
        return f"write 127.0.0.1:{text}, or :{text} for every interface"
    if re.match(r"https?://", text):
        return "leave the scheme out"
    if flags := re.fullmatch(r"(\S+)\s+(?:ssl|http2|quic|default_server|reuseport|proxy_protocol|\s)+", text):
        return f"write address: '{_with_colon(flags[1])}', with tls or proxy_protocol in the same entry"
    ports = re.split(r"[,\s]+", text.strip())
    if len(ports) > 1 and all(re.fullmatch(r"\S*:?[0-9]+", port) for port in ports):
        return "write a list: [" + ", ".join(f"'{_with_colon(port)}'" for port in ports) + "]"
    return ""


def _with_colon(port: str) -> str:
    return port if ":" in port else f":{port}"


def foreign_hint(struct: type, key: str, known: Collection[str]) -> str:
    """Replacement for this key of another gateway; "" if it is unknown, or ours."""
    folded = snake_case(key)
    return FOREIGN.get(_section(struct), {}).get(folded, "") if folded not in known else ""
