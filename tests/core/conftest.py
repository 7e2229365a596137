"""How hypothesis runs here: no deadlines, a busy machine is no bug; HYPOTHESIS_PROFILE=fuzz searches long."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "fuzz", parent=settings.get_profile("default"), max_examples=10_000, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
