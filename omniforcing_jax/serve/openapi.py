"""The API's document in OpenAPI's form, made from the table of endpoints and the dataclasses of messages."""

import dataclasses
import re
import types
import typing
from typing import Any

from omniforcing_jax.serve.endpoints import ENDPOINTS, Endpoint
from omniforcing_jax.serve.messages import ErrorView

LIVE_PATH = "/v1/streams/{id}/live"
LIVE = "WebSocket: JSON messages (header, fragment, receipt, stream, skipped, end); `bytes` announces a binary one."
ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
KINDS = {str: "string", int: "integer", float: "number", bool: "boolean"}


def describe_api(version: str) -> dict[str, Any]:
    """Return the document."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for endpoint in ENDPOINTS:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    paths[LIVE_PATH] = {
        "get": {"summary": LIVE, "parameters": [ID], "responses": {"101": {"description": "WebSocket"}}}
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "omniforcing serve", "version": version},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _operation(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "integer" if kind == "int" else "string"}}
        for name, kind in re.findall(r"\{(\w+):(\w+)\}", endpoint.path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
        for name, text in endpoint.query.items()
    ]
    good: dict[str, Any] = {"description": endpoint.summary}
    if endpoint.answer is not None:
        good["content"] = {"application/json": {"schema": _schema(endpoint.answer, schemas)}}
    elif endpoint.status != 204:
        good["content"] = {endpoint.media.partition(";")[0]: {"schema": {"type": "string", "format": "binary"}}}
    error = {"application/json": {"schema": _schema(ErrorView, schemas)}}
    found: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": endpoint.handler.__name__,
        "parameters": parameters,
        "responses": {str(endpoint.status): good, "default": {"description": "A refusal", "content": error}},
    }
    if endpoint.body is bytes:
        content: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        found["requestBody"] = {"required": True, "content": content}
    elif endpoint.body is not None:
        content = {"application/json": {"schema": _schema(endpoint.body, schemas)}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _schema(kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a type; dataclasses are put beside it and referred to."""
    if dataclasses.is_dataclass(kind):
        name = getattr(kind, "__name__", str(kind))
        if name not in schemas:
            schemas[name] = {}
            schemas[name] = _object(kind, schemas)
        return {"$ref": f"#/components/schemas/{name}"}
    options = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return {"anyOf": [{"type": "null"} if each is types.NoneType else _schema(each, schemas) for each in options]}
    if typing.get_origin(kind) is tuple:
        return {"type": "array", "items": _schema(options[0], schemas)}
    return {"type": KINDS[kind]}


def _object(kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    hints, texts = typing.get_type_hints(kind), _attributes(kind.__doc__ or "")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    properties = {
        name: {**_schema(hints[name], schemas), "description": texts.get(name, ""), **_default(field)}
        for name, field in fields.items()
    }
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    return {
        "type": "object",
        "description": (kind.__doc__ or "").partition("\n")[0],
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _default(field: "dataclasses.Field[Any]") -> dict[str, Any]:
    return {} if field.default is dataclasses.MISSING else {"default": field.default}


def _attributes(doc: str) -> dict[str, str]:
    """Read the sentences of a docstring's section Attributes."""
    section = doc.partition("Attributes:\n")[2]
    found = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
