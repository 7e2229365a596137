"""What keys and limits cost: a guarded route beside nginx with nothing, and beside nginx with Lua doing part
of it.

`guarded` is an API key, limits per minute, hour and day, a burst, a bound on requests at once and RateLimit
fields. nginx with Lua checks a key in a shared dictionary and counts one window in another. The loads of
`many-keys` and `many-entries` draw at random, so that no request finds what the one before it left in the
CPU's caches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jwt

from benchmarks.gateway import load, servers
from benchmarks.gateway.ladder import Ladder, Peer, Peers
from benchmarks.gateway.load import FIRST, MARK, Load, Traffic
from benchmarks.gateway.servers import MANY, Server

__all__ = ["GUARDS", "KEY", "LUA_GUARD", "LUA_HTTP", "NGINX_PROXY", "TIERS"]

KEYS = 100_000
ENTRIES = 1_000_000
PRIME_S = 5.0

NGINX_PROXY = 'proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection "";'
NGINX_REFUSAL = (
    "add_header Retry-After 45 always; "
    """return 429 '{"error":"Rate limit exceeded","limit_type":"per_minute","retry_after":45}';"""
)


def key_named(number: int) -> str:
    """A key of the form that the gateway makes: always the same for the same number."""
    return f"fg_benchmark{number:035d}"


KEY = key_named(0)
TOKEN_SECRET = "0123456789abcdef0123456789abcdef"

# One look-up and one count, as the limit.count of lua-resty-limit-traffic does it.
LUA_HTTP = f"""
    access_log off; lua_shared_dict keys 20m; lua_shared_dict limits 100m; lua_shared_dict answers 256m;
    init_by_lua_block {{ ngx.shared.keys:set("{KEY}", "acme") }}
"""
LUA_GUARD = f"""
    local key = ngx.var.http_x_api_key
    local consumer = key and ngx.shared.keys:get(key)
    if not consumer then return ngx.exit(401) end
    local window = math.floor(ngx.now() / 60)
    local used = ngx.shared.limits:incr(consumer .. ":" .. window, 1, 0, 120)
    if used > {MANY} then return ngx.exit(429) end
"""

TIERS = {
    "bench": {
        "per_minute": MANY,
        "per_hour": MANY,
        "per_day": MANY,
        "burst": 1_000_000,
        "concurrent": 10_000,
    }
}


def guarded(origin: int, scheme: str = "api_key", **more: Any) -> dict[str, Any]:
    """The config of a guarded route in front of this port."""
    return {
        "tiers": TIERS,
        "routes": [
            {"path": "/{rest...}", "upstream": f"http://127.0.0.1:{origin}", "auth": [scheme], **more},
        ],
    }


def _guarded(origin: int) -> Peers:
    return {
        "nginx": lambda: servers.nginx(NGINX_PROXY, origin=origin),
        "nginx + lua": lambda: servers.nginx(
            f"access_by_lua_block {{ {LUA_GUARD} }} {NGINX_PROXY}", http=LUA_HTTP, origin=origin, lua=True
        ),
        "fastgate": lambda: servers.fastgate(guarded(origin), keys=[KEY]),
    }


def _refused(origin: int) -> Peers:
    limited = {**guarded(origin), "tiers": {"bench": {"per_minute": 1}}}
    return {
        "nginx": lambda: servers.nginx(NGINX_REFUSAL),
        "fastgate": Peer(lambda: servers.fastgate(limited, keys=[KEY]), prepare=_use_up),
    }


def _use_up(server: Server, _: Load) -> None:
    load.ask(server, Traffic("GET", headers=WITH_KEY.headers))


def _token(origin: int) -> Peers:
    issuer = {
        "issuer": "https://bench.example",
        "secret": TOKEN_SECRET,
        "algorithms": ["HS256"],
        "claims": {"tier": "tier"},
    }
    config = {**guarded(origin, "jwt"), "auth": {"jwt": {"issuers": [issuer]}}}
    claims = {"iss": issuer["issuer"], "sub": "acme", "tier": "bench", "exp": 4_000_000_000}
    token = jwt.encode(claims, TOKEN_SECRET, "HS256")
    return {
        "fastgate key": lambda: servers.fastgate(guarded(origin), keys=[KEY]),
        "fastgate jwt": Peer(
            lambda: servers.fastgate(config), traffic=Traffic(headers={"Authorization": f"Bearer {token}"})
        ),
    }


# Requests that differ: wrk's own request is made once, with a mark where they differ, and cut there.
CUT = """
local head, tail
init = function(arguments)
  local whole = wrk.format()
  local first, last = whole:find("%(mark)s", 1, true)
  head, tail = whole:sub(1, first - 1), whole:sub(last + 1)
end
local seed = %(seed)d
local function draw(count)  -- Park and Miller's generator: exact in a double
  seed = seed * 16807 %% 2147483647
  return math.floor(seed / 2147483647 * count)
end
"""
DRAW_NUMBER = """
request = function() return head .. string.format("%%07d", draw(%(count)d)) .. tail end
"""
NEXT_NUMBER = """
local number = %(first)d - 1
request = function() number = number + 1 return head .. string.format("%%07d", number) .. tail end
"""


def drawing(lua: str, **values: int) -> str:
    """Lua of a load whose requests differ where the mark is."""
    return (CUT + lua) % {"mark": MARK, "seed": 20_261_121, **values}


def fill(traffic: Traffic, count: int) -> Callable[[Server, Load], None]:
    """Asks for everything from 0000000 to count once, in order."""

    def prepare(server: Server, _: Load) -> None:
        first = 0
        while first < count:
            asked = Traffic(
                traffic.method, traffic.path, traffic.headers, varying=drawing(NEXT_NUMBER, first=first)
            )
            first += load.run(server, asked, PRIME_S)["requests"] - load.CONNECTIONS

    return prepare


def _many_keys(origin: int) -> Peers:
    def peer(count: int) -> Peer:
        keys = [key_named(number) for number in range(count)]
        headers = {"X-API-Key": KEY.removesuffix(FIRST) + MARK}
        asked = Traffic(headers=headers, varying=drawing(DRAW_NUMBER, count=count))
        return Peer(
            lambda: servers.fastgate(guarded(origin), keys=keys),
            traffic=asked,
            prepare=fill(Traffic(headers=headers), count),
        )

    return {"fastgate 10 keys": peer(10), f"fastgate {KEYS} keys": peer(KEYS)}


def _many_entries(origin: int) -> Peers:
    # The same small table of what the CPU caches hold, and a million entries beside it.
    def peer(count: int) -> Peer:
        config = {
            "memory": {"limiter_keys": 2 * ENTRIES},
            "routes": [
                {
                    "path": "/{rest...}",
                    "upstream": f"http://127.0.0.1:{origin}",
                    "limits": {"by": [{"header": "X-Device"}], "per_hour": MANY},
                }
            ],
        }
        headers = {"X-Device": MARK}
        asked = Traffic(headers=headers, varying=drawing(DRAW_NUMBER, count=count))
        return Peer(
            lambda: servers.fastgate(config), traffic=asked, prepare=fill(Traffic(headers=headers), count)
        )

    return {"fastgate 100 entries": peer(100), f"fastgate {ENTRIES} entries": peer(ENTRIES)}


WITH_KEY = Traffic(headers={"X-API-Key": KEY})

GUARDS: dict[str, Ladder] = {
    "guarded": Ladder(
        "key, three windows, burst, concurrency and RateLimit fields on a proxied route",
        _guarded,
        WITH_KEY,
        is_paced=True,
    ),
    "refusal": Ladder(
        "429 to a key that has used up its minute",
        _refused,
        Traffic("GET", headers=WITH_KEY.headers, status=429, body_bytes=0),
    ),
    "jwt": Ladder("guarded, by key and by a token seen before", _token, WITH_KEY),
    "many-keys": Ladder("guarded, requests spread over many keys", _many_keys, WITH_KEY),
    "many-entries": Ladder("a limit by a header's value, over many values", _many_entries),
}
