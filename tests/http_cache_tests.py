"""Runs the public HTTP cache test suite (npm http-cache-tests, https://cache-tests.fyi) through the gateway.

    python -m tests.http_cache_tests                       1 and 2 workers, every arrangement of tiers
    python -m tests.http_cache_tests --workers 2 --tiers all --id freshness-max-age
    python -m tests.http_cache_tests --through http://127.0.0.1:6081 --origin-port 8000     another proxy

Prints per arrangement how many of the required tests pass, and every one that does not, with why. Ends with
0 when each arrangement passes at least `--at-least`, the sets of failures are the same, and no test failed
for reasons of its own (a refused connection, a time-out); with 77, and the reason, where node, npm or the
registry are not at hand. A run takes about 25 s: the tests wait 3 s at a time, a hundred at once.

A test's requests go over one connection of its own where there is only L1, which belongs to a worker.
Elsewhere each request has a new connection, and so another worker, and comes a quarter of a second after the
one before: the disk and Redis are written behind the answer, and the suite asks again within a millisecond.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.gateway import Gateway

VERSION = "0.4.5"
REQUIRED = 157  # of the suite, without those for browsers
AT_LEAST = 145
SKIPPED = 77  # the exit status automake and meson read as "skipped"
ROUNDS_S = 600
SETTLE_MS = 250

#: Which tiers there are, by the name of the arrangement: the workers' memory, the machine's disk, Redis.
TIERS = {"l1": "memory", "l2": "disk", "l1+l2": "memory disk", "all": "memory disk redis"}

# The suite's own command line, with an agent that keeps a test on one connection, and with the kinds of tests
# in the output.
RUNNER = """
import http from 'node:http'
import fetch from 'node-fetch'
import tests from './tests/index.mjs'
import { runTests, getResults } from './client/runner.mjs'

const [base, pinned, settle, only] = process.argv.slice(2)
const agents = new Map()
function agent (url) {
  if (pinned !== 'pinned') return undefined
  const id = new URL(url).pathname.split('/')[2]
  if (!agents.has(id)) agents.set(id, new http.Agent({ keepAlive: true, maxSockets: 1 }))
  return agents.get(id)
}
const wanted = tests.map(set => ({ ...set, tests: set.tests.filter(test => !only || test.id === only) }))
const kinds = {}
for (const set of wanted) {
  for (const test of set.tests) {
    if (!test.browser_only) kinds[test.id] = test.kind || 'required'
    if (only) test.dump = true
  }
}
async function ask (url, init) {
  if (settle > 0) await new Promise(resolve => setTimeout(resolve, settle))
  return fetch(url, { ...init, agent: agent(url) })
}
runTests(wanted, ask, false, base)
  .then(() => {
    console.log('RESULTS ' + JSON.stringify({ kinds, results: getResults() }))
    process.exit(0)
  })
"""


class Skip(Exception):
    """The suite cannot run here; why."""


def fetch_suite() -> Path:
    """The unpacked package with what it imports, fetched once into the user's cache directory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    suite = cache / "fastgate" / f"http-cache-tests-{VERSION}"
    if (suite / "node_modules" / "node-fetch").is_dir():
        return suite
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise Skip(f"{program} is not installed")
    suite.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=suite.parent) as folder:
        package = Path(folder) / "package"
        try:
            _quietly("npm", "pack", f"http-cache-tests@{VERSION}", cwd=folder)
            archive = next(Path(folder).glob("*.tgz"))
            _quietly("tar", "xzf", str(archive), cwd=folder)
            # Of its dependencies the command line needs this one alone. `--no-save` and an empty package.json
            # keep npm from installing the rest.
            (package / "package.json").rename(package / "suite.json")
            (package / "package.json").write_text('{"type": "module", "private": true}')
            _quietly(
                "npm", "install", "--no-save", "--no-audit", "--no-fund", "node-fetch@2.7.0", cwd=str(package)
            )
        except (subprocess.SubprocessError, StopIteration) as error:
            raise Skip(f"the npm registry gave nothing: {error}") from None
        shutil.rmtree(suite, ignore_errors=True)
        package.rename(suite)
    return suite


def _quietly(*command: str, cwd: str) -> None:
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=180)
    except subprocess.CalledProcessError as error:
        raise subprocess.SubprocessError(error.stderr.strip().splitlines()[-1:] or error) from None


@contextlib.contextmanager
def origin(suite: Path, port: int) -> Iterator[int]:
    """The suite's own server; its port."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+b") as log:
        environ = {
            **os.environ,
            "npm_config_protocol": "http",
            "npm_config_port": str(port),
            "npm_config_pidfile": f"{folder}/pid",
        }
        process = subprocess.Popen(
            ["node", "server/server.mjs"], cwd=suite, env=environ, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + 60
            while not (found := re.search(rb"http://.*:(\d+)/", (Path(folder) / "log").read_bytes())):
                if process.poll() is not None or time.monotonic() > deadline:
                    text = (Path(folder) / "log").read_text(errors="replace")
                    raise Skip(f"the suite's server did not start: {text}")
                time.sleep(0.05)
            yield int(found[1])
        finally:
            process.terminate()
            process.wait()


def run_suite(
    suite: Path, base: str, *, pinned: bool = False, settle_ms: int = 0, only: str = ""
) -> tuple[dict[str, str], dict[str, Any]]:
    """The kind of each test, and its result: true, or [kind of failure, why]."""
    runner = suite / "run.mjs"
    runner.write_text(RUNNER)
    done = subprocess.run(
        ["node", "--no-warnings", str(runner), base, "pinned" if pinned else "", str(settle_ms), only],
        cwd=suite,
        stdout=subprocess.PIPE,
        text=True,
        timeout=ROUNDS_S,
        check=True,
    )
    *shown, last = done.stdout.rstrip("\n").split("\n")
    if only:
        print("\n".join(shown))
    found = json.loads(last.removeprefix("RESULTS "))
    return found["kinds"], found["results"]


@contextlib.contextmanager
def redis(wanted: bool) -> Iterator[str]:
    """A Redis of our own, on a socket in a temporary directory; its URL. Nothing when it is not wanted."""
    if not wanted:
        yield ""
        return
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise Skip("redis-server is not installed")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/redis.sock"
        arguments = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", folder]
        process = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while not os.path.exists(path):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Skip("redis-server did not start")
                time.sleep(0.05)
            yield f"unix://{path}"
        finally:
            process.terminate()
            process.wait()


def gateway_config(port: int, tiers: str, folder: str, redis_url: str) -> dict[str, Any]:
    """A route as the suite expects a cache to be: what HTTP allows is cached, with the cookies too."""
    store: dict[str, Any] = {"memory": {"size": "64MB" if "memory" in TIERS[tiers] else "0"}}
    if "disk" in TIERS[tiers]:
        store["disk"] = {"path": f"{folder}/cache", "size": "64MiB"}
    if redis_url:
        store["redis"] = {"url": redis_url}
    return {
        "cache_store": store,
        "routes": [
            {
                "path": "/*",
                "upstream": f"http://127.0.0.1:{port}",
                "cache": {"set_cookie": "store", "share_private": True},
            }
        ],
    }


def failed(kinds: dict[str, str], results: dict[str, Any], kind: str) -> dict[str, str]:
    return {
        name: ": ".join(map(str, results[name])) if name in results else "not run"
        for name, of in kinds.items()
        if of == kind and results.get(name) is not True
    }


def report(name: str, kinds: dict[str, str], results: dict[str, Any], every: bool) -> tuple[int, list[str]]:
    """Prints an arrangement's score; the passed required tests, and the failures of the harness."""
    counts = {kind: sum(of == kind for of in kinds.values()) for kind in ("required", "optimal", "check")}
    missed = {kind: failed(kinds, results, kind) for kind in counts}
    harness = [
        test
        for test, result in results.items()
        if result is not True and (result[0] not in ("Assertion", "Setup") or result[1] == "retry")
    ]
    passed = counts["required"] - len(missed["required"])
    print(
        f"{name}: required {passed}/{counts['required']}, "
        f"optimal {counts['optimal'] - len(missed['optimal'])}/{counts['optimal']}, "
        f"checks answered yes {counts['check'] - len(missed['check'])}/{counts['check']}, "
        f"harness failures {len(harness)}"
    )
    for kind in ("required", "optimal", "check") if every else ("required",):
        for test, why in missed[kind].items():
            print(f"  {kind:9} {test:52} {why}")
    for test in harness:
        print(f"  harness   {test:52} {': '.join(map(str, results[test]))}")
    return passed, harness


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", default="1,2", help="numbers of workers, with commas")
    parser.add_argument("--tiers", default=",".join(TIERS), help=f"arrangements: {', '.join(TIERS)}")
    parser.add_argument("--id", default="", help="one test, with its messages")
    parser.add_argument("--at-least", type=int, default=AT_LEAST, help="required tests that must pass")
    parser.add_argument("--every", action="store_true", help="name the optional tests that fail, too")
    parser.add_argument("--through", default="", help="a proxy that runs already, in place of the gateway")
    parser.add_argument("--origin-port", type=int, default=0, help="where the suite's server listens")
    arguments = parser.parse_args()
    try:
        suite = fetch_suite()
        with origin(suite, arguments.origin_port) as port:
            return run_all(arguments, suite, port)
    except Skip as why:
        print(f"skipped: {why}")
        return SKIPPED


def run_all(arguments: argparse.Namespace, suite: Path, port: int) -> int:
    if arguments.through:
        kinds, results = run_suite(suite, arguments.through, only=arguments.id)
        passed, harness = report(arguments.through, kinds, results, arguments.every)
        return 0 if passed >= min(arguments.at_least, len(kinds)) and not harness else 1
    good = True
    missed: dict[str, set[str]] = {}
    for tiers in arguments.tiers.split(","):
        for workers in map(int, arguments.workers.split(",")):
            name = f"{tiers}, {workers} worker{'s' if workers > 1 else ''}"
            with (
                tempfile.TemporaryDirectory() as folder,
                redis("redis" in TIERS[tiers]) as redis_url,
                # Redis connections come and go.
                Gateway(
                    gateway_config(port, tiers, folder, redis_url), workers=workers, check_descriptors=False
                ) as gateway,
            ):
                base = f"http://127.0.0.1:{gateway.port}"
                alone = tiers == "l1"
                kinds, results = run_suite(
                    suite, base, pinned=alone, settle_ms=0 if alone else SETTLE_MS, only=arguments.id
                )
            passed, harness = report(name, kinds, results, arguments.every)
            missed[name] = set(failed(kinds, results, "required"))
            enough = 1 if arguments.id else arguments.at_least
            good = good and passed >= enough and not harness
    first = next(iter(missed.values()))
    for name, tests in missed.items():
        if tests != first:
            print(f"{name}: not the same failures: {', '.join(sorted(tests ^ first))}")
            good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
