# The public C interface by its short name.
from fastgate._core.shm.epochs cimport *
