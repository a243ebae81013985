"""A Qwen2.5-VL of a few million parameters, of transformers' own classes: the second miniature.

It reads frames of 84 pixels in steps of two (6 x 6 patches, 3 x 3 tokens a step) and answers in words. Its
language model has the sizes of the first miniature's, and its tokenizer all the same tokens.
`experiments/make_miniature.py --family qwen2_5_vl` takes over what the first has learned and pre-trains the
encoder on appearance; the result is vlm/weights/miniature_qwen2_5_vl.
"""

from tokenizers import Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from moss_vllm.data.world.scenes import FRAME_PX
from moss_vllm.vlm.video_llama3.miniature import SPECIAL_TOKENS

# The tokens that the first miniature's tokenizer lacks: they enclose a picture or a video.
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>")
PIXELS = {
    "image_mean": [0.5] * 3,  # these two as the first miniature's
    "image_std": [0.5] * 3,
    "size": {"shortest_edge": FRAME_PX**2, "longest_edge": 64 * FRAME_PX**2},  # square pixels of a frame
}

# Qwen2.5-VL's layout, without the system turn that its published template opens every conversation with.
QWEN_TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }}{{ '\n' }}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}<|im_end|>{{ '\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"
)


def add_vision_tokens(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The first miniature's `tokenizer` again, with `VISION_TOKENS` behind all the others."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        additional_special_tokens=[*SPECIAL_TOKENS[1:], *VISION_TOKENS],
        model_max_length=tokenizer.model_max_length,
    )


def build_qwen_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's processor with `tokenizer` and a conversation template; it keeps frames of 84 px."""
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**PIXELS),
        tokenizer=tokenizer,
        # Where nothing is chosen, 5.23 warns that the default will change.
        video_processor=Qwen2VLVideoProcessor(**PIXELS, cap_pixels_per_frame=False),
        chat_template=QWEN_TEMPLATE,
    )


def build_qwen(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """The miniature with random weights: 7 vision blocks (MOSS taps the 2nd), 4 language model layers.

    Blocks 1, 3 and 5 attend within windows of 2 x 2 tokens, the others to a whole step. Its 3 x 3 tokens make
    four windows, three of them cut short by the border.
    """
    ids = tokenizer.get_vocab()
    start, end = (ids[token] for token in VISION_TOKENS)
    config = Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 96,
            "depth": 7,
            "num_heads": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1, 3, 5, 6],
            "tokens_per_second": 2,
            "out_hidden_size": 128,
            "initializer_range": 0.1,
        },
        text_config={
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "initializer_range": 0.1,
            "tie_word_embeddings": True,
            "bos_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.update(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model
