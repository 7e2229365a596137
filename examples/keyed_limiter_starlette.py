"""Limits per API key in a Starlette service, shared by its workers.

uvicorn --app-dir examples keyed_limiter_starlette:app --workers 2

FastAPI takes the same middleware: app.add_middleware(BaseHTTPMiddleware, dispatch=limit).
"""

import math
import os

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastgate import FixedWindow, KeyedLimiter, SharedMemory, SlidingWindow, TokenBucket

LIMITS = [TokenBucket(rate_per_s=10, burst=20), SlidingWindow(300, 60), FixedWindow(10_000, 86_400)]
# A file, because uvicorn spawns its workers; with fork (gunicorn) SharedMemory(size) before it needs no name.
FILE = os.environ.get("LIMITS_FILE", "/dev/shm/keyed_limiter_example")
SHARED = SharedMemory(KeyedLimiter.size(LIMITS, 100_000), FILE)
limiter = KeyedLimiter(LIMITS, capacity=100_000, shared=SHARED)


async def limit(request: Request, call_next: RequestResponseEndpoint) -> Response:
    client = request.headers.get("x-api-key") or (request.client.host if request.client else "")
    decision = limiter.take(client)
    if not decision:
        return Response(status_code=429, headers={"retry-after": str(math.ceil(decision.retry_after_s))})
    response = await call_next(request)
    response.headers["ratelimit-remaining"] = str(decision.remaining)
    return response


async def hello(request: Request) -> JSONResponse:
    return JSONResponse({"hello": "world"})


app = Starlette(routes=[Route("/", hello)], middleware=[Middleware(BaseHTTPMiddleware, dispatch=limit)])
