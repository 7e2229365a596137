# The public C interface by its short name.
from fastgate._core.resilience.retry_budget cimport *
