"""Every route: its method, what it takes, what it answers. The gate lets in what stands here; nothing else exists."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from serving import answers, decisions, protocol

Schema = dict[str, Any]


@dataclass(frozen=True)
class Route:
    """`body`: None for GET. `answer`: of status 200, or its media type where it is no JSON. `example`: a body that is
    answered, or of GET an answer."""

    path: str
    method: Literal["GET", "POST"]
    about: str
    answer: type[BaseModel] | str
    body: type[BaseModel] | None = None
    example: Any = None
    unready: bool = False  # whether 503 has the answer's own form
    streams: tuple[str, ...] = ()  # other media types of an answer


RECEIPT = "CORNER CAFE\n2 espresso 6.40\nTOTAL 6.40"
KIND = {"kind": {"enum": ["invoice", "receipt", "letter"]}, "paid": {"type": "boolean"}}
FORM = {"type": "object", "properties": KIND, "required": ["kind", "paid"], "additionalProperties": False}

ROUTES = {
    route.path: route
    for route in (
        Route(
            "/prompt",
            "POST",
            "Ask about a document: fields by a schema, labels, or a text.",
            protocol.Reply,
            protocol.Prompt,
            {"prompt": "What is this, and is it paid?", "context": {"document": RECEIPT}, "schema": FORM},
        ),
        Route(
            "/v1/decisions",
            "POST",
            "Typed questions about one input, as the public Decisions API has them.",
            decisions.Answers,
            decisions.Questions,
            {
                "model": "smollm2-135m-instruct",
                "input": RECEIPT,
                "questions": [{"type": "predicate", "instructions": "It is a receipt.", "name": "receipt"}],
            },
        ),
        Route("/livez", "GET", "Whether the process can do its work or get there.", answers.Alive, unready=True),
        Route("/readyz", "GET", "Whether a prompt would be answered now.", answers.Ready),
        Route(
            "/health", "GET", "What is loaded, in bytes, and what the engine is doing.", answers.Health, unready=True
        ),
        Route("/info", "GET", "What answers are made with.", answers.Info),
        Route("/status", "GET", "What waits, what is under way, and what has ended lately.", answers.Jobs),
        Route("/metrics", "GET", "Figures for Prometheus.", "text/plain"),
        Route("/openapi.json", "GET", "This document.", answers.OpenAPI),
        Route("/schema.json", "GET", "The routes as BentoML's own client reads them.", answers.Anything),
    )
}
