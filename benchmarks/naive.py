"""The peer that a first attempt looks like: FastAPI around `generate`, one question at a time. Run by its own venv."""

import argparse
import threading
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from transformers import AutoModelForCausalLM, AutoTokenizer


class Turn(BaseModel):
    role: str
    content: str


class Body(BaseModel):
    """What it can do; what it cannot is refused, so that nobody takes silence for obedience."""

    model_config = ConfigDict(extra="forbid")
    model: str = ""
    messages: list[Turn]
    max_tokens: int = 200
    temperature: float = 0.0


def make(folder: str) -> Any:
    """The application over the model in `folder`, in bfloat16."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    lock = threading.Lock()
    app = FastAPI()

    def answer(body: Body) -> dict[str, Any]:
        turns = [turn.model_dump() for turn in body.messages]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        asked = inputs["input_ids"].shape[1]
        with lock, torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=body.max_tokens, do_sample=False)[0, asked:]
        cut = len(ids) == body.max_tokens and ids[-1] != tokenizer.eos_token_id
        message = {"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}
        usage = {"prompt_tokens": asked, "completion_tokens": len(ids)}
        return {"choices": [{"message": message, "finish_reason": "length" if cut else "stop"}], "usage": usage}

    def health() -> dict[str, str]:
        return {}

    app.post("/v1/chat/completions")(answer)
    app.get("/health")(health)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    uvicorn.run(make(options.folder), host="127.0.0.1", port=options.port, log_level="warning")
