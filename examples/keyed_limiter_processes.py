"""Four processes share one budget per tenant and together never spend more than it."""

import os

from fastgate import FixedWindow, KeyedLimiter, SharedMemory, TokenBucket

# 2 dollars a day in micro-dollars, and at most 50 000 jobs in a burst.
LIMITS = [FixedWindow(2_000_000, 86_400), TokenBucket(rate_per_s=1000, burst=50_000)]
limiter = KeyedLimiter(LIMITS, capacity=1000, shared=SharedMemory(KeyedLimiter.size(LIMITS, 1000)))

for worker in range(4):
    if os.fork() == 0:
        spent = 0
        while reservation := limiter.reserve("tenant-7", (130, 1)):  # what a job may cost at most
            cost = 60 + spent % 70  # what it did cost
            reservation.settle((cost, 1))
            spent += cost
        said = f"worker {worker} spent {spent / 1e6:.6f} dollars; stopped by limit {reservation.limit}"
        print(said, flush=True)  # os._exit flushes nothing
        os._exit(0)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
left = limiter.peek("tenant-7", (1, 0)).remaining + 1
print(f"left: {left} micro-dollars")
