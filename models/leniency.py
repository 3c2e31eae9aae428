"""A schema made less strict, for those who see a part of a document; and an answer freed of what that has let in.

Knows nothing of windows.
"""

import re
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

import jsonschema_rs
from jsonschema_rs import ValidationErrorKind

from models.audit import validator
from models.failure import Failure
from models.question import compact
from models.schema.admitted import refusal
from models.schema.bounds import nodes_of
from models.schema.dialect import LISTS, MAPS, SINGLE, Schema, escape, parts

JUDGED = {"x-check", "x-evidence"}  # said of the whole answer
STRICT = {"minItems", "minProperties", "contains", "minContains"}
CLOSED = {"oneOf", "not", "if", "then", "else"}  # what is less strict in here may be stricter outside
NULL = {"type": "null"}
REF_THROUGH = re.compile(r'"\$ref":"[^"]*/properties/')
NAMED = 5  # pointers named in a refusal


def relax(schema: Schema) -> Schema:
    """What allows null for every property and fewer elements, but in CLOSED; rules and demands for evidence left out.

    Where a $ref leads through properties, that would lead it astray: then only the latter. Failure where an element
    means something by its place, as parts of a document do not say which.
    """
    for pointer, node in parts(schema):
        if key := next((key for key in ("prefixItems", "items") if isinstance(node.get(key), list)), ""):
            raise refusal([(key, f"{pointer}/{key}")], "parts of a long document cannot be asked for it")
    relaxed: Schema = _relaxed(schema, REF_THROUGH.search(compact(schema)) is None)
    return relaxed


def _relaxed(node: Any, freely: bool) -> Any:
    if not isinstance(node, dict):
        return node
    made: Schema = {}
    for key, value in node.items():
        inside = freely and key not in CLOSED
        if key in JUDGED or (freely and key in STRICT):
            continue
        if key in MAPS and isinstance(value, dict):
            made[key] = {name: _relaxed(part, inside) for name, part in value.items()}
            if key == "properties" and freely:
                made[key] = {name: _optional(part) for name, part in made[key].items()}
        elif (key in LISTS or key == "items") and isinstance(value, list):
            made[key] = [_relaxed(part, inside) for part in value]
        else:
            made[key] = _relaxed(value, inside) if key in SINGLE or key == "items" else value
    return made


def _optional(node: Any) -> Any:
    if not isinstance(node, dict) or NULL in node.get("anyOf", ()) or "null" in node.get("type", ()):
        return node
    if node.get("type") == "array":  # which says nothing by being empty
        return node
    return {"anyOf": [node, NULL]}


def settle(value: Any, schema: Schema) -> set[str]:
    """Take null out of objects where the schema does not allow it, in place; the pointers of what is gone.

    Failure `answer_invalid` where it is something that the schema wants.
    """
    judge, gone = validator(schema), set[str]()
    while taken := {
        pointer for error in list(judge.iter_errors(value)) for path in _paths(error) if (pointer := _take(value, path))
    }:
        gone |= taken
    wanted = {
        _pointer([*error.instance_path, error.kind.property])
        for error in judge.iter_errors(value)
        if isinstance(error.kind, ValidationErrorKind.Required)
    }
    if missing := sorted(gone & wanted):
        named = name_some(missing, schema)
        raise Failure("answer_invalid", f"no part of the document has what the schema wants at {named}")
    return gone


def name_some(pointers: Collection[str], schema: Schema) -> str:
    """The first few of them, for a refusal; a step that is no property's name in the schema may be the document's."""
    ours = {escape(name) for node in nodes_of(schema) for name in node.get("properties", ())}
    shown = dict.fromkeys(
        "/".join(step if step in ours or not step else "*" for step in pointer.split("/")) for pointer in pointers
    )
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return ", ".join(pointer[:100] for pointer in islice(shown, NAMED)) + more


def _paths(error: jsonschema_rs.ValidationError) -> Iterator[list[str | int]]:
    """Where an error is, and in each of the forms of which none fits."""
    yield error.instance_path
    for form in getattr(error.kind, "context", ()):
        for inner in form:
            yield from _paths(inner)


def _take(value: Any, path: list[str | int]) -> str:
    """Remove a null from the object that it is in; its pointer, "" where there is none to be removed."""
    for step in path[:-1]:
        value = value[step]
    if not path or not isinstance(value, dict) or value.get(path[-1], path) is not None:
        return ""
    del value[path[-1]]
    return _pointer(path)


def _pointer(path: list[str | int]) -> str:
    return "".join("/" + escape(str(step)) for step in path)
