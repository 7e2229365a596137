"""What a plan keeps of the services that features share."""

from __future__ import annotations

import pytest

from fastgate.config import Changes
from fastgate.plan.services import Services


def test_a_complete_plan_gives_what_it_has_and_makes_nothing_more() -> None:
    services = Services(None, Changes({}, {}))
    made = services.get("cache", {"size": 1}, object)

    services.seal()

    assert services.get("cache", {"size": 1}, object) is made
    with pytest.raises(LookupError, match="service cache"):
        services.get("cache", {"size": 2}, object)
    assert len(services.used) == len(services.fresh) == 1
