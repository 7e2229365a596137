from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Self, final

__all__ = ["CidrSet"]

@final
class CidrSet:
    def __new__(
        cls, networks: Iterable[str | IPv4Address | IPv6Address | IPv4Network | IPv6Network] = ()
    ) -> Self: ...
    def __contains__(self, ip: str | bytes | IPv4Address | IPv6Address, /) -> bool: ...
    def __len__(self) -> int: ...

def live_objects() -> int: ...
