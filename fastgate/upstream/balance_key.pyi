from collections.abc import Iterable

from fastgate._core.balance.strategies import KeyHash

__all__ = ["BalanceKey"]

class BalanceKey:
    def __init__(self, parts: Iterable[str], table: KeyHash) -> None: ...
