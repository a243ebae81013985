"""A VideoLLaMA3 of a few million parameters, of transformers' own classes, with a tokenizer of our own.

It reads frames of 84 pixels (6 x 6 patches, 3 x 3 tokens) and answers in words. `build` makes it with random
weights, `experiments/make_miniature.py` pre-trains it on appearance; the result is vlm/weights/miniature.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)

# The settings of its MOSS: a window of +-2 frames and +-2 patches on a 6 x 6 grid.
MINIATURE_MOSS = {
    "moss_window": (5, 5, 5),
    "moss_d_hidden": 32,
    "moss_d_similarity": 32,
    "moss_d_fuse": 64,
}

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>")
# Qwen2's splitting rule: words with their leading space, single digits, punctuation, line breaks.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n"
    "{%- if message.content is string -%}{{ '\n' + message.content }}{%- else -%}{{ '\n' }}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'video' -%}<|video_pad|>{{ '\n' }}"
    "{%- elif part.type == 'image' -%}<|image_pad|>{{ '\n' }}"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}<|im_end|>{{ '\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"
)


def build_tokenizer(corpus: Iterable[str], vocabulary: int = 768) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the splitting rule of Qwen2, trained on `corpus`; it can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=4096,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> VideoLlama3Processor:
    """VideoLLaMA3's processor with `tokenizer` and a conversation template."""
    return VideoLlama3Processor(
        image_processor=VideoLlama3ImageProcessor(),
        tokenizer=tokenizer,
        video_processor=VideoLlama3VideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def build(tokenizer: PreTrainedTokenizerFast) -> VideoLlama3ForConditionalGeneration:
    """The miniature with random weights: 7 vision layers (MOSS taps the 6th) and 4 language model layers."""
    config = VideoLlama3Config(
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 7,
            "num_attention_heads": 4,
            "patch_size": 14,
            "initializer_range": 0.1,  # 1 / sqrt(width): the usual 0.02 is for widths near 1,000
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "initializer_range": 0.1,
            "bos_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=SPECIAL_TOKENS.index("<|image_pad|>"),  # the trainer numbers special tokens first
        video_token_id=SPECIAL_TOKENS.index("<|video_pad|>"),
        tie_word_embeddings=True,
    )
    model = VideoLlama3ForConditionalGeneration(config)
    model.generation_config.update(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model
