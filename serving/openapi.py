"""The OpenAPI document, made of the routes and the models of their bodies, so that it cannot say anything else."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.responses import JSONResponse

from serving.caller import Caller
from serving.errors import KINDS, OPENAI
from serving.routes import ROUTES, Route

REF = "#/components/schemas/"
RETRY = {"Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 0}}}
REQUEST_ID = {"X-Request-Id": {"description": "the caller's own, or one made here", "schema": {"type": "string"}}}
EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string", "description": "a chunk or an error as JSON, at the end [DONE]"}},
    "required": ["data"],
}
GET_ERRORS = (401, 404, 405, 503)


def show(caller: Caller) -> JSONResponse:
    return JSONResponse(describe(), headers={"X-Request-Id": caller.request_id})


@cache
def describe() -> dict[str, Any]:
    """The whole document, OpenAPI 3.1.0."""
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = []
    for route in ROUTES.values():
        wanted += [(model, "validation") for model in (route.body, route.answer) if isinstance(model, type)]
    names, defined = models_json_schema(wanted, ref_template=REF + "{model}")
    shown: dict[Any, Any] = {model: schema for (model, _), schema in names.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "ZopilotGPU", "version": "1", "description": "Documents in, whole answers out."},
        "paths": {route.path: {route.method.lower(): _operation(route, shown)} for route in ROUTES.values()},
        "components": {
            "schemas": {**defined["$defs"], "Error": _error(), "OpenAIError": _openai_error()},
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{}, {"key": []}, {"bearer": []}],
    }


def _operation(route: Route, shown: Mapping[Any, Any]) -> dict[str, Any]:
    answer = shown[route.answer] if isinstance(route.answer, type) else {"type": "string"}
    media = "application/json" if isinstance(route.answer, type) else route.answer
    content = {media: {"schema": answer}, **({"text/event-stream": {"schema": EVENT}} if route.streams else {})}
    said = {"description": "the answer", "headers": REQUEST_ID, "content": content}
    errors = {str(status): _refusal(route, status) for status in _statuses(route)}
    if route.unready:
        errors["503"] = {**said, "headers": {**REQUEST_ID, **RETRY}}
    operation: dict[str, Any] = {
        "operationId": "_".join(re.findall(r"\w+", route.path)),
        "summary": route.about,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)}", route.path)
        ],
        "responses": {"200": said, **errors},
    }
    if route.body is not None:
        asked = {"schema": shown[route.body], "example": route.example}
        operation["requestBody"] = {"required": True, "content": {"application/json": asked}}
    return operation


def _statuses(route: Route) -> list[int]:
    return sorted({kind.status for kind in KINDS.values()} - {499} if route.body else GET_ERRORS)


def _refusal(route: Route, status: int) -> dict[str, Any]:
    codes = [code for code, kind in KINDS.items() if kind.status == status]
    envelope = "OpenAIError" if route.path.startswith(OPENAI) else "Error"
    headers = REQUEST_ID if all(KINDS[code].retry_after is None for code in codes) else {**REQUEST_ID, **RETRY}
    return {
        "description": ", ".join(codes),
        "headers": headers,
        "content": {"application/json": {"schema": {"$ref": REF + envelope}}},
    }


def _error() -> dict[str, Any]:
    told = {
        "success": {"const": False},
        "error": {"type": "string"},
        "error_type": {"enum": list(KINDS)},
        "retryable": {"type": "boolean"},
        "request_id": {"type": "string"},
    }
    return {"type": "object", "properties": told, "required": list(told), "additionalProperties": False}


def _openai_error() -> dict[str, Any]:
    told = {
        "message": {"type": "string"},
        "type": {"type": "string"},
        "param": {"type": ["string", "null"]},
        "code": {"enum": list(KINDS)},
        "retryable": {"type": "boolean"},
        "request_id": {"type": "string"},
    }
    error = {"type": "object", "properties": told, "required": list(told), "additionalProperties": False}
    return {"type": "object", "properties": {"error": error}, "required": ["error"], "additionalProperties": False}
