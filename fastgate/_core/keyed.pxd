# The public C interface by its short name.
from fastgate._core.limits.keyed cimport *
