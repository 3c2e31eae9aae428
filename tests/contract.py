"""RunPod's own OpenAPI document as a judge of requests and answers. It is read beside the checkout and never copied.

Strict where the document is silent: a parameter that it does not name, or a body where it knows none, is refused.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

DOCUMENT = Path(__file__).parent.parent.parent / "shared" / "data" / "runpod-openapi-v2.json"
SHA256 = "b8bce61c5a2290d28a7cb2ed53173637166817249986cb18b101b2fd651fd313"
MISSING = "RunPod's OpenAPI document is not beside this checkout"
URN = "urn:runpod"


@dataclass(frozen=True)
class Verdict:
    """`status` 0: as the document has it; else what RunPod would answer, and why. `path` is the document's own."""

    status: int
    errors: list[str]
    path: str = ""


class Contract:
    """The document, pinned by its hash."""

    def __init__(self) -> None:
        raw = DOCUMENT.read_bytes()
        assert sha256(raw).hexdigest() == SHA256, "another edition: read what has changed, then pin it"
        self._document = json.loads(raw)
        resource: Resource[Any] = DRAFT202012.create_resource(self._document)
        self._registry: Registry[Any] = Registry().with_resource(URN, resource)
        self._validators: dict[str, Draft202012Validator] = {}

    def judge(self, method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> Verdict:
        """A request, as it came over the wire."""
        template = self._template(path)
        if not template:
            return Verdict(404, [f"no such path: {path}"])
        item = self._document["paths"][template]
        if method.lower() not in item:
            return Verdict(405, [f"{path} knows no {method}"], template)
        if not re.fullmatch(r"Bearer \S+", headers.get("authorization", "")):
            return Verdict(401, ["missing bearer token"], template)
        operation = item[method.lower()]
        errors = self._judge_query(operation, query) + self._judge_body(operation, template, method, headers, body)
        return Verdict(422 if errors else 0, errors, template)

    def check_answer(self, method: str, template: str, status: int, body: Any) -> None:
        """AssertionError where RunPod would not answer so: a fake must not be kinder than the real one."""
        responses = self._document["paths"][template][method.lower()]["responses"]
        key = str(status) if str(status) in responses else "default"
        assert key != "default" or status >= 400, f"{method} {template} never answers {status}"
        pointer = f"/paths/{_escape(template)}/{method.lower()}/responses/{key}"
        response = responses[key]
        if "$ref" in response:
            pointer = response["$ref"].removeprefix("#")
            response = self._document["components"]["responses"][pointer.rpartition("/")[2]]
        if "content" not in response:
            assert body is None, f"{status} has no body"
            return
        media = next(iter(response["content"]))
        errors = self._errors(f"{pointer}/content/{_escape(media)}/schema", body)
        assert not errors, (method, template, status, errors)

    def errors(self, schema: str, value: Any) -> list[str]:
        """What is wrong with `value` as a component of the document."""
        return self._errors(f"/components/schemas/{schema}", value)

    def _judge_query(self, operation: dict[str, Any], query: str) -> list[str]:
        known = {each["name"]: each for each in map(self._resolve, operation.get("parameters", []))}
        errors = []
        for name, values in parse_qs(query, keep_blank_values=True).items():
            if name not in known or known[name]["in"] != "query":
                errors.append(f"query {name}: no such parameter")
                continue
            schema = known[name]["schema"]
            value: Any = values[-1]
            if schema.get("type") == "array":
                value = value.split(",")
            elif schema.get("type") == "integer" and re.fullmatch(r"-?\d+", value):
                value = int(value)
            errors += [f"query {name}: {error}" for error in self._judge(schema, value)]
        return errors

    def _judge_body(
        self, operation: dict[str, Any], template: str, method: str, headers: dict[str, str], body: bytes
    ) -> list[str]:
        if "requestBody" not in operation:
            return ["$: no body is taken"] if body else []
        if not headers.get("content-type", "").startswith("application/json"):
            return ["$: the body is no JSON"]
        try:
            value = json.loads(body)
        except ValueError:
            return ["$: the body is no JSON"]
        pointer = f"/paths/{_escape(template)}/{method.lower()}/requestBody/content/application~1json/schema"
        return self._errors(pointer, value)

    def _judge(self, schema: dict[str, Any], value: Any) -> list[str]:
        """By a schema that may refer to others."""
        absolute = json.loads(json.dumps(schema).replace('"#/', f'"{URN}#/'))
        validator = Draft202012Validator(absolute, registry=self._registry)
        return [error.message for error in validator.iter_errors(value)]

    def _errors(self, pointer: str, value: Any) -> list[str]:
        if pointer not in self._validators:
            self._validators[pointer] = Draft202012Validator({"$ref": f"{URN}#{pointer}"}, registry=self._registry)
        return [f"{error.json_path}: {error.message}" for error in self._validators[pointer].iter_errors(value)]

    def _resolve(self, parameter: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in parameter:
            return parameter
        found: dict[str, Any] = self._document["components"]["parameters"][parameter["$ref"].rpartition("/")[2]]
        return found

    def _template(self, path: str) -> str:
        """The document's path that this one is; what is spelled out wins over what is filled in."""
        fitting = [each for each in self._document["paths"] if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", each), path)]
        return min(fitting, key=lambda each: each.count("{"), default="")


@cache
def contract() -> Contract | None:
    """None where the document is not at hand."""
    return Contract() if DOCUMENT.exists() else None


def _escape(part: str) -> str:
    """As a part of a JSON pointer in a URI fragment."""
    return part.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D")
