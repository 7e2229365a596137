"""The one list of the names that only the gateway writes, and the characters of a token."""

from __future__ import annotations

import string

import pytest

from fastgate._core.http.field_names import REQUEST_FIELDS, RESPONSE_FIELDS
from fastgate._core.pipeline.context import Answer
from fastgate.checks import LOWER_TOKEN, TOKEN
from tests.config.test_load import wrong

# RFC 9110 section 5.6.2
TCHARS = set("!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters)


def test_a_token_has_the_characters_of_the_rfc() -> None:
    every = [chr(code) for code in range(256)]

    assert {char for char in every if TOKEN.fullmatch(char)} == TCHARS
    assert {char for char in every if LOWER_TOKEN.fullmatch(char)} == TCHARS - set(string.ascii_uppercase)


@pytest.mark.parametrize("name", sorted(RESPONSE_FIELDS))
def test_a_response_of_a_plugin_sets_no_field_of_the_gateway(name: str) -> None:
    with pytest.raises(ValueError, match="the gateway writes this field itself"):
        Answer(200, fields=[(name.title(), "x")])


@pytest.mark.parametrize("name", sorted(REQUEST_FIELDS))
def test_a_credential_is_in_no_field_of_the_gateway(name: str) -> None:
    text = f"""
    routes: [{{path: /, upstream: orders}}]
    upstreams:
      orders:
        targets: [http://127.0.0.1:9]
        credentials: {{env: HOME, send: header, name: {name.title()}}}
    """

    assert any("a header name that is not the connection's own" in problem for problem in wrong(text))
