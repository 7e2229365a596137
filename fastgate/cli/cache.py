"""`fastgate cache purge | stats`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from fastgate.cli.output import print_table

__all__ = ["add_cache_commands"]


def add_cache_commands(
    main: click.Group, shared: Callable[[Any], Any], ask: Callable[..., dict[str, Any]]
) -> None:
    """Adds them to the group `cache`. shared: adds the common options. ask: calls the admin API."""
    cache = main.commands["cache"]
    assert isinstance(cache, click.Group)

    @cache.command(name="purge")
    @click.argument("urls", nargs=-1, metavar="[URL]...")
    @click.option("--tag", "tags", multiple=True, help="Responses with this tag. Repeatable.")
    @click.option("--pattern", "patterns", multiple=True, help="URLs that match this glob: '/products/*'.")
    @click.option("--prefix", "prefixes", multiple=True, help="URLs with this prefix.")
    @click.option("--key", "keys", multiple=True, help="One cache key, without other variants.")
    @click.option("--all", "everything", is_flag=True, help="Everything.")
    @shared
    def purge(
        urls: tuple[str, ...],
        tags: tuple[str, ...],
        patterns: tuple[str, ...],
        prefixes: tuple[str, ...],
        keys: tuple[str, ...],
        everything: bool,
        config: str | None,
        admin: str | None,
        as_json: bool,
    ) -> None:
        """Purge cached responses. No worker serves them when the command returns.

        \b
        fastgate cache purge https://shop.example/products/7
        fastgate cache purge --tag product-7 --pattern '/category/*'
        """
        body = {
            "url": list(urls),
            "tag": list(tags),
            "pattern": list(patterns),
            "prefix": list(prefixes),
            "key": list(keys),
            "all": everything,
        }
        if not any(body.values()):
            raise click.UsageError(
                "name a URL, --tag, --pattern, --prefix or --key, or purge everything with --all"
            )
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise click.UsageError(
                    f"expected a URL with its host, got {url!r}; a path on every host is --pattern {url!r}"
                )
        response = ask("POST", "/api/cache/purge", config, admin, {name: v for name, v in body.items() if v})
        if as_json:
            click.echo(json.dumps(response, indent=2))
            return
        click.echo("purged")
        for tier, late in (
            ("disk", "the disk tier has not applied it yet"),
            ("redis", "Redis has not confirmed it yet"),
        ):
            if response.get(tier) is False:
                click.echo(f"{late}: it is in effect on this machine, and will complete", err=True)

    @cache.command(name="stats")
    @shared
    def stats(config: str | None, admin: str | None, as_json: bool) -> None:
        """Show hits and misses by route, and statistics of the tiers."""
        response = ask("GET", "/api/cache", config, admin)
        if as_json:
            click.echo(json.dumps(response, indent=2))
            return
        rows = [{"route": name, **counts} for name, counts in response["routes"].items()]
        print_table(
            rows, ("route", "hit_ratio", "hit", "stale", "coalesced", "revalidated", "miss", "bypass")
        )
        rows = [{"tier": name, **counts} for name, counts in response["tiers"].items()]
        if rows:
            click.echo()
            print_table(
                rows, ("tier", "hit_ratio", "hit", "miss", "stored", "dropped", "evicted", "bytes", "entries")
            )
