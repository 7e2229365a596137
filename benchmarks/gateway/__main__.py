"""`python -m benchmarks.gateway`: see run.py."""

import sys

from benchmarks.gateway.run import main

sys.exit(main())
