from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import final

__all__ = ["CidrSet"]

@final
class CidrSet:
    def __init__(
        self, networks: Iterable[str | IPv4Address | IPv6Address | IPv4Network | IPv6Network] = ()
    ) -> None: ...
    def __contains__(self, ip: str | bytes | IPv4Address | IPv6Address) -> bool: ...
    def __len__(self) -> int: ...

def live_objects() -> int: ...
