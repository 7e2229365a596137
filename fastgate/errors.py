"""The REASONS table: every way a request can end other than with the response of the upstream.

A refusal is data, not an exception: `ctx.refuse(REASONS["body_too_large"])` selects a row, and the row has
the status, the text of the JSON body, the responsible side and whether another attempt may succeed. The label
is also the `code` of the body, except for those in `_TOLD_AS`. Metric labels and log fields take their values
from this table only, so their cardinality is the length of the table.
"""

from __future__ import annotations

from fastgate._core.pipeline.context import CLIENT, GATEWAY, UPSTREAM, Reason

__all__ = ["REASONS", "Reason"]

_ROWS: tuple[tuple[str, int, str, int, bool], ...] = (
    # label, status, text, source, retryable (another attempt at another target may succeed)
    ("bad_request", 400, "Bad request", CLIENT, False),
    ("bad_request_line", 400, "Malformed request line", CLIENT, False),
    ("bad_header", 400, "Malformed header field", CLIENT, False),
    ("bad_framing", 400, "Ambiguous or malformed message framing", CLIENT, False),
    ("bad_host", 400, "Missing, repeated or malformed Host", CLIENT, False),
    ("bad_target", 400, "Malformed request target", CLIENT, False),
    ("ambiguous_path", 400, "Ambiguous path", CLIENT, False),
    ("bad_json", 400, "Malformed JSON body", CLIENT, False),
    ("body_missing", 400, "Request body missing", CLIENT, False),
    ("bad_proxy_header", 400, "Malformed PROXY protocol header", CLIENT, False),
    ("unauthorized", 401, "Unauthorized", CLIENT, False),
    ("credentials_missing", 401, "Unauthorized", CLIENT, False),
    ("credentials_invalid", 401, "Unauthorized", CLIENT, False),
    ("credentials_repeated", 401, "Unauthorized", CLIENT, False),
    ("credentials_malformed", 401, "Unauthorized", CLIENT, False),
    ("credentials_unknown", 401, "Unauthorized", CLIENT, False),
    ("credentials_wrong", 401, "Unauthorized", CLIENT, False),
    ("credentials_expired", 401, "Unauthorized", CLIENT, False),
    ("credentials_not_yet_valid", 401, "Unauthorized", CLIENT, False),
    ("credentials_replayed", 401, "Unauthorized", CLIENT, False),
    ("credentials_refused", 401, "Unauthorized", CLIENT, False),
    ("claims_refused", 401, "Unauthorized", CLIENT, False),
    ("wrong_audience", 401, "Unauthorized", CLIENT, False),
    ("signature_incomplete", 401, "Unauthorized", CLIENT, False),
    ("digest_mismatch", 401, "Unauthorized", CLIENT, False),
    ("consumer_refused", 401, "Unauthorized", CLIENT, False),
    ("cors_refused", 403, "Origin not allowed", CLIENT, False),
    ("forbidden", 403, "Forbidden", CLIENT, False),
    ("address_denied", 403, "Forbidden", CLIENT, False),
    ("insufficient_scope", 403, "Forbidden", CLIENT, False),
    ("policy_denied", 403, "Forbidden", CLIENT, False),
    ("no_route", 404, "No route matches", CLIENT, False),
    ("method_not_allowed", 405, "Method not allowed", CLIENT, False),
    ("header_timeout", 408, "Request header took too long", CLIENT, False),
    ("body_timeout", 408, "Request body took too long", CLIENT, False),
    ("body_too_slow", 408, "Request body arrived below the minimum rate", CLIENT, False),
    ("body_too_large", 413, "Request body too large", CLIENT, False),
    ("target_too_long", 414, "Request target too long", CLIENT, False),
    ("unsupported_media_type", 415, "Unsupported content type", CLIENT, False),
    ("expectation_failed", 417, "Unknown expectation", CLIENT, False),
    ("schema_mismatch", 422, "Request body does not match its schema", CLIENT, False),
    ("rate_limited", 429, "Rate limit exceeded", CLIENT, False),
    ("client_banned", 429, "Too many violations", CLIENT, False),
    ("header_too_large", 431, "Request header section too large", CLIENT, False),
    ("client_closed", 499, "Client closed the connection", CLIENT, False),
    ("client_stalled", 499, "Client stopped reading the response", CLIENT, False),
    ("client_too_slow", 499, "Client read the response below the minimum rate", CLIENT, False),
    ("plugin_error", 500, "Internal error", GATEWAY, False),
    ("internal_error", 500, "Internal error", GATEWAY, False),
    (
        "unknown_upstream",
        500,
        "Unknown upstream",
        GATEWAY,
        False,
    ),
    ("plugin_response_error", 502, "A plugin failed on the upstream's response", GATEWAY, False),
    ("unknown_method", 501, "Method not implemented", CLIENT, False),
    ("bad_upstream_response", 502, "Malformed response from upstream", UPSTREAM, True),
    ("upstream_closed", 502, "Upstream closed the connection before responding", UPSTREAM, True),
    ("upstream_truncated", 502, "Upstream response ended early", UPSTREAM, False),
    ("upstream_connect_failed", 502, "Could not connect to upstream", UPSTREAM, True),
    ("upstream_tls_failed", 502, "TLS handshake with upstream failed", UPSTREAM, True),
    ("auth_unavailable", 503, "Authentication is temporarily unavailable", GATEWAY, False),
    ("draining", 503, "Gateway is shutting down", GATEWAY, False),
    ("limits_full", 503, "Limit table is full", GATEWAY, False),
    ("overloaded", 503, "Gateway is at its connection limit", GATEWAY, False),
    ("policies_unavailable", 503, "The policies are not loaded yet", GATEWAY, False),
    ("breaker_open", 503, "Service temporarily unavailable", GATEWAY, False),
    ("no_target", 503, "No target of the service is available", GATEWAY, False),
    ("credential_unavailable", 503, "The credential for the upstream is not available", GATEWAY, False),
    ("request_bodies_full", 503, "Too many request bodies are held in memory", GATEWAY, False),
    ("upstream_queue_full", 503, "Too many requests are waiting for upstream", GATEWAY, False),
    ("upstream_queue_timeout", 503, "No upstream connection became free in time", GATEWAY, False),
    ("only_if_cached", 504, "Not in the cache, and only-if-cached was requested", CLIENT, False),
    ("plugin_timeout", 504, "A plugin took too long", GATEWAY, False),
    ("upstream_connect_timeout", 504, "Connecting to upstream took too long", UPSTREAM, True),
    ("upstream_first_byte_timeout", 504, "Upstream took too long to respond", UPSTREAM, False),
    ("per_try_timeout", 504, "Upstream took too long to respond", UPSTREAM, False),
    ("upstream_between_bytes_timeout", 504, "Upstream stalled while sending the response", UPSTREAM, False),
    ("total_timeout", 504, "The request took too long", GATEWAY, False),
    ("version_not_supported", 505, "HTTP version not supported", CLIENT, False),
)

# The exact fault of a credential is for operators only, because it would help an attacker to guess. These
# labels are in logs and metrics; the body has `credentials_invalid`.
_TOLD_AS: dict[str, str] = {
    label: "credentials_invalid"
    for label, status, _, _, _ in _ROWS
    if status == 401 and label not in ("unauthorized", "credentials_missing", "credentials_repeated")
}

REASONS: dict[str, Reason] = {
    label: Reason(index, label, status, text, source, retryable, _TOLD_AS.get(label))
    for index, (label, status, text, source, retryable) in enumerate(_ROWS, start=1)
}
