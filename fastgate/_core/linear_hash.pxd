# The public C interface by its short name.
from fastgate._core.shm.linear_hash cimport *
