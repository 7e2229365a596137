"""Golden cases: one behaviour per file, `<feature>/<behaviour>.case`, in sections that begin with `== `.

    # One sentence that says what is promised.
    == config               gateway.yaml; `== config toml` and `== config json` for the others; ${UPSTREAM} is
    the upstream's URL == environ              NAME=value lines == errors               every error of the
    config, exactly, in order == explain GET URL      (and `Name: value` arguments after |) what `fastgate
    explain` prints, the lines that must be there == upstream             the upstream's answer from here on:
    status line, fields, blank line, body == request              a request through a real gateway == upstream
    receives    what the upstream must get: request line, fields, `!Name` for a field that must not be there,
    body == answer               what the client must get, in the same notation

Lines of a head that are listed must be there; others may be. A body is compared when there is a blank line
before it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.strict import Message

__all__ = ["Case", "Section", "expect_head", "read_case"]

KINDS = ("config", "environ", "errors", "explain", "upstream", "request", "upstream receives", "answer")


class Section(NamedTuple):
    """One section of a case: its kind, what stands after it on the line, and its text."""

    kind: str
    argument: str
    text: str
    line: int


class Case(NamedTuple):
    """One file."""

    promise: str
    sections: list[Section]

    def text(self, kind: str) -> str | None:
        """The text of the only section of this kind, None without one."""
        return next((section.text for section in self.sections if section.kind == kind), None)

    @property
    def form(self) -> str:
        return next(section.argument or "yaml" for section in self.sections if section.kind == "config")

    @property
    def environ(self) -> dict[str, str]:
        lines = (self.text("environ") or "").splitlines()
        return dict(line.split("=", 1) for line in lines if line.strip())

    @property
    def needs_gateway(self) -> bool:
        return any(section.kind == "request" for section in self.sections)


def read_case(path: Path) -> Case:
    """The case in a file. AssertionError when a section has no known name."""
    head, *parts = re.split(r"^== ", path.read_text(), flags=re.M)
    sections = []
    line = head.count("\n") + 1
    for part in parts:
        title, _, text = part.partition("\n")
        kind = max((known for known in KINDS if title.startswith(known)), key=len, default="")
        assert kind, f"{path.name}:{line}: unknown section {title!r}"
        sections.append(Section(kind, title[len(kind) :].strip(), text.rstrip("\n") + "\n", line))
        line += part.count("\n")
    assert head.startswith("# "), f"{path.name}: begins with the promise, as a comment"
    return Case(head.removeprefix("# ").strip(), sections)


def expect_head(section: Section, message: Message, start_line: str) -> None:
    """Asserts that a message is what the section says."""
    head, blank, body = section.text.partition("\n\n")
    first, *lines = head.rstrip("\n").split("\n")
    if first.startswith("HTTP/"):  # the phrase is the Python version's
        first = " ".join(first.split()[:2])
    assert start_line == first, f"line {section.line}: {start_line!r}, expected {first!r}"
    for line in lines:
        if line.startswith("!"):
            assert not message.values(line[1:]), (
                f"line {section.line}: {line[1:]} is {message.values(line[1:])}"
            )
            continue
        name, _, value = line.partition(":")
        found = [item.decode("latin-1") for item in message.values(name)]
        assert value.strip() in found, f"line {section.line}: {name} is {found}, expected {value.strip()!r}"
    if blank:
        assert message.body.decode() == body.rstrip("\n"), f"line {section.line}: the body"
