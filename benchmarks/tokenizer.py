"""Mixtral-8x7B-Instruct's real tokenizer and chat template, made from the file that mistral-common ships."""

from pathlib import Path

import mistral_common
from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template
from sentencepiece import SentencePieceProcessor
from transformers import LlamaTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from models import source

MISTRAL_V1 = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """As the importer opens it; `folder` is where it is written for that."""
    pieces = SentencePieceProcessor(model_file=str(MISTRAL_V1))
    scores = {pieces.id_to_piece(number): pieces.get_score(number) for number in range(len(pieces))}
    vocabulary = {piece: number for number, piece in enumerate(scores)}
    # By score: transformers' own reading of the file merges by id, which tokenises runs of blanks differently.
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=generate_merges(vocabulary, scores))
    tokenizer.chat_template = convert_tokenizer_to_chat_template(MISTRAL_V1)
    tokenizer.save_pretrained(folder)
    return source.open_tokenizer(folder)
