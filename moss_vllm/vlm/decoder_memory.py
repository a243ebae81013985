"""The memory of a training step, as far as all families share it: from decoder layers with LoRA to Adam.

    weights, gradients, Adam  +  the clip  +  what the forward pass keeps for backward  +  one layer at work

"What the forward pass keeps" counts tensor by tensor, for transformers' decoder layers of Qwen2, Qwen2.5-VL,
Qwen3-VL and Llama with peft's LoRA; what comes before them each family counts for itself, as `Clips`. For
small models on a CPU the sum is within 2 % of the memory alive after the forward pass, and the total is 0 to
13 % above a step's peak (`tests/vlm/test_memory.py`, `tests/vlm/test_host_memory.py`). No GPU was measured.
Leave room for what is not counted:

- the CUDA context, cuBLAS and cuDNN workspaces, NCCL's buffers, and memory that the caching allocator cannot
  reuse;
- temporaries inside one kernel, and differences between attention kernels: "sdpa" is counted as a fused
  kernel that keeps no scores (without one, memory grows with the square of the tokens);
- the weights that ZeRO-3 gathers (the whole encoder, when it has MOSS), any stage's buckets, offloading;
- frozen weights in 4 bits;
- what Adam makes while it changes the weights, as activations are gone by then: on a GPU 4 bytes for each
  number that trains.

Several GPUs were not measured: the division by `processes` follows the ZeRO paper.
"""

from dataclasses import dataclass
from typing import Any

import torch

from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.vlm.lean_decoder import tokens_at_once
from moss_vllm.vlm.memory import Memory

LORA_LINEARS = 7  # of a decoder layer
COUNTED_ATTENTION = ("sdpa", "flash_attention_2")
WITH_QUERY_NORMS = ("qwen3", "qwen3_vl_text")  # text models whose queries and keys go through an RMSNorm


@dataclass(frozen=True)
class Clips:
    """What the clips of a batch take before the language model: sizes, and bytes kept for backward by part.

    Args:
        clips: of the batch.
        length: tokens of a clip, its text and time stamps included.
        pixels: of the input.
        moss: of MOSS.
        projector: of all between tower and language model.
        projector_weights: numbers, not bytes, of the linear layers of the projector, which autocast copies.
        positions: numbers of the cosines and sines that all layers share.
        encoder_at_work: at the most within the frozen tower, of which nothing is kept.
    """

    clips: int
    length: int
    pixels: int
    moss: int
    projector: int
    projector_weights: int
    positions: int
    encoder_at_work: int


def step_memory(
    text: Any,
    clips: Clips,
    *,
    lora_rank: int,
    text_tokens: int,
    precision: str,
    checkpoint_llm: bool,
    trained_parameters: int,
    frozen_parameters: int,
    attention: str,
    frozen_dtype: torch.dtype,
    processes: int,
    zero_stage: int,
    mask_bytes: int,
) -> Memory:
    """Memory of one process in a training step with LoRA, by `vlm.loss.AnswerLoss`.

    Args:
        text: the language model's config.
        clips: of the batch.
        lora_rank, text_tokens, precision, checkpoint_llm, trained_parameters, frozen_parameters, attention,
            frozen_dtype, processes, zero_stage, mask_bytes: as for
            `vlm.video_llama3.memory.estimate_training_memory`.
    """
    half = AUTOCAST[precision] is not None
    working, frozen = 2 if half else 4, frozen_dtype.itemsize
    tokens = clips.clips * clips.length
    masked = clips.clips > 1 and attention == "sdpa"
    how: dict[str, Any] = {"masked": masked, "lean": not checkpoint_llm, "mask_bytes": mask_bytes}
    layer = layer_kept(text, clips.clips, clips.length, lora_rank, working, frozen, **how)
    layer_casts = layer_cast_weights(text, lora_rank, frozen) if half else 0
    # Recomputation needs the input of each layer; the embeddings are the input of the first.
    inputs = (text.num_hidden_layers + 1) * tokens * text.hidden_size * frozen
    kept = inputs if checkpoint_llm else text.num_hidden_layers * layer
    casts = 0 if checkpoint_llm else text.num_hidden_layers * layer_casts
    ends = tokens * (4 * text.hidden_size + 4) + clips.positions * frozen  # last norm, positions
    mask = clips.clips * clips.length**2 if masked else 0
    head_cast = text.hidden_size * text.vocab_size * 2 if half and frozen == 4 else 0

    # Stage 1 divides Adam's states and a float32 copy of what trains; 2 also gradients; 3 also all weights.
    states, gradients, weights = (processes if zero_stage >= stage else 1 for stage in (1, 2, 3))
    master = trained_parameters * 4 // processes if zero_stage else 0
    buckets = 2 if processes > 1 and not zero_stage else 1  # DDP's are as large as the gradients
    answered = clips.clips * text_tokens
    at_once = answered if zero_stage == 3 else min(answered, tokens_at_once(text.vocab_size))
    return Memory(
        frozen_weights=frozen_parameters * frozen // weights,
        trained_weights=trained_parameters * 4 // weights + master,
        gradients=trained_parameters * 4 * buckets // gradients,
        adam_states=trained_parameters * 8 // states,
        pixels=clips.pixels,
        language_model=kept + ends + mask,
        cast_weights=casts + head_cast + (2 * clips.projector_weights if half else 0),
        moss=clips.moss,
        projector=clips.projector,
        # log-softmax and its gradient in float32; in half precision, also logits and their gradient.
        logits=at_once * text.vocab_size * (10 if half else 8),
        # Measured: two gradients of the MLP's width; a lean MLP makes one tensor of that width again, a layer
        # that is checkpointed all that it keeps.
        layer_at_work=tokens * text.intermediate_size * working * (2 if checkpoint_llm else 3)
        + (layer + layer_casts if checkpoint_llm else 0),
        encoder_at_work=clips.encoder_at_work,
    )


def layer_kept(
    text: Any,
    clips: int,
    length: int,
    rank: int,
    working: int,
    frozen: int,
    *,
    masked: bool,
    lean: bool = True,
    mask_bytes: int = 0,
) -> int:
    """Bytes that a decoder layer keeps for backward, with LoRA on its frozen linear layers.

    Args:
        text: the language model's config.
        clips: in the batch.
        length: tokens of a clip.
        rank: of LoRA.
        working: bytes of an activation.
        frozen: bytes of a frozen weight.
        masked: SDPA gets clips of different lengths.
        lean: within `lean_mlps`, and not checkpointed.
        mask_bytes: of a number in the masks of LoRA's dropout; 0 without dropout.
    """
    width, inner = text.hidden_size, text.intermediate_size
    query, own_key = text.num_attention_heads * head_size(text), text.num_key_value_heads * head_size(text)
    key = query if masked else own_key  # SDPA with a mask repeats keys and values for every head
    attention = 2 * query + 2 * key  # q, k, v, output
    # A frozen linear layer keeps no input, but its LoRA does. q, k and v share one, gate and up another, and
    # o's is attention's output; of what frozen float32 norms return, autocast makes a copy for each.
    lora = working * (2 * width if working == 4 or frozen == 2 else 5 * width)
    gated = (2 if lean else 4) * inner  # gate and up; silu(gate) and the product
    if mask_bytes:  # each LoRA keeps its own dropped input and its mask; that of `down` replaces the product
        lora = (working + mask_bytes) * (5 * width + query + inner)
        gated = (2 if lean else 3) * inner
    norms = 2 * (4 * width + 4)  # each norm's input in float32, and 1 / rms
    if text.model_type in WITH_QUERY_NORMS:
        norms += 4 * (query + own_key) + 4 * (text.num_attention_heads + text.num_key_value_heads)
    softmax = 4 * text.num_attention_heads  # logsumexp
    token = norms + softmax + lora + working * (attention + LORA_LINEARS * rank + gated)
    mask = clips * length**2 * working if masked else 0  # SDPA makes numbers of it in every layer
    return clips * length * token + mask


def layer_cast_weights(text: Any, rank: int, frozen: int) -> int:
    """Bytes of the half-precision copies of a decoder layer's weights that autocast makes for backward."""
    width, inner = text.hidden_size, text.intermediate_size
    query, key = text.num_attention_heads * head_size(text), text.num_key_value_heads * head_size(text)
    sizes = [(width, query), (width, key), (width, key), (query, width)]
    sizes += [(width, inner), (width, inner), (inner, width)]
    assert len(sizes) == LORA_LINEARS
    lora = sum(rank * (wide + high) for wide, high in sizes)
    return 2 * (lora + (sum(wide * high for wide, high in sizes) if frozen == 4 else 0))


def moss_kept(
    vision: Any,
    width: int,
    cells: int,
    working: int,
    *,
    tapped: int,
    fused: bool,
    checkpointing: bool = False,
) -> int:
    """Bytes that MOSS keeps for backward, 0 without MOSS; `core.lean` avoids keeping the others.

    Args:
        vision: the tower's config, with the `moss_*` fields if it has MOSS.
        width: channels of the tapped layer.
        cells: of all grids, frames times rows times columns.
        working: bytes of an activation.
        tapped: bytes of a channel of the tapped layer, in the encoder's order, as a grid and in copies.
        fused: similarities are computed by the GPU kernel, which keeps features as they are, not in float32.
        checkpointing: of MOSS.
    """
    if not has_moss(vision):
        return 0
    length = vision.moss_window[0]
    fuse, orders = vision.moss_d_fuse, max(vision.moss_orders)
    maps = 3 * length * vision.moss_d_similarity + 2 * fuse  # BatchNorms' inputs; the output, read by two
    similarity = vision.moss_d_hidden * (working if fused else 4) + 4  # features, 1 / norm
    norm = 8  # mean and 1 / deviation
    order = fuse * working if checkpointing else norm + similarity + maps * working
    weights = len(vision.moss_orders) * fuse * width
    weights += width**2 if vision.moss_input_fc else 0
    copies = 2 * weights if working == 2 else 0
    return cells * (width * tapped + orders * order) + copies


def has_moss(vision: Any) -> bool:
    """Whether the config of a tower describes a MOSS."""
    return hasattr(vision, "moss_window")


def head_size(text: Any) -> int:
    """Channels of an attention head."""
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def check_step(
    height_px: int,
    width_px: int,
    multiple_px: int,
    precision: str,
    attention: str,
    frozen_dtype: torch.dtype,
    zero_stage: int,
) -> None:
    """ValueError for a size that is not a multiple, or another precision, attention, type or stage."""
    if min(height_px, width_px) < multiple_px or height_px % multiple_px or width_px % multiple_px:
        raise ValueError(
            f"frames of {height_px} x {width_px} pixels do not divide into video tokens; give multiples of "
            f"{multiple_px}, such as {8 * multiple_px} x {14 * multiple_px}"
        )
    if precision not in AUTOCAST:
        raise ValueError(f"unknown precision '{precision}'; choose one of {', '.join(AUTOCAST)}")
    if attention not in COUNTED_ATTENTION:
        raise ValueError(
            f"no estimate for attention '{attention}'; choose one of {', '.join(COUNTED_ATTENTION)}"
        )
    if frozen_dtype not in (torch.float32, AUTOCAST[precision]):
        raise ValueError(
            f"frozen weights in {frozen_dtype} do not go with precision '{precision}'; give float32, or the "
            "type of the precision"
        )
    if zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"zero_stage={zero_stage} does not exist; choose 0 to 3")
