"""A tiny random Qwen2.5-VL, pictures to show it, and what transformers itself makes of them."""

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from models.picture import Picture

START, PAD, END = MARKS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n"
    "{% if turn.content is string %}{{ turn.content }}{% else %}{% for part in turn.content %}"
    "{% if part.type == 'image' %}" + "".join(MARKS) + "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def config(vocabulary: int, pad: int = 3, hidden: int = 64) -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        text_config={
            "hidden_size": hidden,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": vocabulary,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": hidden,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        image_token_id=pad,
        video_token_id=pad,
    )


def network(vocabulary: int, pad: int = 3) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights large enough for pictures and positions to make a difference."""
    torch.manual_seed(0)
    made: Qwen2_5_VLForConditionalGeneration = Qwen2_5_VLForConditionalGeneration(config(vocabulary, pad))
    made.eval()
    for name, weight in made.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2 if "visual" in name else 0.1)
    return made


def save(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A folder in the hub's layout. Changes the tokenizer; one added token is not special, as with Qwen's."""
    tokenizer.add_special_tokens({"extra_special_tokens": list(MARKS)}, replace_extra_special_tokens=False)
    tokenizer.add_tokens(["<tool_call>"])
    tokenizer.chat_template = TEMPLATE
    network(len(tokenizer), tokenizer.added_tokens_encoder[PAD]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def picture(rows: int, columns: int, seed: int = 0) -> Picture:
    """Of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (rows * 28, columns * 28, 3), np.uint8)
    return Picture(pixels, 28)


def logits(model: Qwen2_5_VLForConditionalGeneration, ids: list[int], pictures: list[Picture]) -> torch.Tensor:
    """[tokens, vocabulary] by transformers alone; pictures' ids are below 0."""
    pad = model.config.image_token_id
    told = torch.tensor([[pad if token < 0 else token for token in ids]])
    seen = {}
    if pictures:
        made = Qwen2VLImageProcessorPil(do_resize=False)(
            [each.pixels for each in pictures], input_data_format="channels_last", return_tensors="pt"
        )
        seen = {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
    kinds = torch.tensor([[int(token < 0) for token in ids]])
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=told, mm_token_type_ids=kinds, use_cache=False, **seen).logits[0]
    return found
