"""Conversations and texts to go on with, as rows of the engine. Knows nothing of HTTP.

What is not said of sampling is the model's own, as on /prompt: greedy. An answer of a given form, JSON or calls of
functions, is enforced by a grammar and checked again.
"""

import json
from collections.abc import Iterator
from collections.abc import Sequence as Listing
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from models import audit, tools
from models.catalog import Model
from models.engine.engine import Engine
from models.engine.grammar import Grammars
from models.engine.sequence import Sampling, Sequence
from models.engine.stream import Stream
from models.failure import Failure, FieldFailure
from models.picture import BLIND, Picture
from models.question import MAX_SEED, task, warm
from models.schema import fields
from models.schema.admitted import admit, dump, refusal
from models.schema.dialect import Refs, Schema
from models.speech import Form, Speech, Voice
from models.template import Template
from models.text import Stops, Text
from models.tools import Function
from models.turns import Message, images_of, read_turns
from models.viewing import look
from models.vision import Vision

NOT_HERE = {"x-check", audit.KEYWORD, fields.KEYWORD}
LIMIT = "max_completion_tokens"
SCHEMA = "response_format.json_schema.schema"


class Wanted(Protocol):
    """What is read of any request."""

    @property
    def model(self) -> str: ...
    @property
    def most(self) -> int | None: ...  # tokens of an answer
    @property
    def temperature(self) -> float | None: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def rows(self) -> int: ...
    @property
    def stops(self) -> Listing[str]: ...
    @property
    def tops(self) -> int | None: ...  # alternatives to each token; None: nothing is to be told of tokens


class Conversation(Wanted, Protocol):
    """`answer`: its schema, where it is to be JSON. `functions` that may be called, `named`: the one that must be;
    `may_talk`: instead of calling; `parallel`: several at once."""

    @property
    def messages(self) -> Listing[Message]: ...
    @property
    def answer(self) -> Schema | None: ...
    @property
    def functions(self) -> Listing[Function]: ...
    @property
    def named(self) -> str | None: ...
    @property
    def may_talk(self) -> bool: ...
    @property
    def parallel(self) -> bool: ...


class Texts(Wanted, Protocol):
    @property
    def prompts(self) -> Listing[str]: ...


class Chats:
    """Talks with one model, which goes by two names: its own and the `tag` of its weights."""

    def __init__(
        self,
        model: Model,
        tag: str,
        fingerprint: str,
        template: Template,
        grammars: Grammars,
        engine: Engine,
        eyes: Vision | None = None,
    ) -> None:
        """`eyes`: None where the model reads no images."""
        self._model = model
        self._eyes = eyes
        self._names = (model.name, tag)
        self._fingerprint = fingerprint
        self._template = template
        self._grammars = grammars
        self._engine = engine
        self._room = min(model.context_length, engine.cache.budget)  # tokens, of a prompt and its answer

    async def look(self, asked: Conversation, deadline: float) -> list[Picture]:
        """The images of a conversation, in their order. Raises Failure."""
        self._check_name(asked.model)
        images = images_of(asked.messages)
        if images and self._eyes is None:
            name = next(iter(images))
            raise FieldFailure("invalid_value", f"{name}: {BLIND}", name)
        few = {name for name, image in images.items() if image.detail == "low"}
        try:
            return await look(self._eyes, {name: image.url for name, image in images.items()}, deadline, few)
        except Failure as refused:
            name, colon, _ = refused.message.partition(": ")
            raise FieldFailure(refused.code, refused.message, name) if colon else refused from None

    def talk(self, asked: Conversation, deadline: float, pictures: Listing[Picture] = ()) -> Speech:
        """The assistant's next turn; `pictures`: what was seen of its images. `deadline` is on the monotonic clock.
        Raises Failure."""
        self._check_name(asked.model)
        form, told = self._form(asked)
        turns = read_turns(asked.messages, told, pictures)
        if len(turns) > self._room:
            raise Failure("context_length_exceeded", f"{len(turns)} turns are more than {self._room} tokens")
        ids = self._template.encode(turns, self._room)
        return self._submit(asked, [ids], form, deadline, pictures=pictures)

    def go_on(self, asked: Texts, deadline: float) -> Speech:
        """What follows each of some texts. Raises Failure."""
        self._check_name(asked.model)
        prompts = [self._template.continued(text, self._room) for text in asked.prompts]
        if not all(prompts):
            told = "prompt: it is empty, and this model has no token to begin with"
            raise FieldFailure("invalid_value", told, "prompt")
        return self._submit(asked, prompts, None, deadline, continues=True)

    def _check_name(self, name: str) -> None:
        if name not in self._names:
            raise FieldFailure("model_not_found", f"model: {self._model.name} is served here", "model")

    def _form(self, asked: Conversation) -> tuple[Form | None, str]:
        """What the answer must be, and what the model is told of that."""
        if asked.functions:
            for at, each in enumerate(asked.functions):
                check(each.parameters or {}, f"tools.{at}.function.parameters")
            called = [each for each in asked.functions if asked.named in (None, each.name)]
            most = tools.MOST_CALLS if asked.parallel and asked.named is None else 1
            form = self._compile(tools.schema(called, asked.may_talk, most), "tools", calls=True)
            return form, tools.tell(called, asked.may_talk)
        if asked.answer is None:
            return None, ""
        check(asked.answer, SCHEMA)
        return self._compile(asked.answer, SCHEMA), "\n\n".join(task(asked.answer))

    def _compile(self, schema: Schema, param: str, calls: bool = False) -> Form:
        with blamed(param):
            return Form(schema, self._grammars.compile(schema), calls)

    def _submit(
        self,
        asked: Wanted,
        prompts: list[list[int]],
        form: Form | None,
        deadline: float,
        continues: bool = False,
        pictures: Listing[Picture] = (),
    ) -> Speech:
        """For each prompt as many rows as are wanted, which share what is computed of it."""
        rows: list[Sequence] = []
        for ids in prompts:
            sampling = self._sampling(asked, len(ids))
            for at in range(asked.rows):
                seed = None if sampling.seed is None else (sampling.seed + at) % MAX_SEED
                row = Sequence(ids, replace(sampling, seed=seed), deadline=deadline, pictures=pictures)
                row.tops, row.follows = asked.tops or 0, len(ids) if at else 0
                rows.append(row)
        voices = [self._voice(at, row, asked, form, continues) for at, row in enumerate(rows)]
        stream = Stream(self._engine, rows)
        stream.submit()
        return Speech(self._model.name, self._fingerprint, sum(map(len, prompts)), rows, voices, stream)

    def _voice(self, at: int, row: Sequence, asked: Wanted, form: Form | None, continues: bool) -> Voice:
        if form is not None:
            if (shortest := form.grammar.shortest) > row.sampling.max_new_tokens:
                told = f"{LIMIT}: the shortest answer found that fits the schema takes {shortest} tokens"
                raise FieldFailure("invalid_value", told, LIMIT)
            row.keyword = form.grammar.keyword
            row.matcher, row.guard = form.grammar.start()
        spell = None if asked.tops is None else self._grammars.decode
        return Voice(at, row, Text(self._template, continues), Stops(asked.stops), form, spell)

    def _sampling(self, asked: Wanted, prompt_tokens: int) -> Sampling:
        room = self._room - prompt_tokens
        wanted = asked.most or min(self._model.max_new_tokens, max(room, 1))
        if wanted > room:
            told = f"the prompt has {prompt_tokens} tokens and the answer may take {wanted}"
            raise Failure("context_length_exceeded", f"{told}; the context is {self._room}")
        return warm(asked, self._model, wanted)


@contextmanager
def blamed(param: str) -> Iterator[None]:
    """What fails in here is that field's fault."""
    try:
        yield
    except Failure as refused:
        raise FieldFailure(refused.code, f"{param}: {refused.message}", param) from None


def check(schema: Schema, param: str) -> None:
    """Failure names what of a schema cannot be enforced, or not on what is said in a conversation."""
    with blamed(param):
        admit(json.loads(dump(schema)))
        for at, node in Refs(schema).parts():
            for key in NOT_HERE & node.keys():
                raise refusal([(key, f"{at}/{key}")], "it is for /prompt alone")
