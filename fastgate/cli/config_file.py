"""The config file that a command is about: finding it, loading it, and exiting with its errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

if TYPE_CHECKING:
    from fastgate.config import Config
    from fastgate.settings import ConfigError

__all__ = [
    "DEFAULT_FILES",
    "EXIT_NO",
    "EXIT_UNREACHABLE",
    "EXIT_USAGE",
    "fail",
    "find_config",
    "first_listener",
    "load_config",
    "load_or_exit",
    "print_errors",
]

EXIT_NO: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
DEFAULT_FILES: Final = ("gateway.yaml", "gateway.yml", "gateway.toml", "gateway.json")


def find_config(given: str | None, environ: Mapping[str, str] | None = None) -> Path:
    """The config file: the one given, $FASTGATE_CONFIG, or ./gateway.*. Exits with instructions if there is
    none.
    """
    environ = os.environ if environ is None else environ
    if given:
        return Path(given)
    if environ.get("FASTGATE_CONFIG"):
        return Path(environ["FASTGATE_CONFIG"])
    found = [Path(name) for name in DEFAULT_FILES if Path(name).exists()]
    if len(found) == 1:
        return found[0]
    if found:
        fail(
            f"more than one config here: {', '.join(map(str, found))}. Select one: -c {found[0]}", EXIT_USAGE
        )
    return fail(
        "no config found (looked for $FASTGATE_CONFIG and ./gateway.yaml, .yml, .toml, .json).\n\n"
        "  fastgate demo               starts a gateway with demo services and prints commands to try\n"
        "  fastgate run -c FILE        starts a gateway with your config; a minimal config:\n\n"
        "      routes:\n"
        "        - path: /*\n"
        "          upstream: http://127.0.0.1:9000",
        EXIT_USAGE,
    )


def first_listener(config: str | None) -> str:
    """The URL of the config's first listener, as reached from this host."""
    listener = load_or_exit(find_config(config)).listen[0]
    address = listener.endpoint()
    if address.unix_path or not address.port:
        fail(f"the first listener is {address}; specify the URL with --to", EXIT_USAGE)
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return f"{'https' if listener.tls else 'http'}://{address._replace(host=host)}"


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"fastgate: {message}", err=True)
    sys.exit(code)


def load_config(path: Path) -> tuple[Config | None, list[ConfigError]]:
    from fastgate.config import InvalidConfig, load

    try:
        return load(path), []
    except InvalidConfig as problem:
        return None, list(problem.errors)


def load_or_exit(path: Path) -> Config:
    loaded, errors = load_config(path)
    if loaded is None:
        print_errors(errors)
        raise SystemExit(EXIT_NO)
    return loaded


def print_errors(errors: list[ConfigError]) -> None:
    for error in errors:
        where = click.style(f"{error.where}: ", dim=True) if error.where else ""
        path, _, rest = str(error).removeprefix(f"{error.where}: ").partition(": ")
        click.echo(f"{where}{click.style(path, bold=True)}: {rest}", err=True)
