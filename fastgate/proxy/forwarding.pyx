# cython: boundscheck=False
"""Who asks, by which scheme and for which host: decided here, once for each request, and told to the upstream.

WHAT     `believe` reads what a trusted proxy says of the client (X-Forwarded-*, or else Forwarded) and settles the client's address
         and scheme in the context. Everything else reads them there: policies, templates, forward-auth, the cache, the log.
         The lines in `ctx.forwarding` tell the upstream the same story in both notations, so that it cannot believe another one.
STATE    None. Whether the peer is trusted is the connection's business (proxy/h1_client.pyx).
WHO      The worker's loop, for each request of a trusted peer; the lines of an untrusted one are kept with its connection.
COST     A trusted request about 3 µs; an untrusted one nothing.
SOURCES  RFC 7239 (Forwarded), §5.2 (for), §7.4 (beside X-Forwarded-*); RFC 9110 §7.6.
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
    MOST_HOPS = 32                  # proxies in a row; what stands before the last so many is neither read nor passed on

# RFC 7239 §4: parameter = token "=" ( token / quoted-string ). White space is read apart: at its beginning the pattern would look at
# a run of it once from each of its bytes.
cdef object PAIR = re.compile(rf"""([{TCHAR}]+)=(?:([{TCHAR}:\[\]]+)|"((?:[^"\\]|\\.)*)")[ \t]*""".encode())
cdef object ESCAPED = re.compile(rb"\\(.)")
cdef dict SCHEMES = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}


def canonical_address(bytes text not None):
    """The address in text, which may have brackets or a port, in its one form (bytes); IPv4-mapped IPv6 is IPv4. None for what is
    no address."""
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
    """An address as RFC 7239 §6 wants it: IPv6 in brackets and quotes, anything odd as `unknown`."""
    if not peer or not peer.replace(b".", b"").replace(b":", b"").isalnum():
        return b"unknown"
    if b":" in peer:
        return b'"[' + peer + b']"'
    return peer


cdef bytes forwarding_lines(bytes peer, str scheme, bytes authority):
    """The forwarding fields for a peer that is not a trusted proxy: what it says of itself is replaced."""
    cdef bytes proto = scheme.encode()
    return (b"X-Forwarded-For: " + (peer or b"unknown") + b"\r\nX-Forwarded-Proto: " + proto
            + b"\r\nX-Forwarded-Host: " + authority + b"\r\nForwarded: for=" + quoted_node(peer) + b";proto=" + proto
            + b';host="' + authority + b'"\r\n')


cdef list listed(Headers headers, int known):
    """The members of a field that is a list, over all its lines."""
    cdef list out = []
    cdef int i
    for i in range(headers.count):
        if headers.fields[i].id == known:
            out += [part.strip(b" \t") for part in headers.value_at(i).split(b",")]
    return out


cdef bytes at_hop(list members, Py_ssize_t hops):
    """What the proxy `hops` steps away says, in a list to which each proxy appended; the only one counts for all."""
    if not members:
        return None
    return members[max(0, len(members) - hops)]


cdef int believe(RequestContext ctx, object trusted) except -1:
    """Settle client, scheme and what is told of them, for a request from a trusted proxy.

    trusted: the set of trusted addresses, or None where only Unix sockets are. Address, scheme and host are taken from X-Forwarded-*
    when the proxy sent any of them, else from Forwarded: a proxy writes one of the two, and passes on what a client wrote into
    the other.
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
        if elements is None:                            # nobody can say what it means: not believed, and not passed on
            elements = []
        chain = [element.get(b"for", b"unknown") for element in elements]
    # The last address that is not a trusted proxy itself
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
    # RFC 9110 §5.6.1.2: empty members are no members. The search above ends at one all the same: a proxy that wrote one for an address
    # it did not know must not make the member before it, which its client wrote, the client.
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
