"""Asks a deployment over HTTP, by BentoML's client and by openai's: `bentoml serve`, a pod or a load balancer.

    ZOPILOT_KEY=… python prompt.py http://localhost:3000

The key is ZOPILOT_GPU_API_KEY's; of a load balancer that asks for none of its own, RunPod's.
"""

import json
import os
import sys
from typing import Any

import bentoml
import openai

PROMPT = "What kind of document is it, and in which currency?"
DOCUMENT = "INVOICE no. 77\nGarden tools\nTotal: 45.00 EUR"
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["invoice", "letter"]}, "currency": {"enum": ["EUR", "USD", None]}},
    "required": ["kind", "currency"],
    "additionalProperties": False,
}


def by_bentoml(url: str, key: str) -> Any:
    """The answer of /prompt. What the service refuses raises BentoMLException with its typed error."""
    with bentoml.SyncHTTPClient(url, token=key or None, timeout=300) as client:
        answer = client.prompt({"prompt": PROMPT, "context": {"document": DOCUMENT}, "schema": SCHEMA})
    if not answer["success"]:
        # A pod's proxy waits 100 seconds: what takes longer has become a job. jobs.py fetches such answers.
        raise TimeoutError(f"it goes on at {answer['location']}")
    return json.loads(answer["output"])


def by_openai(url: str, key: str) -> Any:
    """The answer of /v1/chat/completions. What the service refuses raises openai.APIStatusError."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key or "none", timeout=300) as client:
        model = client.models.list().data[0].id
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"{PROMPT}\n\n{DOCUMENT}"}],
            response_format={"type": "json_schema", "json_schema": {"name": "invoice", "schema": SCHEMA}},
        )
    return json.loads(answer.choices[0].message.content or "")


def main() -> None:
    """Ask both and print what they say."""
    (url,) = sys.argv[1:]
    key = os.environ.get("ZOPILOT_KEY", "")
    print(json.dumps({"bentoml": by_bentoml(url, key), "openai": by_openai(url, key)}))


if __name__ == "__main__":
    main()
