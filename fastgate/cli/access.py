"""`fastgate keys | consumers | limits | secrets | cache`: the admin API's resources on the command line.

Results for scripts (a new key) go to stdout, messages about them to stderr.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import click

from fastgate.cli.cache import add_cache_commands
from fastgate.cli.output import print_fields, print_table

__all__ = ["AdminCall", "add_commands"]

PAGE = 1000


class AdminCall(Protocol):
    """Calls the admin API of the running gateway and returns its JSON. Exits if it cannot be reached."""

    def __call__(
        self, method: str, target: str, config: str | None, address: str | None, body: Any = None
    ) -> dict[str, Any]: ...


def add_commands(main: click.Group, admin: AdminCall, config_option: Callable[[Any], Any]) -> None:
    """Adds the groups to the command line."""

    def shared(command: Any) -> Any:
        """The options of every command here."""
        command = click.option("--json", "as_json", is_flag=True, help="Print JSON, with all details.")(
            command
        )
        command = click.option(
            "--admin", metavar="ADDRESS", help="Address of the admin API, instead of the config's."
        )(command)
        return config_option(command)

    def ask(
        method: str, path: str, config: str | None, address: str | None, body: Any = None, **query: Any
    ) -> dict[str, Any]:
        given = {name: value for name, value in query.items() if value is not None}
        target = f"{path}?{urlencode(given)}" if given else path
        response = admin(method, target, config, address, body)
        if "error" in response:
            where = f" (at {response['path']})" if str(response.get("path", "")).startswith("$") else ""
            click.echo(f"fastgate: {response['error']}{where}", err=True)
            sys.exit(1)
        return response

    _add_passwords(main)
    _add_keys(main, shared, ask)
    _add_consumers(main, shared, ask)
    _add_limits(main, shared, ask)
    _add_secrets(main, shared, ask)
    add_cache_commands(main, shared, ask)


Shared = Callable[[Any], Any]
Ask = Callable[..., dict[str, Any]]


def _add_passwords(main: click.Group) -> None:
    @main.command(name="hash-password")
    def hash_password() -> None:
        """Print the hash of a password, for `basic`.

        Prompts for the password, or reads it from stdin.
        """
        from fastgate.auth.passwords import hash_password as made

        if sys.stdin.isatty():
            password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        else:
            password = sys.stdin.readline().rstrip("\n")
        if not password:
            raise click.UsageError("an empty password")
        click.echo(made(password))


def _add_keys(main: click.Group, shared: Shared, ask: Ask) -> None:
    @main.group()
    def keys() -> None:
        """API keys of the running gateway."""

    @keys.command()
    @click.argument("consumer")
    @click.option("--name", help="Descriptive name.")
    @click.option("--tier", help="Tier of this key, instead of the consumer's.")
    @click.option("--scope", "scopes", multiple=True, help="Scope, instead of the consumer's. Repeatable.")
    @click.option("--role", "roles", multiple=True, help="Role, in addition to the consumer's. Repeatable.")
    @click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="Metadata. Repeatable.")
    @click.option(
        "--limit", "limits", multiple=True, metavar="NAME=N", help="Limit: per_minute=60. Repeatable."
    )
    @click.option("--expires-in", metavar="TIME", help="Lifetime: 90d.")
    @click.option("--expires-at", metavar="TIME", help="Expiry: 2027-01-31T12:00:00Z.")
    @shared
    def create(
        consumer: str,
        name: str | None,
        tier: str | None,
        scopes: tuple[str, ...],
        roles: tuple[str, ...],
        metadata: tuple[str, ...],
        limits: tuple[str, ...],
        expires_in: str | None,
        expires_at: str | None,
        config: str | None,
        admin: str | None,
        as_json: bool,
    ) -> None:
        """Create a key for CONSUMER and print it. It cannot be shown again: only its hash is stored.

        \b
        KEY=$(fastgate keys create acme --scope orders:read --expires-in 90d)
        curl -H "X-API-Key: $KEY" http://127.0.0.1:8080/
        """
        body = {
            "consumer": consumer,
            "name": name,
            "tier": tier,
            "scopes": list(scopes),
            "roles": list(roles),
            "metadata": _pairs(metadata),
            "limits": _amounts(limits) or None,
            "expires_in": expires_in,
            "expires_at": expires_at,
        }
        given = {field: value for field, value in body.items() if value not in (None, [], {})}
        _tell_key(ask("POST", "/api/keys", config, admin, given), as_json)

    @keys.command(name="list")
    @click.option("--consumer", help="Only keys of this consumer.")
    @click.option("--state", type=click.Choice(["active", "rotating", "pending", "expired", "revoked"]))
    @shared
    def list_keys(
        consumer: str | None, state: str | None, config: str | None, admin: str | None, as_json: bool
    ) -> None:
        """List keys, oldest first. The secret keys themselves are not stored."""
        rows: list[dict[str, Any]] = []
        after = None
        while True:
            page = ask(
                "GET", "/api/keys", config, admin, consumer=consumer, state=state, after=after, limit=PAGE
            )
            rows += page["keys"]
            after = page["next"]
            if after is None:
                break
        if as_json:
            click.echo(json.dumps(rows, indent=2))
        else:
            for row in rows:
                if row.get("pending_write"):
                    row["state"] += " (not stored yet)"
            print_table(
                rows, ("key_id", "name", "hint", "consumer", "state", "tier", "expires", "used", "last_used")
            )

    @keys.command()
    @click.argument("key_id")
    @shared
    def show(key_id: str, config: str | None, admin: str | None, as_json: bool) -> None:
        """Show the properties and the usage of a key."""
        print_fields(ask("GET", f"/api/keys/{quote(key_id, safe='')}", config, admin), as_json)

    @keys.command()
    @click.argument("key_id")
    @click.option("--overlap", metavar="TIME", help="Time for which the old key remains valid. Default: 24h.")
    @shared
    def rotate(
        key_id: str, overlap: str | None, config: str | None, admin: str | None, as_json: bool
    ) -> None:
        """Replace KEY_ID by a new key and print it. The old key remains valid for a while."""
        body = {} if overlap is None else {"overlap": overlap}
        response = ask("POST", f"/api/keys/{quote(key_id, safe='')}/rotate", config, admin, body)
        _tell_key(response, as_json)
        if not as_json:
            click.echo(f"{key_id} is valid until {response['old']['expires']}", err=True)

    @keys.command()
    @click.argument("key_ids", nargs=-1, required=True, metavar="KEY_ID...")
    @shared
    def revoke(key_ids: tuple[str, ...], config: str | None, admin: str | None, as_json: bool) -> None:
        """Revoke keys. They are rejected on every worker when the command returns."""
        rows = [ask("DELETE", f"/api/keys/{quote(key_id, safe='')}", config, admin) for key_id in key_ids]
        if as_json:
            click.echo(json.dumps(rows, indent=2))
            return
        for row in rows:
            click.echo(f"revoked {row['key_id']} of {row['consumer']}")


def _add_consumers(main: click.Group, shared: Shared, ask: Ask) -> None:
    @main.group()
    def consumers() -> None:
        """Consumers: the owners of keys and tokens."""

    def properties(command: Any) -> Any:
        for option in (
            click.option("--tier", help="Tier, which sets the limits."),
            click.option("--scope", "scopes", multiple=True, help="Scope. Repeatable."),
            click.option("--role", "roles", multiple=True, help="Role. Repeatable."),
            click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="Metadata. Repeatable."),
            click.option(
                "--limit",
                "limits",
                multiple=True,
                metavar="NAME=N",
                help="As per_minute=600. Repeatable.",
            ),
            click.option("--disabled/--enabled", default=None, help="Reject or accept requests of it."),
        ):
            command = option(command)
        return command

    def body_of(
        tier: str | None,
        scopes: tuple[str, ...],
        roles: tuple[str, ...],
        metadata: tuple[str, ...],
        limits: tuple[str, ...],
        disabled: bool | None,
    ) -> dict[str, Any]:
        body = {
            "tier": tier,
            "scopes": list(scopes) or None,
            "roles": list(roles) or None,
            "metadata": _pairs(metadata) or None,
            "limits": _amounts(limits) or None,
            "disabled": disabled,
        }
        return {field: value for field, value in body.items() if value is not None}

    @consumers.command()
    @click.argument("name")
    @properties
    @shared
    def create(name: str, config: str | None, admin: str | None, as_json: bool, **given: Any) -> None:
        """Create a consumer."""
        print_fields(
            ask("POST", "/api/consumers", config, admin, {"name": name, **body_of(**given)}), as_json
        )

    @consumers.command(name="set")
    @click.argument("name")
    @properties
    @shared
    def change(name: str, config: str | None, admin: str | None, as_json: bool, **given: Any) -> None:
        """Change the given properties. They are in effect on every worker when the command returns."""
        print_fields(ask("PATCH", f"/api/consumers/{quote(name)}", config, admin, body_of(**given)), as_json)

    @consumers.command(name="list")
    @shared
    def list_consumers(config: str | None, admin: str | None, as_json: bool) -> None:
        """List the consumers of the config file and those created at run time."""
        rows: list[dict[str, Any]] = []
        after = None
        while True:
            page = ask("GET", "/api/consumers", config, admin, after=after, limit=PAGE)
            rows += page["consumers"]
            after = page["next"]
            if after is None:
                break
        if as_json:
            click.echo(json.dumps(rows, indent=2))
        else:
            print_table(rows, ("name", "tier", "source", "disabled", "keys", "scopes", "roles"))

    @consumers.command()
    @click.argument("name")
    @shared
    def show(name: str, config: str | None, admin: str | None, as_json: bool) -> None:
        """Show the properties of a consumer in effect."""
        print_fields(ask("GET", f"/api/consumers/{quote(name)}", config, admin), as_json)

    @consumers.command()
    @click.argument("name")
    @click.option("--revoke-keys", is_flag=True, help="Revoke its keys too. Without this it must have none.")
    @shared
    def remove(name: str, revoke_keys: bool, config: str | None, admin: str | None, as_json: bool) -> None:
        """Remove a consumer that was created at run time."""
        response = ask(
            "DELETE",
            f"/api/consumers/{quote(name)}",
            config,
            admin,
            **({"keys": "revoke"} if revoke_keys else {}),
        )
        told = f"removed {response['removed']}"
        if response.get("source") == "config":
            told = f"{response['removed']} has the values of the config again"
        click.echo(json.dumps(response, indent=2) if as_json else told)


def _add_limits(main: click.Group, shared: Shared, ask: Ask) -> None:
    @main.group()
    def limits() -> None:
        """Limits of one client: a consumer, a key or an address."""

    def client(command: Any) -> Any:
        """`command` for one client: a consumer by its bare name or with --consumer, a key or an address."""

        @functools.wraps(command)
        def checked(name: str | None, **given: Any) -> None:
            named = [name, given["consumer"], given["key"], given["ip"]]
            if sum(one is not None for one in named) != 1:
                raise click.UsageError("name one client: CONSUMER, --key KEY_ID or --ip ADDRESS")
            given["consumer"] = given["consumer"] if name is None else name
            command(**given)

        for option in (
            click.option("--ip", help="Its address."),
            click.option("--key", help="Its key id."),
            click.option("--consumer", help="Its name; the same as CONSUMER."),
            click.argument("name", required=False, metavar="[CONSUMER]"),
        ):
            checked = option(checked)
        return checked

    @limits.command()
    @client
    @shared
    def show(
        consumer: str | None,
        key: str | None,
        ip: str | None,
        config: str | None,
        admin: str | None,
        as_json: bool,
    ) -> None:
        """Show the limits of a client, the remaining amounts and its usage."""
        response = ask("GET", "/api/limits", config, admin, consumer=consumer, key=key, ip=ip)
        if as_json:
            click.echo(json.dumps(response, indent=2))
            return
        print_fields({field: value for field, value in response.items() if field != "rules"}, False)
        rows = [
            {
                "rule": f"{rule['rule']} {rule['route']}".strip(),
                "limit": limit["limit_type"],
                "allowed": limit["limit"],
                "left": limit["remaining"],
                "new_in_s": round(limit["reset_s"], 1),
                "requests": rule["requests"],
                "cost": rule["cost"],
            }
            for rule in response["rules"]
            for limit in rule["limits"]
        ]
        if rows:
            print_table(rows, ("rule", "limit", "allowed", "left", "new_in_s", "requests", "cost"))
        else:
            click.echo("no limits apply: none by route, tier or client")

    @limits.command()
    @client
    @shared
    def reset(
        consumer: str | None,
        key: str | None,
        ip: str | None,
        config: str | None,
        admin: str | None,
        as_json: bool,
    ) -> None:
        """Reset the usage of a client to zero."""
        response = ask("POST", "/api/limits/reset", config, admin, consumer=consumer, key=key, ip=ip)
        count = response["reset"]
        click.echo(
            json.dumps(response, indent=2) if as_json else f"reset {count} rule{'' if count == 1 else 's'}"
        )

    @limits.command(name="set")
    @click.argument("consumer")
    @click.argument("amounts", nargs=-1, metavar="NAME=N...")
    @shared
    def change(
        consumer: str, amounts: tuple[str, ...], config: str | None, admin: str | None, as_json: bool
    ) -> None:
        """Override single limits of the tier for CONSUMER. Without NAME=N, remove the overrides.

        \b
        fastgate limits set acme per_minute=600 burst=50
        fastgate limits set acme per_day=none          # no limit per day
        """
        if amounts:
            response = ask("PUT", "/api/limits", config, admin, _amounts(amounts), consumer=consumer)
        else:
            response = ask("DELETE", "/api/limits", config, admin, consumer=consumer)
        print_fields(
            {field: value for field, value in response.items() if as_json or field != "rules"}, as_json
        )

    @limits.command()
    @client
    @click.option(
        "--for", "span", default="1h", show_default=True, metavar="TIME", help="Duration of the ban."
    )
    @shared
    def ban(
        consumer: str | None,
        key: str | None,
        ip: str | None,
        span: str,
        config: str | None,
        admin: str | None,
        as_json: bool,
    ) -> None:
        """Ban a client on every route whose `penalty` uses the same key."""
        response = ask(
            "POST", "/api/limits/ban", config, admin, {"for": span}, consumer=consumer, key=key, ip=ip
        )
        print_fields(response, as_json)

    @limits.command()
    @client
    @shared
    def pardon(
        consumer: str | None,
        key: str | None,
        ip: str | None,
        config: str | None,
        admin: str | None,
        as_json: bool,
    ) -> None:
        """Lift the ban of a client."""
        print_fields(
            ask("POST", "/api/limits/pardon", config, admin, consumer=consumer, key=key, ip=ip), as_json
        )


def _add_secrets(main: click.Group, shared: Shared, ask: Ask) -> None:
    @main.group()
    def secrets() -> None:
        """Encrypted secrets in the store, for upstream credentials."""

    @secrets.command(name="set")
    @click.argument("name")
    @shared
    def put(name: str, config: str | None, admin: str | None, as_json: bool) -> None:
        """Store a secret, read from stdin so that it appears in no shell history or process list.

        \b
        fastgate secrets set openai < key.txt
        """
        if sys.stdin.isatty():
            value = click.prompt(name, hide_input=True)
        else:
            value = sys.stdin.read().removesuffix("\n")
        print_fields(ask("PUT", f"/api/secrets/{quote(name)}", config, admin, {"value": value}), as_json)

    @secrets.command(name="list")
    @shared
    def list_secrets(config: str | None, admin: str | None, as_json: bool) -> None:
        """List the names of the secrets. The values cannot be read."""
        rows = ask("GET", "/api/secrets", config, admin)["secrets"]
        if as_json:
            click.echo(json.dumps(rows, indent=2))
        else:
            print_table(rows, ("name", "value", "created", "updated"))

    @secrets.command()
    @click.argument("name")
    @shared
    def remove(name: str, config: str | None, admin: str | None, as_json: bool) -> None:
        """Remove a secret."""
        response = ask("DELETE", f"/api/secrets/{quote(name)}", config, admin)
        click.echo(json.dumps(response, indent=2) if as_json else f"removed {response['removed']}")


def _pairs(given: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r}: expected NAME=VALUE")
        pairs[name] = value
    return pairs


def _amounts(given: tuple[str, ...]) -> dict[str, float | None]:
    """Limits by name; `none` removes one."""
    amounts: dict[str, float | None] = {}
    for name, text in _pairs(given).items():
        if text in ("none", "null"):
            amounts[name] = None
            continue
        try:
            amounts[name] = int(text)
        except ValueError:
            try:
                amounts[name] = float(text)
            except ValueError:
                raise click.BadParameter(f"{name}={text}: expected a number or none") from None
    return amounts


def _tell_key(response: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(response, indent=2))
        return
    click.echo(f"{response['key_id']} of {response['consumer']}; the key cannot be shown again:", err=True)
    click.echo(response["api_key"])
