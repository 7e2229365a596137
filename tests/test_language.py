"""The manual, config descriptions, CLI help, REASONS, docstrings and comments use standard technical English.

A finding names the file, the line, the words found and the words to use instead. Code blocks, code spans and
link targets are not checked, and neither are docs/config.md and docs/plugin-reference.md, which are generated
from texts that are checked.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fastgate.errors import REASONS

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"docs/config.md", "docs/plugin-reference.md"}
PAGES = [
    path
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    if str(path.relative_to(ROOT)) not in GENERATED
]

#: Modules whose docstrings and comments are checked: all of them.
SOURCES = [
    path
    for path in sorted((ROOT / "fastgate").rglob("*.p[yx]*"))
    if path.suffix in (".py", ".pyi", ".pyx", ".pxd")
]

#: Pattern, and what to write instead. Matched without regard to case.
REFUSED = {
    r"answer(s|ed|ing)?": "response, respond, return",
    r"nobody|anybody|somebody|everybody": "no client, any client, every client",
    r"who(so)?ever": "a client that, any peer that",
    r"who (asks?|comes?|guesses|runs)": "the client, clients that",
    r"anew": "again, reopen",
    r"besides?": "in addition to, compared with",
    r"dear(er|est|ly)?": "expensive",
    r"under way": "in flight, in progress",
    r"by itself|of its own accord": "automatically",
    r"as many as go": "unlimited",
    r"what becomes? of": "what to do with",
    r"stands? for": "means, represents",
    r"sa(ys|id|y) no": "rejects",
    r"in force": "in effect",
    r"look-ups?": "lookup",
    r"made-up": "invented",
    r"at one go": "in a burst, at once",
    r"one door": "an API gateway",
    r"surroundings|keeper|desk|crew|seats?|rig": "the standard word (STYLE §4)",
}
WORDS = re.compile(rf"\b({'|'.join(REFUSED)})\b", re.I)
#: A sentence that hides its subject in a question word: "What is kept is …", "Who comes is …".
RIDDLE = re.compile(r"(?:^|[.;:|] |\* )((?:Who|Whose|Whom|What(?! to\b))\b[^.?;|]*)(?=$|[.;|])")
QUESTION = re.compile(r"^(#+ .*\?|#+ (?:Who|Whose|What|How|Where|When|Why|May)\b.*)$")


class Line(NamedTuple):
    place: str  # file:line
    text: str


def advice(words: str) -> str:
    return next(instead for pattern, instead in REFUSED.items() if re.fullmatch(pattern, words, re.I))


def prose_in(text: str) -> str:
    """The text without code spans and addresses."""
    return re.sub(r"\]\([^)]*\)|https?://\S+", "]", re.sub(r"``.*?``|`[^`]*`", "`code`", text))


def refused_words(lines: Iterable[Line]) -> list[str]:
    return [
        f"{place}: {words[0]!r}: write {advice(words[0])!r}"
        for place, text in lines
        for words in WORDS.finditer(prose_in(text))
    ]


def findings(lines: Iterable[Line]) -> list[str]:
    lines = list(lines)
    found = refused_words(lines)
    for place, text in lines:
        prose = prose_in(text)
        found += [f"{place}: {hit[1]!r}: name the subject" for hit in RIDDLE.finditer(prose)]
        found += [f"{place}: {hit[0]!r}: a heading is a noun phrase" for hit in QUESTION.finditer(prose)]
    return found


def lines_of_page(path: Path) -> Iterator[Line]:
    code = False
    for number, text in enumerate(path.read_text().splitlines(), 1):
        if text.lstrip().startswith("```"):
            code = not code
        elif not code:
            yield Line(f"{path.relative_to(ROOT)}:{number}", text)


def texts_of(node: ast.expr, constants: dict[str, ast.expr]) -> Iterator[tuple[int, str]]:
    """Line and text of the strings of an argument, given in place or as a constant of the module."""
    if isinstance(node, ast.Name) and node.id in constants:
        node = constants[node.id]
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.lineno, " ".join(each.value.split())


def lines_of_module(path: Path) -> Iterator[Line]:
    """Arguments `description=` and `help=`, docstrings of config Structs and of commands."""
    tree = ast.parse(path.read_text())
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    name = path.relative_to(ROOT)
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("description", "help"):
            for line, text in texts_of(node.value, constants):
                yield Line(f"{name}:{line}", text)
        elif is_struct(node) or is_command(node):
            assert isinstance(node, ast.ClassDef | ast.FunctionDef)
            for number, text in enumerate((ast.get_docstring(node) or "").splitlines()):
                yield Line(f"{name}:{node.body[0].lineno + number}", text.strip())


def lines_of_source(path: Path) -> Iterator[Line]:
    """Docstrings and comments of a Python or Cython module."""
    name = path.relative_to(ROOT)
    text = path.read_text()
    prose = prose_of_python(text) if path.suffix in (".py", ".pyi") else prose_of_cython(text)
    for number, line in prose:
        yield Line(f"{name}:{number}", line)


def prose_of_python(text: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        # Also strings below attributes, which document them.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text_of_node = node.value.value
            if isinstance(text_of_node, str):
                yield from enumerate(text_of_node.splitlines(), node.lineno)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


#: A docstring (a triple-quoted string that begins its line), a comment, or a string that could contain a `#`.
CYTHON_PROSE = re.compile(
    r'''^[ ]*(?P<doc>"""(?:\\.|[^\\])*?""")|(?P<comment>\#[^\n]*)|"""(?:\\.|[^\\])*?"""'''
    r"""|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""",
    re.M,
)


#: The text signature at the beginning of a docstring (`inspect.signature` reads it): code.
SIGNATURE = re.compile(r'(?<=""")\w+\([^\\]*\\n--\\n')


def prose_of_cython(text: str) -> Iterator[tuple[int, str]]:
    text = SIGNATURE.sub(lambda found: "\n" * found[0].count("\n"), text)
    for found in CYTHON_PROSE.finditer(text):
        for group in ("doc", "comment"):
            if found[group] is not None:
                yield from enumerate(found[group].splitlines(), text.count("\n", 0, found.start(group)) + 1)


def is_struct(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(
        isinstance(base, ast.Name) and base.id == "Settings" for base in node.bases
    )


def is_command(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        re.search(r"\b(command|group)\(", ast.unparse(each)) for each in node.decorator_list
    )


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("The response is cached.", 0),
        ("The answer is cached; `answer` and [x](answer.md) are code.", 1),
        ("Nobody waits, and a job is under way.", 2),
        ("## What it costs", 1),
        ("## Cost", 0),
        ("What is kept can be purged.", 1),
        ("* Who guesses is banned.", 2),
        ("What to do if the upstream is unreachable.", 0),
        ("It decides what is stored, and who may read it.", 0),
    ],
)
def test_a_finding_is_a_word_or_a_riddle_and_not_code(text: str, count: int) -> None:
    assert len(findings([Line("x:1", text)])) == count


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_uses_standard_words(path: Path) -> None:
    assert findings(lines_of_page(path)) == []


def test_packages_are_linked_at_their_projects() -> None:
    registries = re.compile(
        r"https?://(?:[\w.]+\.)?(?:pypi\.org|pypi\.python\.org|anaconda\.org|libraries\.io)", re.I
    )
    linked = [line.place for path in PAGES for line in lines_of_page(path) if registries.search(line.text)]

    assert linked == []


def test_config_descriptions_and_cli_help_use_standard_words() -> None:
    modules = sorted((ROOT / "fastgate").rglob("*.py"))
    checked = [line for path in modules for line in lines_of_module(path)]

    assert len(checked) > 500
    assert findings(checked) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_comments_use_standard_words(path: Path) -> None:
    assert refused_words(lines_of_source(path)) == []


def test_prose_is_found_in_both_languages_and_code_is_not() -> None:
    body = '    """The answer.\n\n    An answer."""\n    return "# answer"  # answer\n'
    python, cython = "def f(answer):\n" + body, "cdef answer f():\n" + body

    for prose in (prose_of_python(python), prose_of_cython(cython)):
        assert [line for line, text in prose if WORDS.search(text)] == [2, 4, 5]


def test_the_texts_of_the_reasons_use_standard_words() -> None:
    assert findings([Line(f"fastgate/errors.py: {label}", row.text) for label, row in REASONS.items()]) == []
