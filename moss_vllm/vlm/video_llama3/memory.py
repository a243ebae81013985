"""The memory that a training step takes, part by part, from shapes alone.

    weights, gradients, Adam  +  the clip  +  what the forward pass keeps for backward  +  one layer at work

"What the forward pass keeps" counts tensor by tensor, for transformers' Qwen2 with peft's LoRA, the projector
and MOSS. For small models on a CPU it is within 2 % of the memory alive after the forward pass, and the total
is 0 to 12 % above a step's peak (`tests/vlm/test_memory.py`). No GPU was measured. Leave room for what is not
counted:

- the CUDA context, cuBLAS and cuDNN workspaces, NCCL's buffers, and memory that the caching allocator cannot
  reuse;
- temporaries inside one kernel, and differences between attention kernels: "sdpa" is counted as a fused
  kernel that keeps no scores (without one, memory grows with the square of the tokens);
- the weights that ZeRO-3 gathers (the whole encoder, when it has MOSS), any stage's buckets, offloading;
- frozen weights in 4 bits;
- LoRA dropout, which keeps one more copy of each LoRA input.

Token compression leaves fewer tokens; the estimate is the upper bound without it. Several GPUs were not
measured: the division by `processes` follows the ZeRO paper.
"""

from typing import Any

import torch
from transformers import PretrainedConfig

from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.vlm.memory import Memory
from moss_vllm.vlm.video_llama3.model import MossVideoLlama3VisionConfig

MERGE = 2  # width and height of a video token in patches, by VideoLLaMA3's processor
TIME_TOKENS = 9  # of ",Time 12.5s:" before each frame
LORA_LINEARS = 7  # of a decoder layer
ATTENTION = ("sdpa", "flash_attention_2")


def estimate_training_memory(
    config: PretrainedConfig,
    *,
    lora_rank: int,
    frames: int,
    height_px: int,
    width_px: int,
    text_tokens: int,
    batch_size: int,
    precision: str,
    checkpoint_llm: bool,
    trained_parameters: int,
    frozen_parameters: int,
    attention: str = "sdpa",
    frozen_dtype: torch.dtype = torch.float32,
    processes: int = 1,
    zero_stage: int = 0,
    fused_stss: bool = True,
) -> Memory:
    """Memory of one process in a training step of VideoLLaMA3 with LoRA, by `vlm.loss.AnswerLoss`.

    Args:
        config: of the base model, with or without MOSS.
        lora_rank: on all linear layers of the language model.
        frames: of each clip.
        height_px, width_px: of a frame, multiples of 28.
        text_tokens: of question and answer of one clip, all counted as answer. The frames' time stamps are
            counted apart.
        batch_size: clips per process and micro-batch. Several clips are padded: with attention "sdpa" every
            layer then keeps a mask of tokens x tokens.
        precision: "fp32", "bf16" or "fp16"; the last two are autocast. What trains is float32 in each.
        checkpoint_llm: the language model's layers are computed again in backward.
        trained_parameters: LoRA, projector and MOSS.
        frozen_parameters: all others, with peft's frozen originals of projector and MOSS.
        attention: "sdpa" or "flash_attention_2".
        frozen_dtype: of the frozen weights. Autocast copies each float32 weight to half precision and keeps
            the copy for backward.
        processes: the number over which ZeRO divides.
        zero_stage: 0 (DDP) to 3.
        fused_stss: MOSS's similarities are computed by the GPU kernel, which does not store them.

    Raises:
        ValueError: a size that is not a multiple of 28, or another precision, attention, type or stage.
    """
    _check(height_px, width_px, precision, attention, frozen_dtype, zero_stage)
    half = AUTOCAST[precision] is not None
    working, frozen = 2 if half else 4, frozen_dtype.itemsize
    vision, text = config.vision_config, config.text_config
    patches = batch_size * frames * (height_px // vision.patch_size) * (width_px // vision.patch_size)
    video_tokens = patches // MERGE**2
    length = video_tokens // batch_size + frames * TIME_TOKENS + text_tokens
    tokens = batch_size * length

    masked = batch_size > 1 and attention == "sdpa"
    layer = layer_kept(text, batch_size, length, lora_rank, working, masked=masked)
    layer_casts = layer_cast_weights(text, lora_rank, frozen) if half else 0
    # Recomputation needs the input of each layer; the embeddings are the input of the first.
    inputs = (text.num_hidden_layers + 1) * tokens * text.hidden_size * frozen
    kept = inputs if checkpoint_llm else text.num_hidden_layers * layer
    casts = 0 if checkpoint_llm else text.num_hidden_layers * layer_casts
    ends = (
        tokens * (4 * text.hidden_size + 4) + 2 * length * _head_size(text) * frozen
    )  # last norm, positions
    head_cast = text.hidden_size * text.vocab_size * 2 if half and frozen == 4 else 0
    projector = text.hidden_size * (vision.hidden_size + text.hidden_size)
    has_moss = isinstance(vision, MossVideoLlama3VisionConfig)

    # Stage 1 divides Adam's states and a float32 copy of what trains; 2 also gradients; 3 also all weights.
    states, gradients, weights = (processes if zero_stage >= stage else 1 for stage in (1, 2, 3))
    master = trained_parameters * 4 // processes if zero_stage else 0
    buckets = 2 if processes > 1 and not zero_stage else 1  # DDP's are as large as the gradients
    return Memory(
        frozen_weights=frozen_parameters * frozen // weights,
        trained_weights=trained_parameters * 4 // weights + master,
        gradients=trained_parameters * 4 * buckets // gradients,
        adam_states=trained_parameters * 8 // states,
        pixels=patches * vision.num_channels * vision.patch_size**2 * 4,
        language_model=kept + ends + (batch_size * length**2 if masked else 0),
        cast_weights=casts + head_cast + (2 * projector if half else 0),
        moss=moss_kept(vision, patches, working, fused=fused_stss) if has_moss else 0,
        projector=video_tokens * working * (vision.hidden_size + 2 * text.hidden_size),
        # log-softmax and its gradient in float32; in half precision, also logits and their gradient.
        logits=batch_size * text_tokens * text.vocab_size * (10 if half else 8),
        # Measured: two gradients of the MLP's width, and what recomputation makes again.
        layer_at_work=8 * tokens * text.intermediate_size + (layer + layer_casts if checkpoint_llm else 0),
        encoder_at_work=encoder_at_work(vision, patches, working),
    )


def layer_kept(text: Any, clips: int, length: int, rank: int, working: int, *, masked: bool) -> int:
    """Bytes that a decoder layer of Qwen2 keeps for backward, with LoRA on its frozen linear layers.

    Args:
        text: the language model's config.
        clips: in the batch.
        length: tokens of a clip.
        rank: of LoRA.
        working: bytes of an activation.
        masked: SDPA gets clips of different lengths.
    """
    width, inner = text.hidden_size, text.intermediate_size
    query = text.num_attention_heads * _head_size(text)
    key = query if masked else text.num_key_value_heads * _head_size(text)
    attention = 2 * query + 2 * key  # q, k, v, output
    # A frozen linear layer keeps no input, but its LoRA does. In float32 q, k and v share one input, gate and
    # up another, and o's input is attention's output; autocast makes a copy for each.
    lora = 2 * width + inner if working == 4 else 5 * width + query + inner
    gated = 3 * inner  # gate, silu(gate), up
    norms = 2 * (4 * width + 4)  # each norm's input in float32, and 1 / rms
    softmax = 4 * text.num_attention_heads  # logsumexp
    token = norms + softmax + working * (attention + lora + LORA_LINEARS * rank + gated)
    mask = clips * length**2 * working if masked else 0  # SDPA makes numbers of it in every layer
    return clips * length * token + mask


def layer_cast_weights(text: Any, rank: int, frozen: int) -> int:
    """Bytes of the half-precision copies of a decoder layer's weights that autocast makes for backward."""
    width, inner = text.hidden_size, text.intermediate_size
    query, key = text.num_attention_heads * _head_size(text), text.num_key_value_heads * _head_size(text)
    sizes = [(width, query), (width, key), (width, key), (query, width)]
    sizes += [(width, inner), (width, inner), (inner, width)]
    assert len(sizes) == LORA_LINEARS
    lora = sum(rank * (wide + high) for wide, high in sizes)
    return 2 * (lora + (sum(wide * high for wide, high in sizes) if frozen == 4 else 0))


def moss_kept(vision: Any, patches: int, working: int, *, fused: bool) -> int:
    """Bytes that MOSS keeps for backward; `core.lean` avoids keeping the others."""
    length, rows, columns = vision.moss_window
    fuse, orders = vision.moss_d_fuse, max(vision.moss_orders)
    maps = 3 * length * vision.moss_d_similarity + 2 * fuse  # BatchNorms' inputs; the output, read by two
    if fused:
        similarity = vision.moss_d_hidden * working + 4  # features, 1 / norm
    else:
        similarity = vision.moss_d_hidden * 4 + 4 + length * rows * columns * working
    norm = 8  # mean and 1 / deviation
    tapped = 2 * vision.hidden_size * working  # in the encoder's order, and as a grid
    weights = len(vision.moss_orders) * fuse * vision.hidden_size
    weights += vision.hidden_size**2 if vision.moss_input_fc else 0
    copies = 2 * weights if working == 2 else 0
    return patches * (tapped + orders * (norm + similarity + maps * working)) + copies


def encoder_at_work(vision: Any, patches: int, working: int) -> int:
    """Bytes of the frozen encoder within a layer; nothing is kept after the layer."""
    width = vision.hidden_size
    stream = width * (2 * working + 4)  # the tapped layer, the layer's input, its norm in float32
    # Rotary positions are applied in float32: q, k, v; copies of q and k; turned q; three terms of k.
    turned = width * (3 * working + (8 if working == 2 else 0) + 16)
    return patches * (stream + max(turned, 2 * vision.intermediate_size * working))


def _head_size(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def _check(
    height_px: int,
    width_px: int,
    precision: str,
    attention: str,
    frozen_dtype: torch.dtype,
    zero_stage: int,
) -> None:
    if height_px < 28 or width_px < 28 or height_px % 28 or width_px % 28:
        raise ValueError(
            f"frames of {height_px} x {width_px} pixels do not divide into video tokens; give multiples of "
            "28, such as 224 x 392"
        )
    if precision not in AUTOCAST:
        raise ValueError(f"unknown precision '{precision}'; choose one of {', '.join(AUTOCAST)}")
    if attention not in ATTENTION:
        raise ValueError(f"no estimate for attention '{attention}'; choose one of {', '.join(ATTENTION)}")
    if frozen_dtype not in (torch.float32, AUTOCAST[precision]):
        raise ValueError(
            f"frozen weights in {frozen_dtype} do not go with precision '{precision}'; give float32, or the "
            "type of the precision"
        )
    if zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"zero_stage={zero_stage} does not exist; choose 0 to 3")
