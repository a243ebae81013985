"""Processors of transformers' own classes for the models of tiny_hosts.py, and the two put together.

A tokenizer is byte-level BPE of a few hundred tokens with the family's special tokens; a chat template has
the family's published layout. Patches are of the sizes of the released models.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import tiny_hosts
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from moss_vllm.vlm.video_llama3.miniature import SPLIT

WORDS = (
    "What moves? The red circle moves left. Describe what is happening in the video. Which way does the blue "
    "square turn, and how fast? It turns right: A. You are a helpful assistant. user assistant system "
    "<0.2 seconds> Frame from 00:01: You are provided the following series of three frames from a video."
)
TOKENS = 420


def build_tokenizer(special: tuple[str, ...], split: Any, normalizer: Any = None, **settings: Any) -> Any:
    """Byte-level BPE that can encode any text; `special` are the first tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16_384, **settings)


def qwen_tokenizer(special: tuple[str, ...], **settings: Any) -> Any:
    """Qwen2's splitting rule and normalization."""
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", **settings}
    return build_tokenizer(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *special),
        pre_tokenizers.Sequence([split, byte_level]),
        normalizers.NFC(),
        **settings,
    )


QWEN_VISION = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
# ChatML; the video stands where it does in the message. Qwen2-VL and Qwen2.5-VL write a system turn.
FOR_MESSAGES = "{%- for message in messages -%}"
QWEN_SYSTEM = (
    "{%- if loop.first and message.role != 'system' -%}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>{{ '\n' }}{%- endif -%}"
)
QWEN_TURNS = (
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- else -%}{{ part.text }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def qwen2_vl() -> Any:
    """Qwen2-VL's."""
    return transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=qwen_tokenizer(QWEN_VISION),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=FOR_MESSAGES + QWEN_SYSTEM + QWEN_TURNS,
    )


def qwen2_5_vl() -> Any:
    """Qwen2.5-VL's."""
    return transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=qwen_tokenizer(QWEN_VISION),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=FOR_MESSAGES + QWEN_SYSTEM + QWEN_TURNS,
    )


def qwen3_vl() -> Any:
    """Qwen3-VL's."""
    return transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(patch_size=16),
        tokenizer=qwen_tokenizer(QWEN_VISION),
        video_processor=transformers.Qwen3VLVideoProcessor(),
        chat_template=FOR_MESSAGES + QWEN_TURNS,
    )


@dataclass(frozen=True)
class TinyProcessor:
    """How a processor is built, and where its model's config has the sizes and tokens that it writes.

    Args:
        build: () -> the processor.
        tokens: name of a token's id in the config -> the token.
        vision: settings of the config's vision tower.
    """

    build: Callable[[], Any]
    tokens: dict[str, str]
    vision: dict[str, Any]


QWEN_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
TINY_PROCESSORS = {
    "qwen2_vl": TinyProcessor(qwen2_vl, QWEN_TOKENS, {"patch_size": 14}),
    "qwen2_5_vl": TinyProcessor(qwen2_5_vl, QWEN_TOKENS, {"patch_size": 14, "window_size": 56}),
    "qwen3_vl": TinyProcessor(qwen3_vl, QWEN_TOKENS, {"patch_size": 16}),
}


@cache
def tiny_processor(model_type: str) -> Any:
    """The processor of a model_type; the same object for each call."""
    return TINY_PROCESSORS[model_type].build()


def fit(config: Any, model_type: str) -> Any:
    """A config of tiny_hosts.py with the vocabulary, token ids and patches of `tiny_processor`."""
    tokenizer, tiny = tiny_processor(model_type).tokenizer, TINY_PROCESSORS[model_type]
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.max_position_embeddings = tokenizer.model_max_length
    for name, token in tiny.tokens.items():
        setattr(config, name, tokenizer.convert_tokens_to_ids(token))
    for ids in (config, config.text_config):
        ids.pad_token_id, ids.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        ids.bos_token_id = tokenizer.bos_token_id
    for name, value in tiny.vision.items():
        setattr(config.vision_config, name, value)
    return config


def tiny_model(model_type: str) -> tuple[Any, Any]:
    """A random model of tiny_hosts.py, in eval mode, and the processor whose inputs it reads."""
    config = fit(getattr(tiny_hosts, model_type)(), model_type)
    return tiny_hosts.build(config), tiny_processor(model_type)


if __name__ == "__main__":
    raise SystemExit("experiments/tiny_processors.py is a part of other commands, not a command")
