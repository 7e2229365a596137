# The public C interface by its short name.
from fastgate._core.http.cidr cimport *
