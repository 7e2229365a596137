"""The peers as processes: fastgate, nginx, HAProxy and the upstream, each pinned to one core, watched
through /proc.

CPU time is the scheduler's own account (/proc/PID/task/*/schedstat, nanoseconds on a CPU, user and system)
of the worker processes; supervisors, masters and the controller are not in it, and neither does any of them
work while requests are served.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fastgate.state.records import StoredKey, key_digest
from fastgate.state.store import Store

__all__ = [
    "BODY",
    "GATEWAY_CORE",
    "LOAD_CORE",
    "Server",
    "absent",
    "fastgate",
    "haproxy",
    "nginx",
    "pinned",
    "upstream",
    "varnish",
    "version",
]

ROOT = Path(__file__).resolve().parents[2]
GATEWAY_CORE, LOAD_CORE = 0, 1
BODY = json.dumps(
    {"id": 123456, "name": "benchmarking1", "values": [1, 2, 3, 4, 5], "ok": 1}, separators=(",", ":")
)
assert len(BODY) == 64
START_S = 30
MANY = 1_000_000_000  # "no limit" where a peer wants a number


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """On this core, and with every descriptor it may have, is what this thread does and the processes that it
    starts. None: on any core.
    """
    cores = os.sched_getaffinity(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if core is not None:
        os.sched_setaffinity(0, {core % (os.cpu_count() or 1)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def version(program: str) -> str | None:
    """What the program says of itself, None when it is not installed."""
    path = shutil.which(program)
    if path is None:
        return None
    flag = {"h2load": "--version", "varnishd": "-V"}.get(program, "-v")
    done = subprocess.run([path, flag], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else program


def absent(peer: str) -> str | None:
    """Why this peer cannot be measured here, None if it can. The first words of its name say what it is."""
    if peer.startswith("nginx + lua") and shutil.which("nginx"):
        return None if lua_modules() else "nginx's Lua module (Debian: libnginx-mod-http-lua)"
    for name, programs in {"nginx": ["nginx"], "haproxy": ["haproxy"], "varnish": ["varnishd", "cc"]}.items():
        if peer.startswith(name):
            lacking = [program for program in programs if shutil.which(program) is None]
            return f"{' and '.join(lacking)} (not installed)" if lacking else None
    return None


def lua_modules() -> list[Path]:
    """The modules that nginx loads for Lua, where Debian, Fedora, Alpine and others put them."""
    for place in ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules"):
        found = [Path(place) / name for name in ("ndk_http_module.so", "ngx_http_lua_module.so")]
        if all(path.exists() for path in found):
            return found
    return []


class Server:
    """A running peer. `workers` are the processes that serve requests."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        port: int,
        directory: Path,
        *,
        is_forking: bool,
        is_tls: bool = False,
    ) -> None:
        self.process = process
        self.port = port
        self.directory = directory
        self.is_tls = is_tls
        self._is_forking = is_forking
        self.ready: dict[str, Any] = {}

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers now."""
        pid = self.process.pid
        if not self._is_forking:
            return [pid]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if _is_worker(int(child))]

    def cpu_ns(self) -> int:
        """Nanoseconds on a CPU, of all workers and all their threads."""
        total = 0
        for pid in self.workers:
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0])
        return total

    def private_bytes(self) -> int:
        """Memory that the first worker shares with no other process."""
        text = Path(f"/proc/{self.workers[0]}/smaps_rollup").read_text()
        return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Private_"))

    def stop(self) -> None:
        """Ends the process and what it left on disk."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def fastgate(
    config: Mapping[str, Any],
    *,
    workers: int = 1,
    core: int | None = GATEWAY_CORE,
    wait: bool = True,
    keys: Sequence[str] = (),
    is_tls: bool = False,
    under: Sequence[str] = (),
    root: Path = ROOT,
) -> Server:
    """The gateway with this config, in which {directory} is replaced by a directory of its own. `keys` are
    API keys that it knows, each of another consumer. With `is_tls` it listens in TLS. `under` is a command to
    run it with. `root` is another built checkout whose gateway is to run. Without `wait` the caller names the
    port and asks until it responds.
    """
    directory = _directory()
    own = root / ".venv" / "bin" / "python"
    python = str(own) if root != ROOT and own.exists() else sys.executable
    environ = {**os.environ, "PYTHONPATH": str(root)}
    if keys and root == ROOT:
        _store_keys(directory / "store.db", keys)
    elif keys:  # each checkout writes the store in its own form
        code = (
            "import sys; from pathlib import Path; from benchmarks.gateway import servers; "
            "servers._store_keys(Path(sys.argv[1]), sys.argv[2:])"
        )
        subprocess.run(
            [python, "-c", code, str(directory / "store.db"), *keys], cwd=root, env=environ, check=True
        )
    filled = {
        "store": {"path": "{directory}/store.db"},
        "listen": {"address": "127.0.0.1:0", "tls": _certificate(directory)} if is_tls else "127.0.0.1:0",
        "admin": {"listen": "127.0.0.1:0"},
        "workers": workers,
        "access_log": {"output": "off"},
        **config,
    }
    path = directory / "gateway.json"
    path.write_text(json.dumps(filled).replace("{directory}", str(directory)))
    ready_read, ready_write = os.pipe()
    with (directory / "log").open("wb") as log, pinned(core):
        process = subprocess.Popen(
            [
                *under,
                python,
                "-m",
                "fastgate",
                "run",
                "-c",
                str(path),
                "--ready-fd",
                str(ready_write),
            ],
            cwd=root,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[ready_write],
        )
    os.close(ready_write)
    server = Server(process, 0, directory, is_forking=True, is_tls=is_tls)
    with os.fdopen(ready_read, "rb") as pipe:
        if not wait:
            server.port = int(str(filled["listen"]).rpartition(":")[2])
            return server
        line = pipe.readline()
    if not line:
        text = (directory / "log").read_text()
        server.stop()
        raise RuntimeError(f"fastgate did not start:\n{text[-3000:]}")
    server.ready = json.loads(line)
    server.port = int(server.ready["listen"][0].rpartition(":")[2])
    return server


def _store_keys(path: Path, keys: Sequence[str]) -> None:
    store = Store(path)
    store.open()
    store.insert_keys(
        StoredKey(
            key_id=f"key{number}",
            digest=key_digest(key.encode()),
            hint=key[:6],
            consumer=f"consumer{number}",
            tier="bench",
            created_ns=time.time_ns(),
        )
        for number, key in enumerate(keys)
    )
    store.close()


def nginx(
    location: str,
    *,
    core: int = GATEWAY_CORE,
    http: str = "access_log off;",
    origin: int | None = None,
    lua: bool = False,
    more: str = "",
    is_tls: bool = False,
) -> Server:
    """nginx with one worker and this location block's inside. `origin` is the port of its upstream
    "origin", `more` stands beside the location.
    """
    directory, port = _directory(), _free_port()
    block = (
        f"upstream origin {{ server 127.0.0.1:{origin}; keepalive 128; keepalive_requests {MANY}; }}"
        if origin
        else ""
    )
    temporary = "".join(
        f"{name}_temp_path {directory}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    modules = "".join(f"load_module {path};" for path in lua_modules()) if lua else ""
    listen = f"listen 127.0.0.1:{port} backlog=4096;"
    if is_tls:  # 1.22 does not offer TLS 1.3 unless it is told to
        pair = _certificate(directory)["certificates"]
        listen = (
            f"listen 127.0.0.1:{port} ssl backlog=4096; ssl_protocols TLSv1.2 TLSv1.3; "
            f"ssl_certificate {pair['certificate']}; ssl_certificate_key {pair['key']};"
        )
    http, more = (text.replace("{directory}", str(directory)) for text in (http, more))
    (directory / "nginx.conf").write_text(f"""
        {modules}
        daemon off; worker_processes 1; pid {directory}/pid; error_log
        {directory}/error; events {{ worker_connections 15000; }}
        http {{
            {temporary} {http}
            keepalive_requests {MANY}; keepalive_timeout 600s; default_type application/json;
            {block}
            server {{ {listen} location / {{ {location} }} {more} }}
        }}
    """)
    with pinned(core):
        process = subprocess.Popen(
            ["nginx", "-p", str(directory), "-e", f"{directory}/error", "-c", f"{directory}/nginx.conf"],
            stdin=subprocess.DEVNULL,
        )
    return _accepting(Server(process, port, directory, is_forking=True, is_tls=is_tls))


def haproxy(
    rules: str, *, core: int = GATEWAY_CORE, origin: int | None = None, is_tls: bool = False
) -> Server:
    """HAProxy with one thread and these frontend rules. `origin` is the port of its default backend."""
    directory, port = _directory(), _free_port()
    backend = f"backend origin\n  http-reuse always\n  server s 127.0.0.1:{origin}\n" if origin else ""
    tls = ""
    if is_tls:  # one file holds both
        pair = _certificate(directory)["certificates"]
        whole = directory / "haproxy.pem"
        whole.write_text("".join(Path(path).read_text() for path in pair.values()))
        tls = f"ssl crt {whole}"
    (directory / "haproxy.cfg").write_text(
        f"global\n  maxconn 15000\n  no strict-limits\n  nbthread 1\n"
        f"defaults\n  mode http\n  timeout connect 5s\n  timeout client 600s\n  timeout server 60s\n"
        f"  timeout tunnel 600s\n"
        f"frontend f\n  bind 127.0.0.1:{port} backlog 4096 {tls}\n  {rules}\n"
        f"{backend}"
    )
    with pinned(core):
        process = subprocess.Popen(
            ["haproxy", "-db", "-q", "-f", str(directory / "haproxy.cfg")],
            stdin=subprocess.DEVNULL,
        )
    return _accepting(Server(process, port, directory, is_forking=False, is_tls=is_tls))


def varnish(origin: int, *, core: int = GATEWAY_CORE) -> Server:
    """Varnish in front of this port, with its cache in memory and nothing logged."""
    directory, port = _directory(), _free_port()
    (directory / "gateway.vcl").write_text(
        f'vcl 4.1;\nbackend origin {{ .host = "127.0.0.1"; .port = "{origin}"; }}\n'
    )
    with pinned(core):
        process = subprocess.Popen(
            [
                *("varnishd", "-F", "-j", "none", "-n", str(directory / "state"), "-f"),
                *(str(directory / "gateway.vcl"), "-a", f"127.0.0.1:{port}", "-s", "malloc,256m"),
                *("-p", "timeout_idle=600", "-p", "thread_pools=1", "-p", "thread_pool_min=100"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return _accepting(Server(process, port, directory, is_forking=True))


@contextlib.contextmanager
def upstream(
    location: str = f"return 200 '{BODY}';", *, more: str = "", files: Mapping[str, int] | None = None
) -> Iterator[Server]:
    """The service behind the gateways: 64 bytes of JSON, from nginx on the load generator's core. `files` are
    sizes of files that `more` may serve from {directory}.
    """
    has_nginx = shutil.which("nginx") is not None
    server = nginx(location, core=LOAD_CORE, more=more) if has_nginx else _python_upstream()
    for name, size in (files or {}).items():
        (server.directory / name).write_bytes(os.urandom(size))
    try:
        yield server
    finally:
        server.stop()


def _python_upstream() -> Server:
    directory, port = _directory(), _free_port()
    with pinned(LOAD_CORE):
        process = subprocess.Popen([sys.executable, "-m", "benchmarks.gateway.origin", str(port)], cwd=ROOT)
    return _accepting(Server(process, port, directory, is_forking=False))


def _accepting(server: Server) -> Server:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", server.port), 1).close()
            return server
        except OSError:
            if time.monotonic() > deadline or server.process.poll() is not None:
                server.stop()
                raise RuntimeError(f"{server.process.args!r} did not start") from None
            time.sleep(0.01)


def _is_worker(pid: int) -> bool:
    try:
        name = Path(f"/proc/{pid}/comm").read_text() + Path(f"/proc/{pid}/cmdline").read_text()
    except FileNotFoundError:
        return False
    return "fastgate-w" in name or "worker process" in name or "cache-main" in name


def _certificate(directory: Path) -> dict[str, dict[str, str]]:
    """The TLS settings of a listener: a key on P-256 and a certificate of its own, in this directory."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pair = {"certificate": directory / "certificate.pem", "key": directory / "key.pem"}
    pair["certificate"].write_bytes(certificate.public_bytes(Encoding.PEM))
    pair["key"].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return {"certificates": {name: str(path) for name, path in pair.items()}}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


def _directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="fastgate-bench-"))
    directory.chmod(0o755)
    return directory
