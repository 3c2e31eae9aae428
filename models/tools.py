"""Functions that a model may call which was trained on no way to do so: told to it, and called, in JSON.

An answer is `{"tool_calls":[{"name":…,"arguments":{…}},…]}` or, where it need not call, `{"content":"…"}`; a grammar
lets it be nothing else, so that arguments always fit their function's schema. A named function is called once, others
up to MOST_CALLS times where calls may be parallel. Earlier calls and results are shown in the same notation.
"""

import json
import re
from collections.abc import Sequence as Listing
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from models.question import compact
from models.schema.dialect import Refs, Schema

MOST_CALLS = 8
NOTHING: Schema = {"type": "object", "properties": {}, "additionalProperties": False}
CONTENT = '{"content":"'
CALLS = '{"tool_calls":['
MOST_CONTENT = 200_000  # characters: more than fit into a context
SAID = re.compile(r'(?:[^"\\]|\\.)*+')  # of a JSON string, as far as it is there
DECODER = json.JSONDecoder()


class Function(Protocol):
    """What is read of one."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str | None: ...
    @property
    def parameters(self) -> Schema | None: ...


class Made(Protocol):
    """What is read of an earlier call."""

    @property
    def name(self) -> str: ...
    @property
    def arguments(self) -> str: ...


@dataclass(frozen=True)
class Call:
    """A call with its arguments as JSON, to the letter."""

    name: str
    arguments: str


def tell(functions: Listing[Function], may_talk: bool) -> str:
    """What the model is told of them."""
    told = [
        {"name": each.name, "description": each.description or "", "parameters": each.parameters or NOTHING}
        for each in functions
    ]
    call = CALLS + '{"name":"…","arguments":{…}}]}'
    talk = f' or, to say something, with {CONTENT}…"}}' if may_talk else ""
    return f"These functions can be called:\n{compact(told)}\n\nAnswer with {call} to call them{talk}."


def schema(functions: Listing[Function], may_talk: bool, most: int) -> Schema:
    """Of all answers that call one to `most` of the functions, and if `may_talk` of those that call none."""
    definitions: dict[str, Schema] = {}
    calls: list[Schema] = []
    for at, each in enumerate(functions):
        definitions[str(at)] = _moved(each.parameters or NOTHING, f"#/$defs/{at}")
        calls.append(_object(name={"const": each.name}, arguments={"$ref": f"#/$defs/{at}"}))
    called = {"type": "array", "items": {"anyOf": calls}, "minItems": 1, "maxItems": most}
    ways = [_object(tool_calls=called)]
    if may_talk:
        ways.insert(0, _object(content={"type": "string", "maxLength": MOST_CONTENT}))
    return {"$defs": definitions, "anyOf": ways} if may_talk else {"$defs": definitions, **ways[0]}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _moved(whole: Schema, to: str) -> Schema:
    """A schema of its own as a part of another one, which it has in `to`."""
    moved = deepcopy(whole)
    refs = Refs(moved)
    nodes = [node for _, node in refs.parts() if isinstance(node.get("$ref"), str)]
    found = [refs.find(node["$ref"]) for node in nodes]
    for node, target in zip(nodes, found, strict=True):
        if target is not None:
            node["$ref"] = to + quote(target[0])
    return {key: value for key, value in moved.items() if key not in ("$schema", "$id", "id")}


def read(text: str) -> tuple[str, tuple[Call, ...]]:
    """What a whole answer says and calls: one of both."""
    value = json.loads(text)
    if "content" in value:
        return value["content"], ()
    calls = []
    at = len(CALLS)
    for call in value["tool_calls"]:  # compact and in this order, as the grammar has it
        at += len(compact({"name": call["name"], "arguments": 0})) - len("0}")
        _, end = DECODER.raw_decode(text, at)
        calls.append(Call(call["name"], text[at:end]))
        at = end + len("},")
    return "", tuple(calls)


def spoken(text: str, start: int = 0) -> tuple[str, int]:
    """What an answer that is not whole yet says from character `start` on, and the one up to which that is told."""
    if not text.startswith(CONTENT):
        return "", 0
    found = SAID.match(text, max(start, len(CONTENT)))
    assert found
    return str(json.loads(f'"{found[0]}"')), found.end()


def show_calls(calls: Listing[Made]) -> str:
    """Earlier calls as the model would have made them; arguments that are no JSON as a text."""
    told = [f'{{"name":{compact(call.name)},"arguments":{_as_json(call.arguments)}}}' for call in calls]
    return CALLS + ",".join(told) + "]}"


def _as_json(text: str) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return compact(text)
    return text


def show_result(name: str, text: str) -> str:
    """What a call gave."""
    return compact({"tool_result": {"name": name, "content": text}})
