"""How hypothesis runs here: no deadlines, for a busy machine is no bug, and the same examples in every run of
the same tests, so that `make test` says the same twice. HYPOTHESIS_PROFILE=fuzz searches long and at random.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "fuzz",
    parent=settings.get_profile("default"),
    derandomize=False,
    max_examples=10_000,
    print_blob=True,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
