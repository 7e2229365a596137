"""Who asks, by which scheme and for which host: decided once for a request, the same for whoever looks."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastgate.proxy.forwarding import canonical_address, forwarded_elements
from tests.client import Client, get, request
from tests.gateway import Gateway
from tests.strict import Message
from tests.upstream import Peer, Upstream, answer, echo

EMPTY = ", ," * 3


def gateway(upstream: Upstream, **more: Any) -> Gateway:
    routes = [
        {"name": "admin", "path": "/*", "host": "admin.test", "upstream": "origin"},
        {"name": "to", "path": "/to/{rest...}", "redirect": "{scheme}://{host}/{rest}"},
        {"name": "rest", "path": "/*", "upstream": "origin", "preserve_host": True},
    ]
    upstreams = {"origin": {"targets": [upstream.url], "pool": {"max_requests": 1}}}
    trusted = ["127.0.0.0/8", "10.0.0.0/8"]
    return Gateway({"trusted_proxies": trusted, "upstreams": upstreams, "routes": routes, **more})


@pytest.fixture(scope="module")
def trusting() -> Iterator[tuple[Gateway, Upstream]]:
    with Upstream(echo) as upstream, gateway(upstream) as served:
        yield served, upstream


@pytest.fixture(scope="module")
def wary() -> Iterator[tuple[Gateway, Upstream]]:
    with Upstream(echo) as upstream, gateway(upstream, trusted_proxies=[]) as served:
        yield served, upstream


def seen(pair: tuple[Gateway, Upstream], *fields: str, path: str = "/x") -> Message:
    """The request as the upstream saw it."""
    assert get(pair[0].port, path, *fields).status == 200
    return pair[1].requests[-1]


def raw(port: int, data: bytes) -> Message:
    with Client(port) as client:
        client.send(data)
        return client.read_response()


# what trusted proxies say


def test_the_scheme_of_a_trusted_proxy_is_the_scheme_everywhere(trusting: tuple[Gateway, Upstream]) -> None:
    found = get(trusting[0].port, "/to/a", "X-Forwarded-Proto: https")

    assert found.get("location") == b"https://gateway.test/a"
    assert get(trusting[0].port, "/to/a").get("location") == b"http://gateway.test/a"
    assert seen(trusting, "X-Forwarded-Proto: https").get("x-forwarded-proto") == b"https"


@pytest.mark.parametrize("said", ["gopher", "https, http, https, http", "", "javascript"])
def test_what_is_no_scheme_is_not_believed(trusting: tuple[Gateway, Upstream], said: str) -> None:
    assert seen(trusting, f"X-Forwarded-Proto: {said}").get("x-forwarded-proto") == b"http"


def test_lists_are_read_at_the_hop_of_the_client(trusting: tuple[Gateway, Upstream]) -> None:
    # The client is two trusted proxies away; what stands before its own entry it may have written itself.
    found = seen(
        trusting,
        "X-Forwarded-For: 6.6.6.6, 203.0.113.7, 10.0.0.1",
        "X-Forwarded-Proto: http, https, http",
        "X-Forwarded-Host: evil.test, www.test, inner.test",
    )

    assert found.get("x-forwarded-proto") == b"https"
    assert found.get("x-forwarded-host") == b"www.test"


def test_forwarded_of_a_trusted_proxy_is_believed(trusting: tuple[Gateway, Upstream]) -> None:
    found = seen(trusting, 'Forwarded: for=6.6.6.6, for="[2001:DB8::7]:4711";proto=https;host="www.test"')

    assert found.listed("x-forwarded-for")[-2:] == [b"2001:db8::7", b"127.0.0.1"]
    assert found.get("x-forwarded-proto") == b"https"
    assert found.get("x-forwarded-host") == b"www.test"


@pytest.mark.parametrize(
    ("fields", "client"),
    [
        (["Forwarded: for=203.0.113.7"], "203.0.113.7"),
        (["Forwarded: for=6.6.6.6, for=203.0.113.7", "Forwarded: for=10.0.0.1"], "203.0.113.7"),
        (['Forwarded: FOR="203.0.113.7:99";by=_x'], "203.0.113.7"),
        (["Forwarded: for=unknown"], "127.0.0.1"),
        (["Forwarded: for=_hidden, for=10.0.0.1"], "10.0.0.1"),
        (['Forwarded: for="203.0.113.7'], "127.0.0.1"),
        (["Forwarded: for=203.0.113.7;for=6.6.6.6"], "127.0.0.1"),
        # A proxy that writes one notation passes on what the client wrote in the other.
        (["X-Forwarded-For: 203.0.113.7", "Forwarded: for=6.6.6.6"], "203.0.113.7"),
        (["X-Forwarded-Proto: https", "Forwarded: for=6.6.6.6"], "127.0.0.1"),
        (["X-Forwarded-For: ::ffff:203.0.113.7"], "203.0.113.7"),
        (["X-Forwarded-For: ::FFFF:cb00:7107"], "203.0.113.7"),
        (["X-Forwarded-For: 203.0.113.7, ::ffff:10.0.0.1"], "203.0.113.7"),
        (["X-Forwarded-For: [2001:DB8:0::7]:80"], "2001:db8::7"),
        (["X-Forwarded-For: 6.6.6.6, nonsense, 10.0.0.1"], "10.0.0.1"),
        ([f"X-Forwarded-For: {EMPTY}1.2.3.4"], "1.2.3.4"),
        ([f"X-Forwarded-For: {EMPTY}10.0.0.1"], "10.0.0.1"),
        (["X-Forwarded-For:", "X-Forwarded-For: 203.0.113.7"], "203.0.113.7"),
        (["X-Forwarded-For: , ,"], "127.0.0.1"),
        # A proxy wrote an empty member for a client that it did not know; the client wrote what is before.
        (["X-Forwarded-For: 6.6.6.6, "], "127.0.0.1"),
        (["X-Forwarded-For: 6.6.6.6, , 10.0.0.1"], "10.0.0.1"),
        (["Forwarded: , ,for=1.2.3.4"], "1.2.3.4"),
        (["Forwarded: ;;,for=203.0.113.7;, for=10.0.0.1,"], "203.0.113.7"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_trusted_proxy(fields: list[str], client: str) -> None:
    config = {
        "trusted_proxies": ["127.0.0.0/8", "10.0.0.0/8"],
        "routes": [{"path": "/*", "respond": "ok", "response_headers": {"set": {"X-Client": "{client_ip}"}}}],
    }
    with Gateway(config) as served:
        assert get(served.port, "/", *fields).get("x-client") == client.encode()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (f"{EMPTY}1.2.3.4", [b"1.2.3.4"]),
        ("1.2.3.4, ,\t,", [b"1.2.3.4"]),
        ("1.2.3.4,,10.0.0.1", [b"1.2.3.4", b"10.0.0.1"]),
        (", ,", []),
        ("1.2.3.4, nonsense", [b"1.2.3.4", b"unknown"]),
    ],
)
def test_empty_members_are_not_told_to_the_upstream(
    trusting: tuple[Gateway, Upstream], said: str, told: list[bytes]
) -> None:
    found = seen(trusting, f"X-Forwarded-For: {said}")

    assert found.listed("x-forwarded-for") == [*told, b"127.0.0.1"]
    assert [member.partition(b";")[0] for member in found.listed("forwarded")] == [
        *(b"for=" + node for node in told),
        b"for=127.0.0.1",
    ]


def test_both_notations_tell_the_upstream_one_story(trusting: tuple[Gateway, Upstream]) -> None:
    found = seen(trusting, "X-Forwarded-For: 203.0.113.7", "Forwarded: for=6.6.6.6;host=evil.test")

    assert found.listed("x-forwarded-for") == [b"203.0.113.7", b"127.0.0.1"]
    assert b"6.6.6.6" not in found.raw
    assert b"evil.test" not in found.raw
    assert [member.partition(b";")[0] for member in found.listed("forwarded")] == [
        b"for=203.0.113.7",
        b"for=127.0.0.1",
    ]


@pytest.mark.parametrize("said", ["evil.test/path", "a b", "user@evil.test", "evil.test:99999", "<script>"])
def test_what_is_no_host_is_not_believed(trusting: tuple[Gateway, Upstream], said: str) -> None:
    assert seen(trusting, f"X-Forwarded-Host: {said}").get("x-forwarded-host") == b"gateway.test"


# what anybody else says

CLAIMS = [
    *("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded"),
    *("X-Forwarded-Prefix", "X-Forwarded-Server", "X-Forwarded-Uri", "X-Forwarded-Ssl"),
    *("X-Forwarded-Scheme", "X-Forwarded-Client-Cert", "X-Forwarded-Tls-Client-Cert", "X-Forwarded-Method"),
    *("X-Forwarded-User", "Forwarded", "X-Real-IP", "X-Original-URL", "X-Rewrite-URL", "X-Original-Host"),
    *("Client-Cert", "Client-Cert-Chain", "X-Client-Cert", "X-SSL-Client-Cert", "True-Client-IP"),
    *("X-Client-IP", "X-Cluster-Client-IP", "Front-End-Https", "X-Scheme", "X-Url-Scheme", "X-Host"),
]


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("spelling", ["{}", "_", "."])
def test_only_a_trusted_proxy_says_it(wary: tuple[Gateway, Upstream], name: str, spelling: str) -> None:
    written = name if spelling == "{}" else name.replace("-", spelling)
    assert b"forged" not in seen(wary, f"{written}: forged", f"{written.lower()}: forged").raw


def test_a_trusted_proxy_may_say_it(trusting: tuple[Gateway, Upstream]) -> None:
    found = seen(trusting, "X-Forwarded-Prefix: /shop", "Client-Cert: :abc:", "X-Forwarded-Port: 8443")

    assert found.get("x-forwarded-prefix") == b"/shop"
    assert found.get("client-cert") == b":abc:"
    assert found.get("x-forwarded-port") == b"8443"


@pytest.mark.parametrize("name", ["X_Forwarded_For", "X.Forwarded.For", "X-Forwarded_Prefix", "Client_Cert"])
def test_no_spelling_stands_beside_the_field_itself(trusting: tuple[Gateway, Upstream], name: str) -> None:
    assert b"forged" not in seen(trusting, f"{name}: forged", "X-Forwarded-For: 203.0.113.7").raw


@pytest.mark.parametrize(
    "name",
    [
        "Content_Length",
        "Transfer_Encoding",
        "Content.Length",
        "X_Request_ID",
        "Keep_Alive",
        "Proxy_Connection",
    ],
)
def test_no_spelling_of_what_frames_a_message_passes(wary: tuple[Gateway, Upstream], name: str) -> None:
    assert b"forged" not in seen(wary, f"{name}: forged").raw


@pytest.mark.parametrize("name", ["X_Api_Version", "X.Trace", "User_Agent", "X-Client-Id", "Content_Type"])
def test_other_names_pass(wary: tuple[Gateway, Upstream], name: str) -> None:
    assert seen(wary, f"{name}: kept").get(name) == b"kept"


def test_a_condition_of_a_route_does_not_see_what_anybody_says() -> None:
    routes = [
        {"path": "/*", "respond": "inside", "headers": {"X-Forwarded-Proto": "https"}},
        {"path": "/*", "respond": "outside"},
    ]
    with Gateway({"routes": routes}) as served:
        assert get(served.port, "/", "X-Forwarded-Proto: https").body == b"outside"
    with Gateway({"routes": routes, "trusted_proxies": "127.0.0.1"}) as served:
        assert get(served.port, "/", "X-Forwarded-Proto: https").body == b"inside"


# which host is asked for


def test_the_absolute_form_is_the_host_for_everybody(wary: tuple[Gateway, Upstream]) -> None:
    served, upstream = wary
    head = b"GET http://Admin.Test:80/a HTTP/1.1\r\nHost: public.test\r\n\r\n"
    assert raw(served.port, head).status == 200

    found = upstream.requests[-1]
    assert found.get("x-forwarded-host") == b"admin.test"
    assert b"public.test" not in found.raw
    located = raw(served.port, b"GET http://shop.test/to/x HTTP/1.1\r\nHost: public.test\r\n\r\n")
    assert located.get("location") == b"http://shop.test/x"


def test_forward_auth_is_asked_about_the_host_that_was_routed() -> None:
    def serve(peer: Peer) -> None:
        while True:
            peer.read_request()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with Upstream(serve) as judge, Upstream(echo) as upstream:
        config = {
            "trusted_proxies": "127.0.0.1",
            "auth": {"forward": {"url": judge.url + "/check", "request_headers": ["X-Forwarded-Prefix"]}},
            "routes": [{"path": "/*", "host": "admin.test", "upstream": upstream.url, "auth": "forward"}],
        }
        with Gateway(config) as served:
            head = (
                b"GET http://admin.test/%61 HTTP/1.1\r\nHost: public.test\r\nX-Forwarded-Proto: https\r\n\r\n"
            )
            assert raw(served.port, head).status == 200
        asked = judge.requests[0]

    assert asked.get("x-forwarded-host") == b"admin.test"
    assert asked.get("x-forwarded-proto") == b"https"
    assert asked.get("x-forwarded-uri") == b"/a"
    assert b"public.test" not in asked.raw


@pytest.mark.parametrize(
    ("host", "normal"),
    [
        ("Shop.TEST", b"shop.test"),
        ("shop.test.", b"shop.test"),
        ("shop.test:80", b"shop.test"),
        ("shop.test:", b"shop.test"),
        ("shop.test:0080", b"shop.test"),
        ("shop.test.:8080", b"shop.test:8080"),
        ("shop.test:443", b"shop.test:443"),
        ("[::1]:80", b"[::1]"),
        ("[2001:DB8::1]:8080", b"[2001:db8::1]:8080"),
    ],
)
def test_one_form_of_the_host_goes_upstream(wary: tuple[Gateway, Upstream], host: str, normal: bytes) -> None:
    served, upstream = wary
    assert raw(served.port, f"GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).status == 200

    assert upstream.requests[-1].get("host") == normal
    assert upstream.requests[-1].get("x-forwarded-host") == normal


def test_the_default_port_is_that_of_the_clients_scheme(trusting: tuple[Gateway, Upstream]) -> None:
    served, upstream = trusting
    head = b"GET /x HTTP/1.1\r\nHost: shop.test:443\r\nX-Forwarded-Proto: https\r\n\r\n"
    assert raw(served.port, head).status == 200

    assert upstream.requests[-1].get("host") == b"shop.test"


@pytest.mark.parametrize("host", ["a b", "evil/test", "x@y", "", "a:b"])
def test_a_host_beside_the_absolute_form_must_be_one(wary: tuple[Gateway, Upstream], host: str) -> None:
    answered = raw(wary[0].port, f"GET http://admin.test/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())

    assert answered.status == 400


def test_pipelined_requests_keep_their_hosts(wary: tuple[Gateway, Upstream]) -> None:
    served, upstream = wary
    before = len(upstream.requests)
    with Client(served.port) as client:
        client.send(b"".join(f"GET /x HTTP/1.1\r\nHost: h{i % 3}.test\r\n\r\n".encode() for i in range(9)))
        for _ in range(9):
            assert client.read_response().status == 200

    told = [message.get("x-forwarded-host") for message in upstream.requests[before:]]
    assert told == [f"h{i % 3}.test".encode() for i in range(9)]


# trust that changes


def test_a_kept_connection_loses_its_trust_with_a_reload() -> None:
    routes = [{"path": "/*", "respond": "ok", "response_headers": {"set": {"X-Client": "{client_ip}"}}}]

    def client_of(client: Client) -> bytes | None:
        client.send(request("/", "GET", "X-Forwarded-For: 203.0.113.7"))
        return client.read_response().get("x-client")

    def until(client: Client, wanted: bytes) -> None:
        deadline = time.monotonic() + 60
        while client_of(client) != wanted:
            assert time.monotonic() < deadline, "the reload did not reach the connection"
            time.sleep(0.01)

    with Gateway({"trusted_proxies": "127.0.0.1", "routes": routes}) as served, Client(served.port) as client:
        assert client_of(client) == b"203.0.113.7"
        served.write_config({"routes": routes})
        served.process.send_signal(signal.SIGHUP)
        until(client, b"127.0.0.1")
        served.write_config({"routes": routes, "trusted_proxies": "127.0.0.0/8"})
        served.process.send_signal(signal.SIGHUP)
        until(client, b"203.0.113.7")


# Unix sockets


def ask_unix(path: Path, *fields: str) -> Message:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(path))
        sock.sendall(request("/", "GET", *fields))
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(4096)
    from tests.strict import parse_head

    parsed = parse_head(data, request=False)
    assert parsed is not None
    return parsed[0]


@pytest.mark.parametrize(("trusted", "client"), [(["unix"], b"203.0.113.7"), (["127.0.0.1"], b""), ([], b"")])
def test_a_unix_listener_trusts_when_told_to(tmp_path: Path, trusted: list[str], client: bytes) -> None:
    path = tmp_path / "gate.sock"
    config = {
        "listen": ["127.0.0.1:0", f"unix:{path}"],
        "trusted_proxies": trusted,
        "routes": [{"path": "/*", "respond": "ok", "response_headers": {"set": {"X-Client": "{client_ip}"}}}],
    }
    with Gateway(config) as served:
        assert (ask_unix(path, "X-Forwarded-For: 203.0.113.7").get("x-client") or b"") == client
        assert (
            get(served.port, "/", "X-Forwarded-For: 6.6.6.6").get("x-client") != b"6.6.6.6"
            or "127.0.0.1" in trusted
        )


def test_clients_behind_a_trusted_unix_listener_have_limits_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "gate.sock"
    config = {
        "listen": ["127.0.0.1:0", f"unix:{path}"],
        "trusted_proxies": "unix",
        "routes": [{"path": "/*", "respond": "ok", "limits": {"rules": [{"per_hour": 1}]}}],
    }
    with Gateway(config):
        statuses = [ask_unix(path, f"X-Forwarded-For: 203.0.113.{n}").status for n in (1, 2, 1)]

    assert statuses == [200, 200, 429]


# the notations themselves


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"192.0.2.1", b"192.0.2.1"),
        (b"192.0.2.1:80", b"192.0.2.1"),
        (b"[::1]", b"::1"),
        (b"[::1]:80", b"::1"),
        (b"2001:DB8::0:1", b"2001:db8::1"),
        (b"::ffff:192.0.2.1", b"192.0.2.1"),
        (b"::FFFF:c000:201", b"192.0.2.1"),
        (b"[::1]x", None),
        (b"192.0.2.1:x", None),
        (b"192.0.2", None),
        (b"", None),
        (b"\xff", None),
        (b"fe80::1%eth0", None),
    ],
)
def test_addresses_have_one_form(text: bytes, expected: bytes | None) -> None:
    assert canonical_address(text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"for=a", [{b"for": b"a"}]),
        (
            b'For="[::1]:80" ; Proto=https ,, for=b',
            [{b"for": b"[::1]:80", b"proto": b"https"}, {b"for": b"b"}],
        ),
        (b'host="a\\"b,c;d"', [{b"host": b'a"b,c;d'}]),
        (b'for="a,b', None),
        (b"for", None),
        (b"for=a b", None),
        (b"for=a;for=b", None),
        (b"", []),
    ],
)
def test_forwarded_is_read_by_its_grammar(value: bytes, expected: list[dict[bytes, bytes]] | None) -> None:
    assert forwarded_elements(value) == expected


@pytest.mark.parametrize("filler", [b" ", b"\t", b",", b";", b"a", b'for="', b"for=a,"])
def test_reading_forwarded_takes_time_in_proportion_to_its_length(filler: bytes) -> None:
    value = b"for=a," + filler * (30_000 // len(filler)) + b",for=b"

    began_s = time.thread_time()
    forwarded_elements(value)

    assert time.thread_time() - began_s < 1  # of CPU: a few milliseconds


def test_of_a_chain_without_end_only_the_last_proxies_are_read_and_passed_on(
    trusting: tuple[Gateway, Upstream],
) -> None:
    chain = ", ".join(["203.0.113.9"] + 1000 * ["10.0.0.1"])

    request_seen = seen(trusting, f"X-Forwarded-For: {chain}")

    told = (request_seen.get("x-forwarded-for") or b"").split(b", ")
    assert told == [*(32 * [b"10.0.0.1"]), b"127.0.0.1"]
    assert (request_seen.get("forwarded") or b"").count(b"for=") == 33


def test_the_upstream_still_sees_a_request_without_a_host(wary: tuple[Gateway, Upstream]) -> None:
    served, upstream = wary
    upstream.script = answer()
    try:
        with Client(served.port) as client:
            client.send(b"GET /x HTTP/1.0\r\n\r\n")
            assert client.read_response().status == 200
    finally:
        upstream.script = echo

    assert upstream.requests[-1].get("x-forwarded-for") == b"127.0.0.1"
