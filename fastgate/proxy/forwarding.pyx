# cython: boundscheck=False
"""The client's address, scheme and host: determined here, once for each request, and passed on to the upstream.

WHAT     `believe` reads the statements of a trusted proxy about the client (X-Forwarded-*, or else Forwarded) and sets the
         client's address and scheme in the context. All other code reads them there: policies, templates, forward-auth, the
         cache, the log. The lines in `ctx.forwarding` give the upstream the same facts in both notations, so that it cannot
         derive different ones.
STATE    None. The connection decides whether the peer is trusted (proxy/h1_client.pyx).
WHO      The worker's loop, for each request of a trusted peer; the lines of an untrusted one are kept with its connection.
COST     A trusted request about 3 µs; an untrusted one nothing.
SOURCES  RFC 7239 (Forwarded), §5.2 (for), §7.4 (together with X-Forwarded-*); RFC 9110 §7.6.
"""

import re
import socket

from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.http.headers cimport (
    H_FORWARDED,
    H_X_FORWARDED_FOR,
    H_X_FORWARDED_HOST,
    H_X_FORWARDED_PORT,
    H_X_FORWARDED_PROTO,
    Headers,
    field_t,
)
from fastgate._core.http.urlpath cimport host_of, normal_authority

from fastgate._core.http.field_names import TCHAR

__all__ = ["canonical_address", "forwarded_elements"]

cdef enum:
    MOST_HOPS = 32                  # proxies in a chain; earlier entries are neither read nor passed on

# RFC 7239 §4: parameter = token "=" ( token / quoted-string ). White space is matched separately: at the start of the pattern, a
# run of it would be scanned again from each of its bytes.
cdef object PAIR = re.compile(rf"""([{TCHAR}]+)=(?:([{TCHAR}:\[\]]+)|"((?:[^"\\]|\\.)*)")[ \t]*""".encode())
cdef object ESCAPED = re.compile(rb"\\(.)")
cdef dict SCHEMES = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}


def canonical_address(bytes text not None):
    """The canonical form (bytes) of an address that may have brackets or a port; IPv4-mapped IPv6 becomes IPv4. None if the text
    is not an address."""
    cdef bytes packed
    if text.startswith(b"["):
        text, _, rest = text[1:].partition(b"]")
        if rest and not (rest[:1] == b":" and rest[1:].isdigit()):
            return None
    elif text.count(b":") == 1:
        text, _, rest = text.partition(b":")
        if not rest.isdigit():
            return None
    try:
        if b":" not in text:
            return socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, text.decode("ascii"))).encode()
        packed = socket.inet_pton(socket.AF_INET6, text.decode("ascii"))
    except (OSError, ValueError):
        return None
    if packed.startswith(b"\0\0\0\0\0\0\0\0\0\0\xff\xff"):
        return socket.inet_ntop(socket.AF_INET, packed[12:]).encode()
    return socket.inet_ntop(socket.AF_INET6, packed).encode()


def forwarded_elements(bytes value not None):
    """The elements of a Forwarded value, each a dict of lower-case names to values (RFC 7239 §4); None when it is malformed."""
    cdef list elements = []
    cdef dict element = {}
    cdef Py_ssize_t at = 0, n = len(value)
    cdef const char* p = value
    while at < n:
        if p[at] == c"," or p[at] == c";" or p[at] == c" " or p[at] == c"\t":
            if p[at] == c",":
                elements.append(element)
                element = {}
            at += 1
            continue
        found = PAIR.match(value, at)
        if found is None:
            return None
        name = found[1].lower()
        if name in element:
            return None                                 # "each parameter MUST NOT occur more than once"
        element[name] = found[2] if found[2] is not None else ESCAPED.sub(rb"\1", found[3])
        at = found.end()
        if at < n and p[at] != c"," and p[at] != c";":
            return None
    elements.append(element)
    return [each for each in elements if each]


cdef bytes quoted_node(bytes peer):
    """An address in the syntax of RFC 7239 §6: IPv6 in brackets and quotes, unexpected text as `unknown`."""
    if not peer or not peer.replace(b".", b"").replace(b":", b"").isalnum():
        return b"unknown"
    if b":" in peer:
        return b'"[' + peer + b']"'
    return peer


cdef bytes forwarding_lines(bytes peer, str scheme, bytes authority):
    """The forwarding fields for a peer that is not a trusted proxy: they replace the ones it sent."""
    cdef bytes proto = scheme.encode()
    return (b"X-Forwarded-For: " + (peer or b"unknown") + b"\r\nX-Forwarded-Proto: " + proto
            + b"\r\nX-Forwarded-Host: " + authority + b"\r\nForwarded: for=" + quoted_node(peer) + b";proto=" + proto
            + b';host="' + authority + b'"\r\n')


cdef list listed(Headers headers, int known):
    """The members of a list-valued field, over all its lines."""
    cdef list out = []
    cdef int i
    for i in range(headers.count):
        if headers.fields[i].id == known:
            out += [part.strip(b" \t") for part in headers.value_at(i).split(b",")]
    return out


cdef bytes at_hop(list members, Py_ssize_t hops):
    """The value given by the proxy `hops` steps away, in a list to which each proxy appends; a single value applies to all."""
    if not members:
        return None
    return members[max(0, len(members) - hops)]


cdef int believe(RequestContext ctx, object trusted) except -1:
    """Set client, scheme and the forwarding fields for a request from a trusted proxy.

    trusted: the set of trusted addresses, or None if only Unix sockets are trusted. Address, scheme and host are taken from
    X-Forwarded-* if the proxy sent any of them, else from Forwarded: a proxy writes one of the two, and passes on the client's
    value of the other.
    """
    cdef Headers headers = ctx.headers
    cdef field_t* field
    cdef str peer_scheme = ctx.scheme
    cdef list chain = [], elements = [], forwarded = []
    cdef bint has_x = False
    cdef Py_ssize_t hops = 0
    cdef bytes address, host = None, proto = None, port = None, told
    cdef int i, known
    for i in range(headers.count):
        known = headers.fields[i].id
        if known == H_FORWARDED:
            forwarded.append(headers.value_at(i))
        elif H_X_FORWARDED_FOR <= known <= H_X_FORWARDED_HOST:
            has_x = True
    if has_x:
        chain = listed(headers, H_X_FORWARDED_FOR)[-MOST_HOPS:]
    elif forwarded:
        elements = forwarded_elements(b", ".join(forwarded))
        if elements is None:                            # ambiguous: ignored, and not passed on
            elements = []
        chain = [element.get(b"for", b"unknown") for element in elements]
    # The last address that is not itself a trusted proxy
    for node in reversed(chain[-MOST_HOPS:]):
        address = canonical_address(node)
        if address is None:
            break
        ctx.client = address
        hops += 1
        if trusted is None or address.decode() not in trusted:
            break
    hops = max(1, hops)
    if has_x:
        proto = at_hop(listed(headers, H_X_FORWARDED_PROTO), hops)
        host = at_hop(listed(headers, H_X_FORWARDED_HOST), hops)
    elif elements:
        element = elements[max(0, len(elements) - hops)]
        proto = element.get(b"proto")
        host = element.get(b"host")
    if proto is not None:
        ctx.scheme = SCHEMES.get(proto.lower(), peer_scheme)
        if ctx.scheme is not peer_scheme and ctx.host_bytes:
            ctx.authority = normal_authority(ctx.host_received, ctx.host_bytes, ctx.scheme == "https")
    if host is not None and host_of(host) is None:
        host = None
    field = headers.find_id(H_X_FORWARDED_PORT)
    if field != NULL:
        port = field.value[:field.value_n]
        if not (port.isdigit() and len(port) <= 5):
            port = None
    # RFC 9110 §5.6.1.2: empty members do not count as members. The search above nevertheless ends at one: if a proxy wrote an
    # empty member for an unknown address, the member before it, which the client wrote, must not become the client.
    told_chain = [canonical_address(node) or b"unknown" for node in chain if node]
    lines = [b"X-Forwarded-For: ", b", ".join([*told_chain, ctx.peer or b"unknown"]),
             b"\r\nX-Forwarded-Proto: ", ctx.scheme.encode(), b"\r\nX-Forwarded-Host: ",
             host if host is not None else ctx.authority,
             b"\r\nForwarded: "]
    told = b"for=" + quoted_node(ctx.peer) + b";proto=" + peer_scheme.encode()
    if elements:
        lines += [b", ".join(forwarded), b", ", told]
    else:
        for address in told_chain:
            lines += [b"for=", quoted_node(address), b", "]
        lines.append(told)
    lines.append(b"\r\n")
    if port is not None:
        lines += [b"X-Forwarded-Port: ", port, b"\r\n"]
    ctx.forwarding = b"".join(lines)
    return 0
