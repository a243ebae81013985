"""Measures the memory of training steps of small Video-LLMs."""

import torch

from moss_vllm.training.alive import AliveBytes
from moss_vllm.vlm.loss import AnswerLoss


def measure(model, inputs, *, half):
    """Bytes that one step's forward pass leaves, and the peak of the next step, all weights counted."""
    objective = AnswerLoss(model, torch.bfloat16 if half else None)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    given = [*model.parameters(), *model.buffers(), *inputs.values()]
    for _ in range(2):
        always = sum(t.nbytes for t in given)
        always += sum(t.nbytes for state in optimizer.state.values() for t in state.values())
        with AliveBytes(*given, *(t for state in optimizer.state.values() for t in state.values())) as alive:
            loss = objective(**inputs)
            left = alive.now
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        del loss
    return left, always + alive.peak
