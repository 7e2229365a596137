"""Limits per API key in a FastAPI service, shared by its workers.

uvicorn --app-dir examples keyed_limiter_fastapi:app --workers 2
"""

from fastapi import FastAPI, Request, Response

from fastgate._core import FixedWindow, KeyedLimiter, SharedMemory, SlidingWindow, TokenBucket

LIMITS = [TokenBucket(rate_per_s=10, burst=20), SlidingWindow(300, 60), FixedWindow(10_000, 86_400)]
# A file, because uvicorn spawns its workers; with fork (gunicorn) SharedMemory(size) before it needs no name.
SHARED = SharedMemory(KeyedLimiter.size(LIMITS, 100_000), "/dev/shm/keyed_limiter_example")
limiter = KeyedLimiter(LIMITS, capacity=100_000, shared=SHARED)
app = FastAPI()


@app.middleware("http")
async def limit(request: Request, call_next):
    client = request.headers.get("x-api-key") or request.client.host
    decision = limiter.take(client)
    if not decision:
        return Response(status_code=429, headers={"retry-after": str(int(decision.retry_after_s) + 1)})
    response = await call_next(request)
    response.headers["ratelimit-remaining"] = str(decision.remaining)
    return response


@app.get("/")
async def hello():
    return {"hello": "world"}
