"""One training step and one answer of a released size with random weights, beside the dry run's estimate.

    python experiments/family_step.py qwen3_vl_2b                       # bf16 on this machine's CPU, minutes
    python experiments/family_step.py qwen2_5_vl_3b --seconds 2 --json benchmarks/results/step.json

The classes, the processor's class, MOSS with the paper's sizes, LoRA and the optimizer are the recipe's; only
the words of the tokenizer are few, as the released ones are on the hub. The clip is noise. Seconds are of one
step and of one answer, once each; bytes are those of all tensors alive at the most, and of the process.
"""

import platform
import resource
import time
from pathlib import Path
from typing import Any

from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import FROM_ONE, POSITIVE
from moss_vllm.runtime.screen import say, working

OF_FAMILIES = ("qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen3_vl_2b", "qwen3_vl_4b", "smolvlm2_2_2b")


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("shape", choices=OF_FAMILIES, metavar="SHAPE", help=f"of {', '.join(OF_FAMILIES)}")
    parser.add_argument("--seconds", type=POSITIVE, default=2.0, metavar="S", help="length of the clip")
    parser.add_argument("--lora-rank", type=FROM_ONE, default=16, help="rank of LoRA")
    parser.add_argument("--new-tokens", type=FROM_ONE, default=8, help="tokens of the answer")
    parser.add_argument("--json", type=Path, help="file of the numbers")
    return parser


if __name__ == "__main__":
    answer_help(options)

import numpy as np
import torch
from measuring import prepare_json, write_json
from tiny_processors import TINY_PROCESSORS, tiny_processor

from moss_vllm.data.rows import CAPTION_PROMPT, Turn
from moss_vllm.evaluation.answering import answer, prepare_prompts
from moss_vllm.runtime.versions import versions
from moss_vllm.training.alive import AliveBytes
from moss_vllm.training.optim import parameter_groups
from moss_vllm.training.step_memory import GIB
from moss_vllm.video.clip import Clip
from moss_vllm.vlm.adapter import attach_lora, choose_rates
from moss_vllm.vlm.checkpoint import Loaded
from moss_vllm.vlm.conversation import IGNORED
from moss_vllm.vlm.families import family_of
from moss_vllm.vlm.loss import AnswerLoss
from moss_vllm.vlm.settings import STEPS_A_SECOND
from moss_vllm.vlm.sizes import build_shape, config_of_shape, frame_of_shape

SHORT_SIDE_PX = 224  # Sec. 4.5 of the paper


@errors_in_one_line()
def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Build, train a step, answer; returns what --json has."""
    parser = options()
    args = parser.parse_args(argv)
    prepare_json(parser, args.json)
    config = config_of_shape(args.shape)
    family, kind = family_of(config), TINY_PROCESSORS[config.model_type]
    processor = tiny_processor(config.model_type)
    with working(f"drawing the weights of {args.shape}"):
        torch.manual_seed(0)
        base: Any = build_shape(args.shape, moss={}, device="cpu", dtype=torch.bfloat16)
    for module in base.modules():  # the tokenizer's ids in place of the released one's
        if hasattr(module, "config"):
            _take_tokens(module.config, processor.tokenizer, kind.tokens)
    base.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    per_step = family.frames_per_step(config)
    frames = max(1, round(args.seconds * STEPS_A_SECOND)) * per_step
    height, width = frame_of_shape(config, SHORT_SIDE_PX)
    noise = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)
    clip = Clip(noise, np.arange(frames) / (STEPS_A_SECOND * per_step))

    model = attach_lora(base, rank=args.lora_rank, alpha=args.lora_rank, dropout=0.0)
    groups = parameter_groups(model, choose_rates(base))
    optimizer = torch.optim.AdamW(groups)
    turns = [Turn(CAPTION_PROMPT, "The red circle moves left.")]
    example = family.chat.encode(processor, clip, turns)
    batch = family.chat.collate([example], pad_id=processor.tokenizer.pad_token_id)
    words = int((batch["labels"] != IGNORED).sum())
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    assert family.estimate_memory
    estimate = family.estimate_memory(
        base.config,
        lora_rank=args.lora_rank,
        frames=frames,
        height_px=height,
        width_px=width,
        text_tokens=words,
        batch_size=1,
        precision="bf16",
        checkpoint_llm=False,
        trained_parameters=trained,
        frozen_parameters=sum(parameter.numel() for parameter in model.parameters()) - trained,
        frozen_dtype=torch.bfloat16,
        fused_stss=False,
    )
    say(f"{batch['input_ids'].shape[1]} tokens of {frames} frames of {height} x {width}")
    weights = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
    objective = AnswerLoss(model.train(), torch.bfloat16)
    started = time.perf_counter()
    with working("a training step"), AliveBytes(*model.parameters(), *model.buffers()) as alive:
        loss = objective(**batch)
        forward_s = time.perf_counter() - started
        loss.backward()
        optimizer.step()
    step_s = time.perf_counter() - started
    optimizer.zero_grad()
    last = [p for name, p in model.named_parameters() if ".moss." in name and "out_proj" in name]
    moved = any(bool(p.detach().any()) for p in last if p.requires_grad)

    loaded = Loaded(model.eval(), processor, args.shape, {})
    started = time.perf_counter()
    with working("an answer"):
        prompts = prepare_prompts(processor, clip, ["What moves?"], compress=False)
        (answers,) = answer(loaded, [prompts], max_new_tokens=args.new_tokens, batch_size=1)
    record = {
        "shape": args.shape,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, no GPU",
        "versions": versions(),
        "clip": {"frames": frames, "height_px": height, "width_px": width},
        "tokens": batch["input_ids"].shape[1],
        "loss_per_token": float(loss.detach()) / words,
        "last_layers_of_moss_moved": moved,
        "forward_s": forward_s,
        "step_s": step_s,
        "answer_s": time.perf_counter() - started,
        "answer_tokens": args.new_tokens,
        "peak_gib": (weights + alive.peak) / GIB,
        "process_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        "estimated_gib": estimate.total / GIB,
    }
    for name in ("forward_s", "step_s", "answer_s", "peak_gib", "process_peak_gib", "estimated_gib"):
        say(f"{name}: {record[name]:.4g}")
    write_json(args.json, record)
    return record


def _take_tokens(config: Any, tokenizer: Any, tokens: dict[str, str]) -> None:
    for name, token in tokens.items():
        if hasattr(config, name):
            setattr(config, name, tokenizer.convert_tokens_to_ids(token))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if hasattr(config, name):
            setattr(config, name, getattr(tokenizer, name))


if __name__ == "__main__":
    main()
