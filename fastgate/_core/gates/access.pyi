from fastgate._core.http.cidr import CidrSet
from fastgate._core.pipeline.context import Reason
from fastgate._core.pipeline.pipeline import Plugin
from fastgate._core.shm.metric import MetricTable

__all__ = ["AccessGate"]

class AccessGate(Plugin):
    def __new__(
        cls, denied: CidrSet | None, allowed: CidrSet | None, why: Reason, metrics: MetricTable
    ) -> AccessGate: ...
