"""The balancers against plain-Python oracles."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastgate._core.balance import SmoothWeighted

WEIGHTS = st.lists(st.integers(0, 20), min_size=1, max_size=9).filter(any)


class SmoothOracle:
    """nginx ngx_http_upstream_get_peer, without the effective weight."""

    def __init__(self, weights: list[int]) -> None:
        self.weights = weights
        self.current = [0] * len(weights)

    def pick(self) -> int:
        live = [index for index, weight in enumerate(self.weights) if weight]
        for index in live:
            self.current[index] += self.weights[index]
        best = max(live, key=lambda index: (self.current[index], -index))
        self.current[best] -= sum(self.weights)
        return best


@given(WEIGHTS, st.integers(0, 40), st.integers(1, 120))
def test_smooth_weighted_equals_the_oracle(weights: list[int], start: int, picks: int) -> None:
    oracle = SmoothOracle(weights)
    for _ in range(start):
        oracle.pick()
    balancer = SmoothWeighted(weights, start)

    assert [balancer.pick() for _ in range(picks)] == [oracle.pick() for _ in range(picks)]
