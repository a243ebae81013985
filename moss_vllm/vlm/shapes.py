"""The sizes of released Video-LLMs, for which `vlm/sizes.py` builds models without weights."""

from typing import Any

_SIGLIP = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14}
_SIGLIP |= {"intermediate_size": 4304}
_QWEN2 = {
    "model_type": "qwen2",
    "num_hidden_layers": 28,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
_VIDEO_LLAMA3 = {"model_type": "video_llama_3", "vision_config": _SIGLIP}
_QWEN25_VISION = {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16}
_QWEN25_TEXT = {
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
_QWEN3_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "depth": 24,
    "num_heads": 16,
    "patch_size": 16,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
}
_QWEN3_TEXT = {
    "head_dim": 128,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 262144,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
}
SHAPES: dict[str, dict[str, Any]] = {
    "2b": {
        **_VIDEO_LLAMA3,
        "text_config": {
            **_QWEN2,
            "hidden_size": 1536,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "intermediate_size": 8960,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        "tie_word_embeddings": True,
    },
    "7b": {
        **_VIDEO_LLAMA3,
        "text_config": {
            **_QWEN2,
            "hidden_size": 3584,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
        "tie_word_embeddings": False,
    },
    "qwen2_5_vl_3b": {
        "model_type": "qwen2_5_vl",
        "vision_config": {**_QWEN25_VISION, "out_hidden_size": 2048},
        "text_config": {
            **_QWEN25_TEXT,
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "intermediate_size": 11008,
            "vocab_size": 151936,
        },
        "tie_word_embeddings": True,
    },
    "qwen2_5_vl_7b": {
        "model_type": "qwen2_5_vl",
        "vision_config": {**_QWEN25_VISION, "out_hidden_size": 3584},
        "text_config": {
            **_QWEN25_TEXT,
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152064,
        },
        "tie_word_embeddings": False,
    },
    "qwen3_vl_2b": {
        "model_type": "qwen3_vl",
        "vision_config": {**_QWEN3_VISION, "out_hidden_size": 2048},
        "text_config": {
            **_QWEN3_TEXT,
            "hidden_size": 2048,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "intermediate_size": 6144,
        },
        "tie_word_embeddings": True,
    },
    "qwen3_vl_4b": {
        "model_type": "qwen3_vl",
        "vision_config": {**_QWEN3_VISION, "out_hidden_size": 2560},
        "text_config": {
            **_QWEN3_TEXT,
            "hidden_size": 2560,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "intermediate_size": 9728,
        },
        "tie_word_embeddings": True,
    },
    "smolvlm2_2_2b": {
        "model_type": "smolvlm",
        "vision_config": {**_SIGLIP, "image_size": 384},
        "text_config": {
            "model_type": "llama",
            "hidden_size": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "intermediate_size": 8192,
            "vocab_size": 49280,
            "max_position_embeddings": 8192,
            "pad_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 130000.0},
        },
        "scale_factor": 3,
        "image_token_id": 49190,
        "tie_word_embeddings": False,
    },
}
"""Arguments of the config, model_type among them, by name; "2b" and "7b" are VideoLLaMA3's.

VideoLLaMA3: the vision encoder of both is SigLIP so400m with patches of 14 pixels
(google/siglip-so400m-patch14-384), with rotary positions in place of the learned ones. The language models
are Qwen2.5-1.5B and Qwen2.5-7B, with the sizes in the config.json of Qwen/Qwen2.5-1.5B-Instruct and
Qwen/Qwen2.5-7B-Instruct; the released VideoLLaMA3 checkpoints were not read, and one with a resized
vocabulary has other numbers of embedding rows.

The other checkpoints were not read either, but with these sizes each model has exactly the number of
parameters that people who opened it report (`tests/vlm/test_sizes.py`). Seen in copies of a config.json or of
a printed model: Qwen2.5-VL-3B's language model, Qwen2.5-VL-7B whole, Qwen3-VL-2B whole, the tower of
Qwen3-VL-4B with width and depth of its language model. From memory, and confirmed by the number of parameters
alone: heads and MLP of Qwen3-VL-4B, and SmolVLM2, where it cannot tell the number of heads, rope_theta,
max_position_embeddings and the numbers of tokens.
"""
