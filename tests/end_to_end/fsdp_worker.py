"""One of two processes that train the tiny model under torch's FSDP2; started by test_engines.py.

accelerate wraps a model in FSDP2 on GPUs only, so the wrapping here is torch's own; saving and loading are
those of a run on GPUs.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule, fully_shard

from moss_vllm.core.moss import checkpoint_moss
from moss_vllm.data.rows import CAPTION_PROMPT, Turn
from moss_vllm.training import engines, held_out, run_state
from moss_vllm.training.optim import parameter_groups
from moss_vllm.training.step import check_every_gradient, watch
from moss_vllm.video.clip import Clip
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import attach_lora, trained_state
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.conversation import IGNORED
from moss_vllm.vlm.families import VIDEO_LLAMA3
from moss_vllm.vlm.loss import AnswerLoss
from moss_vllm.vlm.places import base_record
from moss_vllm.vlm.processor import load_processor
from moss_vllm.vlm.video_llama3.chat import collate, encode

WRAPPED = ("Qwen2DecoderLayer", "VideoLlama3VisionEncoderLayer")  # as recipes/configs/accelerate_fsdp2.yaml


def main(base: str, out: Path, steps: int, resume: Path | None, dtype: torch.dtype | None) -> None:
    """Train from step 0, or from what `resume` holds; write losses, trained weights and the state."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.FSDP,
        process_index=rank,
        num_processes=dist.get_world_size(),
        is_fsdp2=True,
        device=torch.device("cpu"),
        reduce=lambda value, how: (dist.all_reduce(value), value)[1],
    )
    processor = load_processor(base)
    torch.manual_seed(0)
    moss = base_record(base)["moss"]
    model = attach_lora(load_base(base, moss=moss, dtype=dtype), rank=4, alpha=4, dropout=0.0)
    parameter_groups(model, VIDEO_LLAMA3.rates)
    if resume:
        checkpoint.restore_trained(resume, model)
    checkpoint_moss(model, dtype is not None)
    objective = AnswerLoss(model, dtype)
    for module in model.modules():
        if type(module).__name__ in WRAPPED:
            fully_shard(module)
    fully_shard(objective)
    groups = parameter_groups(model, VIDEO_LLAMA3.rates)  # sharding replaces parameters
    assert isinstance(objective, FSDPModule)
    optimizer = SimpleNamespace(optimizer=torch.optim.AdamW(groups))
    named: dict[str, list[torch.nn.Parameter]] = {}
    for group in groups:
        named.setdefault(group["name"], []).extend(group["params"])
    first = json.loads((resume / "losses.json").read_text()) if resume else []
    if resume:
        run_state.load_state(accelerator, objective, optimizer, resume / "state")
    losses, norms = list(first), {}
    unreached, hooks = watch({f"{group} {i}": p for group, its in named.items() for i, p in enumerate(its)})
    for step in range(len(first), steps):
        # Clips of other sizes on each process: MOSS runs a different number of times.
        batch = clips(processor, step * 2 + rank, sizes=1 + rank)
        answers = torch.tensor(float((batch["labels"][:, 1:] != IGNORED).sum()))
        dist.all_reduce(answers)
        loss = objective(**batch)
        engines.backward(accelerator, objective, loss / answers, last=True)
        if step == len(first):
            check_every_gradient(unreached, hooks)
        norm, norms = engines.step(
            accelerator, objective, optimizer.optimizer, named, clip_norm=1.0, by_group=True
        )
        total = loss.detach() / answers
        dist.all_reduce(total)
        losses.append(float(total))
    state = engines.full_state(accelerator, model, lambda: trained_state(model))
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        checkpoint.save(out, model, processor, {"moss": moss}, state=state)
        (out / "losses.json").write_text(json.dumps(losses))
        (out / "norms.json").write_text(json.dumps(norms))
        save_file(state, out / "state.safetensors")
    loop = SimpleNamespace(batch_size=1, workers=0, seed=0)
    found = held_out.measure(accelerator, objective, Unseen(processor), loop, lambda: False)
    assert found is not None and objective.training
    after = engines.full_state(accelerator, model, lambda: trained_state(model))
    assert all(torch.equal(after[name], state[name]) for name in state)
    if rank == 0:
        (out / "held_out.json").write_text(json.dumps([found.loss, found.rows, found.terms]))
    dist.barrier()
    run_state.save_state(accelerator, objective, optimizer, out / "state")
    dist.destroy_process_group()
    engines.release_threads()


class Unseen:
    """Three rows for two processes, one at a time: the second process's last batch is empty."""

    shares = ((3, 1.0),)

    def __init__(self, processor) -> None:
        self.processor = processor

    def __getitem__(self, index: int) -> int:
        return index

    def name(self, index: int) -> str:
        """The row in words."""
        return str(index)

    def collate(self, rows: list[int]) -> dict:
        """The clip of the row, or one without labels."""
        batch = clips(self.processor, 100 + sum(rows), sizes=1)
        if not rows:
            batch["labels"].fill_(IGNORED)
        count = int((batch["labels"][:, 1:] != IGNORED).sum())
        return {**batch, "row_ids": list(map(str, rows)), "rejected": [], "count": count, "read": 1}


def clips(processor, seed: int, *, sizes: int) -> dict[str, torch.Tensor]:
    """A batch of one clip of each of `sizes` sizes."""
    examples = []
    for number in range(sizes):
        rng = np.random.default_rng([seed, number])
        pixels = rng.integers(0, 256, (3, 56, 56 + 28 * number, 3), np.uint8)
        clip = Clip(pixels, np.arange(3) / 2)
        examples.append(encode(processor, clip, [Turn(CAPTION_PROMPT, "The red circle moves left.")]))
    return collate(examples, pad_id=processor.tokenizer.pad_token_id)


if __name__ == "__main__":
    base, out, steps, resume, kind = sys.argv[1:]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main(
        base,
        Path(out),
        int(steps),
        None if resume == "no" else Path(resume),
        torch.bfloat16 if kind == "bf16" else None,
    )
