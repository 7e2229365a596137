"""Validation of request bodies before they go upstream: content type, JSON syntax and depth, repeated keys,
JSON Schema.

The checks run in this order; each is cheaper than the next and bounds its work: a body whose declared length
is too large is not read, the depth is known before a parser runs, and only well-formed JSON reaches the
schema. Routes that inspect bodies buffer them whole, so bodies are bounded here. Schemas are checked by
jsonschema-rs (the extra `fastgate[schema]`): a tenth of the time of fastjsonschema, all drafts, and regular
expressions with bounded backtracking.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from fastgate._core.http.json_scan import duplicate_key, too_deep
from fastgate._core.pipeline.context import CONTINUE, SUSPEND, RequestContext
from fastgate._core.pipeline.pipeline import Plugin
from fastgate.errors import REASONS, Reason
from fastgate.plugin import FeatureEnv
from fastgate.settings import FileName, Settings, Size, Text

__all__ = [
    "JsonConfig",
    "RouteKeys",
    "Validation",
    "ValidationConfig",
    "build",
    "compile_schema",
    "explain",
    "json_fault",
]

MOST_ERRORS: Final = 5  # reported for one body; clients fix errors one at a time
MOST_MESSAGE: Final = 300  # characters per error, which may quote the offending value
MOST_BACKTRACKS: Final = 10_000  # per regular expression with look-around; others run in linear time


class JsonConfig(Settings, frozen=True, kw_only=True):
    """Requirements of JSON bodies. `json: true` uses the defaults."""

    max_depth: Annotated[
        int,
        Meta(
            ge=1,
            le=200,
            description=(
                "Maximum nesting of arrays and objects; deeper bodies are rejected with 400. "
                "Checked before the body is parsed. Real documents stay below 20."
            ),
        ),
    ] = 32
    duplicate_keys: Annotated[
        Literal["refused", "allowed"],
        Meta(
            description=(
                "Repeated keys of an object. Parsers differ in which value they take, so the "
                "validated value may not be the one in use. `refused` rejects the body with 400."
            )
        ),
    ] = "refused"


class ValidationConfig(Settings, frozen=True, kw_only=True):
    """Requirements of request bodies. Requests without a body pass, unless `required`."""

    content_types: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Accepted types, such as `application/json`, `application/*+json` or `text/*`; "
                "others are rejected with 415. Parameters such as `charset` are ignored. Default: "
                "any, or JSON if `json` or a schema is set."
            ),
        ),
    ] = ()
    required: Annotated[bool, Meta(description="Reject requests without a body with 400.")] = False
    json: Annotated[
        JsonConfig | bool,
        Meta(description="Require well-formed JSON bodies. Implied by a schema."),
    ] = False
    schema: Annotated[
        dict[str, Any] | None, Meta(description="JSON Schema that the body must match; else 422.")
    ] = None
    schema_file: Annotated[
        FileName | None, Meta(description="File with the schema (JSON), instead of `schema`.")
    ] = None
    formats: Annotated[
        bool, Meta(description="Whether `format` in a schema is checked (`email`, `date-time`, `uuid`…).")
    ] = True
    max_body_bytes: Annotated[
        Size, Meta(ge=1, description="Maximum size of an inspected body; larger ones are rejected with 413.")
    ] = 1_000_000
    enforce: Annotated[
        bool,
        Meta(description="`false` (shadow mode): count and log what would be rejected, and let it pass."),
    ] = True

    def json_settings(self) -> JsonConfig | None:
        """Requirements of JSON, or None if bodies are not inspected."""
        if isinstance(self.json, JsonConfig):
            return self.json
        wanted = self.json or self.schema is not None or self.schema_file is not None
        return JsonConfig() if wanted else None


class RouteKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in a route."""

    manual_order: ClassVar[int] = 80

    validation: Annotated[
        ValidationConfig | None, Meta(description="Requirements of request bodies. Default: none.")
    ] = None


def json_fault(body: bytes, settings: JsonConfig) -> tuple[Any, dict[str, Any] | None]:
    """The parsed body and None, or None and the error as details of the refusal."""
    at = too_deep(body, settings.max_depth)
    if at >= 0:
        return None, {"detail": f"nested deeper than {settings.max_depth}", "offset": at}
    try:
        value = msgspec.json.decode(body)
    except UnicodeDecodeError:
        return None, {"detail": "not UTF-8"}
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        return None, {"detail": str(error).removeprefix("JSON is malformed: ")[:MOST_MESSAGE]}
    if settings.duplicate_keys == "refused":
        path = duplicate_key(body)
        if path is not None:
            return None, {"detail": "repeated key", "path": path[:MOST_MESSAGE]}
    return value, None


def compile_schema(settings: ValidationConfig) -> Any:
    """The validator of the schema, or None without one. Raises ValueError for an invalid schema and OSError
    if its file cannot be read. References are resolved within the schema only: nothing is fetched."""
    if settings.schema_file is not None:
        try:
            schema = msgspec.json.decode(Path(settings.schema_file).read_bytes())
        except msgspec.DecodeError as error:
            raise ValueError(f"JSON: {error}") from None
    else:
        schema = settings.schema
    if schema is None:
        return None
    try:
        import jsonschema_rs
    except ImportError:
        raise ValueError("the package jsonschema-rs: pip install 'fastgate[schema]'") from None
    try:
        return jsonschema_rs.validator_for(
            schema,
            validate_formats=settings.formats,
            offline=True,
            pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=MOST_BACKTRACKS),
        )
    except Exception as error:
        raise ValueError(f"a JSON Schema: {str(error).splitlines()[0]}") from None


class Validation(Plugin):
    """The plugin that validates bodies. Checks of the head run at once; it waits only for a body."""

    outcomes: ClassVar[tuple[str, ...]] = ("size", "type", "missing", "json", "schema")

    def __init__(self, settings: ValidationConfig, validator: Any, counters: Mapping[str, Any]) -> None:
        self.name = "validation"
        self.settings = settings
        self.enforce = settings.enforce
        self._json = settings.json_settings()
        self._validator = validator
        self._counters = counters
        types = settings.content_types
        if not types and self._json is not None:
            types = ("application/json", "application/*+json")
        self._types = frozenset(name.lower() for name in types if "*" not in name)
        self._patterns = tuple(tuple(name.lower().split("*", 1)) for name in types if "*" in name)
        self._accept = ", ".join(types)
        if self._json is not None:
            self.request_body_bytes = settings.max_body_bytes

    def decide(self, ctx: RequestContext) -> int:
        """Runs the checks that do not need the body."""
        if not ctx.has_body:
            if self.settings.required:
                return self._refuse(ctx, "missing", REASONS["body_missing"])
            return CONTINUE
        if ctx.content_length > self.settings.max_body_bytes:
            return self._refuse(ctx, "size", REASONS["body_too_large"])
        if self._accept:
            found = ctx.headers.get_all("content-type")
            if len(found) != 1 or not self._takes(found[0]):
                detail = {"detail": f"expected {self._accept}"}
                return self._refuse(
                    ctx, "type", REASONS["unsupported_media_type"], detail, [("Accept", self._accept)]
                )
        if self._json is None:
            return CONTINUE
        encoding = ctx.headers.get("content-encoding")
        if encoding is not None and encoding.lower() != "identity":
            detail = {"detail": "expected a body without Content-Encoding"}
            fields = [("Accept-Encoding", "identity")]
            return self._refuse(ctx, "type", REASONS["unsupported_media_type"], detail, fields)
        if not self.enforce and ctx.content_length < 0:
            # The length is unknown, and buffering could end in a refusal, which shadow mode must not do.
            return CONTINUE
        return SUSPEND

    async def request(self, ctx: RequestContext) -> int:
        """Runs the checks of the whole body."""
        assert self._json is not None
        value, fault = json_fault(ctx.body or b"", self._json)
        if fault is not None:
            return self._refuse(ctx, "json", REASONS["bad_json"], fault)
        if self._validator is None or self._validator.is_valid(value):
            return CONTINUE
        return self._refuse(ctx, "schema", REASONS["schema_mismatch"], {"errors": self._errors(value)})

    def _errors(self, value: Any) -> list[dict[str, str]]:
        told = []
        for error in self._validator.iter_errors(value):
            told.append({"path": _path(error.instance_path), "message": error.message[:MOST_MESSAGE]})
            if len(told) == MOST_ERRORS:
                break
        return told

    def _takes(self, content_type: str) -> bool:
        name = content_type.partition(";")[0].strip(" \t").lower()
        if name in self._types:
            return True
        return any(
            len(name) > len(start) + len(end) and name.startswith(start) and name.endswith(end)
            for start, end in self._patterns
        )

    def _refuse(
        self,
        ctx: RequestContext,
        outcome: str,
        reason: Reason,
        detail: dict[str, Any] | None = None,
        fields: Any = (),
    ) -> int:
        self._counters[outcome].add(1)
        return ctx.refuse(reason, detail, fields)


def _path(steps: Any) -> str:
    """`$.items[2].id`"""
    out = ["$"]
    for step in steps:
        if isinstance(step, int):
            out.append(f"[{step}]")
        elif step.isidentifier() and step.isascii():
            out.append(f".{step}")
        else:
            out.append(f"[{msgspec.json.encode(step).decode()}]")
    return "".join(out)[:MOST_MESSAGE]


def build(settings: ValidationConfig | None, env: FeatureEnv) -> Validation | None:
    """The plugin of a route, or None if bodies are not validated."""
    if settings is None:
        return None
    validator = None
    if settings.schema is not None or settings.schema_file is not None:
        file = settings.schema_file
        text = b"" if file is None else Path(file).read_bytes()
        key = (settings.schema, text, settings.formats)
        validator = env.service("validation.schema", key, partial(compile_schema, settings))
    counter = env.context.memory.metrics.counter
    counters = {
        outcome: counter("fastgate_validation_refused_total", route=env.route.name, fault=outcome)
        for outcome in Validation.outcomes
    }
    return Validation(settings, validator, counters)


def explain(route: Any) -> dict[str, str]:
    """Whether the route validates requests."""
    return {} if route.validation is None else {"validation": "yes"}
