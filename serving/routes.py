"""Every route: its method, what it takes, what it answers. The gate lets in what stands here; nothing else exists."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from serving import answers, bertscore, chat, completions, decisions, embeddings, protocol

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
    streams: bool = False  # whether it answers as server-sent events where that is asked for


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
        Route(
            "/v1/chat/completions",
            "POST",
            "The assistant's next turn, at once or as a stream.",
            chat.Completion,
            chat.Request,
            {
                "model": "smollm2-135m-instruct",
                "messages": [{"role": "user", "content": "Say hello."}],
                "max_completion_tokens": 8,
            },
            streams=True,
        ),
        Route(
            "/v1/completions",
            "POST",
            "What follows a text, at once or as a stream.",
            completions.Completion,
            completions.Request,
            {"model": "smollm2-135m-instruct", "prompt": "Dear Sir or Madam,", "max_tokens": 8},
            streams=True,
        ),
        Route(
            "/embed",
            "POST",
            "Texts as vectors.",
            embeddings.Embedded,
            embeddings.Texts,
            {"texts": ["an espresso", "a cup of coffee"]},
        ),
        Route(
            "/v1/embeddings",
            "POST",
            "Texts as vectors, as the public API has them.",
            embeddings.Listed,
            embeddings.Inputs,
            {"model": "all-minilm-l6-v2", "input": ["an espresso", "a cup of coffee"]},
        ),
        Route(
            "/bertscore",
            "POST",
            "How much of a candidate's meaning its references have, and the other way round.",
            bertscore.Scored,
            bertscore.Pairs,
            {"candidates": ["The total is 6.40."], "references": [["6.40 in total", "It costs 6.40."]]},
        ),
        Route(
            "/warmup",
            "POST",
            "Load encoders before they are needed.",
            bertscore.Warm,
            bertscore.Warmup,
            {"models": ["all-minilm-l6-v2"]},
        ),
        Route("/v1/models", "GET", "What can be asked for by name.", answers.Models),
        Route("/v1/models/{model}", "GET", "One of them.", answers.Served),
        Route("/livez", "GET", "Whether the process can do its work or get there.", answers.Alive, unready=True),
        Route("/readyz", "GET", "Whether a prompt would be answered now.", answers.Ready),
        Route(
            "/health", "GET", "What is loaded, in bytes, and what the engine is doing.", answers.Health, unready=True
        ),
        Route("/info", "GET", "What answers are made with.", answers.Info),
        Route("/status", "GET", "What waits, what is under way, and what has ended lately.", answers.Activity),
        Route("/metrics", "GET", "Figures for Prometheus.", "text/plain"),
        Route("/openapi.json", "GET", "This document.", answers.OpenAPI),
        Route("/schema.json", "GET", "The routes as BentoML's own client reads them.", answers.Anything),
    )
}


def find(path: str) -> Route | None:
    """The route that a request's path has."""
    if path in ROUTES and "{" not in path:
        return ROUTES[path]
    folder, _, name = path.rpartition("/")
    return ROUTES.get(f"{folder}/{{model}}") if name else None
