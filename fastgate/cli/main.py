"""The command line. Each command imports its modules when it runs, so that `fastgate --help` is fast.

Exit status: 0 success · 1 failure (a config with errors, a refused reload, no matching route, failed
requests) · 2 usage error (unknown option, no config found) · 3 the admin API cannot be reached. Results go to
stdout, messages and errors to stderr.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastgate import __version__
from fastgate.cli.access import add_commands
from fastgate.cli.admin_call import admin_json, admin_of, call
from fastgate.cli.config_file import (
    EXIT_NO,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    fail,
    find_config,
    first_listener,
    load_config,
    load_or_exit,
    print_errors,
)
from fastgate.cli.manual import docs

if TYPE_CHECKING:
    from fastgate.config import Config

__all__ = ["main"]

_config_option = click.option(
    "-c",
    "--config",
    "config",
    metavar="FILE",
    help=(
        "Config file (YAML, TOML or JSON). Default: $FASTGATE_CONFIG or ./gateway.yaml, .yml, .toml or .json."
    ),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", message="fastgate %(version)s")
def main() -> None:
    """fastgate: an API and AI gateway.

    New here? Run `fastgate demo`. All settings: `fastgate docs config`.
    """


@main.command()
@_config_option
@click.option(
    "--listen",
    metavar="ADDRESS",
    help="Listen address, host:port or unix:/path. Default: `listen` of the config.",
)
@click.option("--workers", metavar="N", help="Number of worker processes, or auto.")
@click.option("--admin-listen", metavar="ADDRESS", help="Address of the admin API, or off.")
@click.option(
    "--ready-fd",
    type=int,
    metavar="N",
    help="When ready, write one JSON line with the bound addresses to this file descriptor.",
)
@click.option(
    "--dev",
    is_flag=True,
    help=(
        "Development mode: reload when the config file or a plugin changes, and load plugins from the "
        "directory of the config."
    ),
)
@click.option(
    "--state",
    type=click.IntRange(0),
    metavar="VERSION",
    help=(
        "Start with this version of the State document; 0: with the file alone. Default: the newest version."
    ),
)
def run(
    config: str | None,
    listen: str | None,
    workers: str | None,
    admin_listen: str | None,
    ready_fd: int | None,
    dev: bool,
    state: int | None,
) -> None:
    """Serve traffic until SIGTERM or SIGINT. SIGHUP reloads the config, SIGUSR1 reopens log files."""
    path = find_config(config)
    given = {"listen": listen, "workers": workers, "admin.listen": admin_listen}
    overrides = {place: value for place, value in given.items() if value is not None}
    sys.exit(_serve(path, overrides, ready_fd, dev, state))


@main.command()
@click.argument("file", required=False)
@_config_option
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", help="Output format of errors."
)
@click.option("--dev", is_flag=True, help="Load plugins from the config's directory, as `run --dev` does.")
def check(file: str | None, config: str | None, form: str, dev: bool) -> None:
    """Validate a config. Exit 0 if it is valid, otherwise print every error and exit 1."""
    path = find_config(file or config)
    if dev:
        sys.path.insert(0, str(path.resolve().parent))
    loaded, errors = load_config(path)
    if form == "json":
        rows = [
            {
                "where": error.where,
                "path": error.path,
                "found": error.found,
                "expected": error.expected,
                "hint": error.hint,
            }
            for error in errors
        ]
        click.echo(json.dumps({"file": str(path), "good": not errors, "errors": rows}, indent=2))
    elif errors:
        print_errors(errors)
        click.echo(f"{path}: {_count(len(errors), 'error')}", err=True)
    elif loaded is not None:
        listen = ", ".join(listener.address for listener in loaded.listen)
        routes, upstreams = _count(len(loaded.routes), "route"), _count(len(loaded.upstreams), "upstream")
        click.echo(f"{path}: valid ({routes}, {upstreams}, listens on {listen})")
    sys.exit(EXIT_NO if errors else 0)


@main.command()
@click.argument("method", metavar="[METHOD]")
@click.argument("url", required=False)
@_config_option
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Header field of the request."
)
@click.option("--client", default="127.0.0.1", metavar="IP", help="Source address of the request.")
@click.option("--offline", is_flag=True, help="Use the config file only: no keys, counts, run-time policies.")
@click.option("--admin", metavar="ADDRESS", help="Address of the admin API, instead of the config's.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(
    method: str,
    url: str | None,
    config: str | None,
    headers: tuple[str, ...],
    client: str,
    offline: bool,
    admin: str | None,
    as_json: bool,
) -> None:
    """Show which route a request takes and why, without sending it.

    The running gateway evaluates the request with its keys, limits and policies; nothing is counted. If no
    gateway runs, or with --offline, only the config file is used.

    \b
    fastgate explain GET https://api.example.com/orders/7
    fastgate explain POST /orders -H 'Host: api.example.com'
    """
    if url is None:
        method, url = "GET", method
    fields = []
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter(f"{header!r}: expected 'Name: value'", param_hint="-H")
        fields.append((name.strip(), value.strip()))
    asked = {"method": method, "url": url, "headers": fields, "client": client}
    response = None if offline else _explained_live(asked, config, admin)
    from fastgate.cli.explain import Explanation, explain_request, print_explanation

    if response is not None:
        explanation = Explanation.of(response)
    else:
        loaded = load_or_exit(find_config(config))
        try:
            explanation = explain_request(loaded, method, url, fields, client)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="URL") from None
    if as_json:
        click.echo(json.dumps(explanation.as_dict(), indent=2))
    else:
        print_explanation(explanation)
    sys.exit(0 if explanation.route else EXIT_NO)


@main.command()
@click.option("--compact", is_flag=True, help="Print on one line.")
def schema(compact: bool) -> None:
    """Print the JSON Schema of the config file, for editors.

    \b
    fastgate schema > gateway.schema.json
    # first line of gateway.yaml, for editors with a YAML language server:
    # yaml-language-server: $schema=gateway.schema.json
    """
    from fastgate.config.load import registered
    from fastgate.config.schema import json_schema
    from fastgate.plugin import PLUGINS

    installed = {name: registered(name) for name in PLUGINS.names()}
    click.echo(json.dumps(json_schema(installed), indent=None if compact else 2, ensure_ascii=False))


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Start a gateway in front of small demo services, and print five commands to try.

    ARGUMENTS are passed to `fastgate run`, for example --listen 127.0.0.1:8000.
    """
    from fastgate.cli.demo import run as run_demo

    sys.exit(run_demo(list(arguments)))


@main.command()
@click.argument("url")
@click.option(
    "-c", "--connections", type=click.IntRange(1, 10_000), default=64, show_default=True, help="Connections."
)
@click.option(
    "-d", "--duration", default="5s", show_default=True, metavar="TIME", help="Duration, for example 10s."
)
@click.option(
    "-r",
    "--rate",
    type=click.FloatRange(0),
    default=0.0,
    metavar="N",
    help="Requests per second. Default: unlimited.",
)
@click.option("-X", "--method", default="GET", show_default=True, help="Method.")
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Header field of the requests."
)
@click.option("--data", default="", help="Body of the requests; @FILE reads it from a file.")
def bench(
    url: str, connections: int, duration: str, rate: float, method: str, headers: tuple[str, ...], data: str
) -> None:
    """Run a small load test on URL and print a latency table. Exit 1 if requests failed."""
    from rich.console import Console

    from fastgate.cli.bench import Load
    from fastgate.cli.bench import main as run_load
    from fastgate.settings import SECOND, parse_duration

    try:
        duration_s = parse_duration(duration) / SECOND
    except ValueError as error:
        raise click.BadParameter(f"{duration!r}: expected {error}", param_hint="--duration") from None
    try:
        body = Path(data[1:]).read_bytes() if data.startswith("@") else data.encode()
        load = Load(
            url=url,
            method=method.upper(),
            headers=tuple(
                (name.strip(), value.strip())
                for name, _, value in (field.partition(":") for field in headers)
            ),
            body=body,
            connections=connections,
            duration_s=duration_s,
            rate_per_s=rate,
        )
        sys.exit(run_load(load, Console()))
    except OSError as error:
        raise click.BadParameter(str(error), param_hint="--data") from None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from None


@main.command()
@_config_option
@click.option("--admin", metavar="ADDRESS", help="Address of the admin API, instead of the config's.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch one line per refresh.")
@click.option(
    "--watch",
    type=click.FloatRange(0.2, 3600),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Refresh until Ctrl-C. Default: every 2 seconds.",
)
def status(config: str | None, admin: str | None, as_json: bool, watch: float | None) -> None:
    """Show the running gateway: requests, rate, latency, workers, config version."""
    from fastgate.cli.status import show_status

    def ask() -> dict[str, Any]:
        return admin_json("GET", "/api/gateway/status", config, admin)

    with contextlib.suppress(KeyboardInterrupt):
        show_status(ask, as_json=as_json, every_s=watch)


@main.command()
@_config_option
@click.option("--admin", metavar="ADDRESS", help="Address of the admin API, instead of the config's.")
def reload(config: str | None, admin: str | None) -> None:
    """Apply the changed config file. Exit 1 if it is refused; the previous config then stays in effect."""
    response = admin_json("POST", "/api/gateway/reload", config, admin)
    errors = response.get("errors") or response.get("problems") or []
    for error in errors:
        click.echo(error.get("text", json.dumps(error)) if isinstance(error, dict) else str(error), err=True)
    if errors or response.get("error"):
        why = _count(len(errors), "error") if errors else response["error"]
        click.echo(f"not reloaded: {why}; the previous config stays in effect", err=True)
        sys.exit(EXIT_NO)
    click.echo(
        " ".join(["reloaded", *(f"{key}={value}" for key, value in response.items() if _is_short(value))])
    )


@main.group()
def cache() -> None:
    """The response cache of the running gateway."""


@cache.command(name="warm")
@click.argument("source")
@_config_option
@click.option("--to", metavar="URL", help="URL of the gateway. Default: the config's first listener.")
@click.option(
    "-n", "--connections", type=click.IntRange(1, 256), default=8, show_default=True, help="Connections."
)
@click.option(
    "-r",
    "--rate",
    type=click.FloatRange(0),
    default=0.0,
    metavar="N",
    help="Requests per second. Default: unlimited.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the N most requested.")
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Header field of the requests."
)
def warm_cache(
    source: str,
    config: str | None,
    to: str | None,
    connections: int,
    rate: float,
    limit: int | None,
    headers: tuple[str, ...],
) -> None:
    """Request the targets in SOURCE to fill the cache: a list of URLs or paths, a sitemap or an access log.

    SOURCE is a file, - for stdin, or the URL of a sitemap, which is fetched through the gateway. The most
    frequent targets of an access log are requested first. Exit 1 if requests failed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fastgate.cli.warm import Client, Outcome, SourceError, read_source, wanted_of, warm

    base = to or first_listener(config)
    fields = {name.strip(): value.strip() for name, _, value in (text.partition(":") for text in headers)}
    try:
        with contextlib.closing(Client(base, fields)) as client:
            place = wanted_of(source) if "://" in source else None
            if place is not None:
                data = client.body(place)
            else:
                data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
            wanted = read_source(data, client.body)[:limit]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--to") from None
    except (SourceError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        fail(f"cannot read {source}: {reason}", EXIT_USAGE)
    with Progress(
        TextColumn("warming"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[stored]} stored, {task.fields[failed]} failed"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task("", total=len(wanted), stored=0, failed=0)

        def report(outcome: Outcome) -> None:
            progress.update(task, completed=outcome.asked, stored=outcome.stored, failed=outcome.failed)

        outcome = warm(
            wanted, lambda: Client(base, fields), connections=connections, rate_per_s=rate, report=report
        )
    click.echo(
        f"{_count(outcome.asked, 'request')} in {outcome.elapsed_s:.1f} s: {outcome.stored} stored, "
        f"{outcome.already} stored before, {outcome.not_stored} not stored, {outcome.failed} failed"
    )
    for line in outcome.errors:
        click.echo(line, err=True)
    sys.exit(EXIT_NO if outcome.failed else 0)


@main.command()
def version() -> None:
    """Print the versions of fastgate, Python and the main dependencies."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    click.echo(f"fastgate {__version__}")
    click.echo(f"python {sys.version.split()[0]}")
    for package in ("uvloop", "httptools", "msgspec"):
        try:
            click.echo(f"{package} {version_of(package)}")
        except PackageNotFoundError:
            click.echo(f"{package} missing")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell.

    \b
    bash:  source <(fastgate completion bash)        in ~/.bashrc
    zsh:   source <(fastgate completion zsh)         in ~/.zshrc
    fish:  fastgate completion fish > ~/.config/fish/completions/fastgate.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "fastgate", "_FASTGATE_COMPLETE").source())


def _serve(path: Path, overrides: dict[str, str], ready_fd: int | None, dev: bool, state: int | None) -> int:
    from fastgate.server.launch import serve
    from fastgate.state.versions import NEWEST

    def control(orders: Any) -> None:
        from fastgate.control.process import run_controller  # with the web framework: only in this process

        run_controller(orders, _explain_live, state)

    return serve(
        path, overrides, control=control, ready_fd=ready_fd, dev=dev, state=NEWEST if state is None else state
    )


def _explained_live(
    question: dict[str, Any], config: str | None, address: str | None
) -> dict[str, Any] | None:
    """The explanation of the running gateway, or None if none runs. Exits if the gateway rejects the request,
    because an explanation from the file alone could be mistaken for the gateway's."""
    from fastgate.cli.admin_client import AdminUnreachable

    if address is None and admin_of(config).listen == "off":
        return None
    try:
        code, response = call("POST", "/api/gateway/explain", config, address, question)
    except AdminUnreachable as error:
        if address is not None:
            fail(str(error), EXIT_UNREACHABLE)
        note = "explained from the config file only, without keys, counts and run-time settings"
        click.echo(f"{error}: {note}", err=True)
        return None
    if code == 400:
        raise click.BadParameter(response.get("error", ""), param_hint="URL")
    if code != 200:
        fail(f"the admin API returned {code}: {response.get('error', '')} (see --offline)", EXIT_NO)
    return response


def _explain_live(
    config: Config, method: str, url: str, fields: list[tuple[str, str]], client: str, memory: Any
) -> dict[str, Any]:
    """Runs in a child of the controller, so that the controller need not import the data plane."""
    from fastgate.cli.explain import explain_request

    return explain_request(config, method, url, fields, client, memory).as_dict()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


add_commands(main, admin_json, _config_option)
main.add_command(docs)
