# The public C interface by its short name.
from fastgate._core.resilience.backoff cimport *
