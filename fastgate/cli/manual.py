"""`fastgate docs`: the pages of the manual, in the installed package or in docs/ of the source tree."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["docs"]


@click.command()
@click.argument("page", required=False)
def docs(page: str | None) -> None:
    """Print PAGE of the manual, or the list of its pages.

    \b
    fastgate docs
    fastgate docs auth/jwt | less
    """
    pages = _manual()
    if not pages:
        raise click.ClickException("the manual is not installed; `fastgate schema` describes every setting")
    if page is None:
        for name, path in pages.items():
            click.echo(f"{name:<24}{path.read_text(encoding='utf-8').partition(chr(10))[0].lstrip('# ')}")
        return
    name = page.removeprefix("docs/").removesuffix(".md")
    if name not in pages:
        raise click.UsageError(f"there is no page {page!r}; `fastgate docs` lists the pages")
    click.echo(pages[name].read_text(encoding="utf-8"), nl=False)


def _manual() -> dict[str, Path]:
    """The pages by name; empty if there are none."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "pages", package.parent / "docs"):
        if (folder / "cli.md").is_file():
            return {str(path.relative_to(folder))[:-3]: path for path in sorted(folder.rglob("*.md"))}
    return {}
