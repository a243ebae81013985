"""All questions about one video for little more than the price of one.

    frames -> vision encoder -> video tokens + what all prompts begin with -> KV cache      once a video
    KV cache, copied for each question + the rest of its prompt -> answer                   questions together

Answers are those of `generate`, greedy, one question at a time. In float32 they are so token for token; in
half precision sums of another order may turn a tie.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, VideoLlama3Processor

from moss_vllm.data.chat import PER_VIDEO, Turn, conversation_text, encode
from moss_vllm.data.video import Clip
from moss_vllm.vlm.checkpoint import Loaded

STAGES = ("encode", "prefill", "answer")


@dataclass
class Prompts:
    """Questions about one video, ready for the model.

    Shape:
        ids: of each question (S,); all begin with the same video tokens. video: as from `chat.encode`.
    """

    ids: list[Tensor]
    video: dict[str, Tensor]

    @property
    def shared(self) -> int:
        """How many tokens all of them begin with; one is left for each to say."""
        first, shortest = self.ids[0], min(map(len, self.ids))
        same = torch.stack([ids[:shortest] == first[:shortest] for ids in self.ids]).all(0)
        return min(int(same.cumprod(0).sum()), shortest - 1)


@dataclass
class Answers:
    """What was said to each question; seconds of each of `STAGES`, for all of them together."""

    texts: list[str] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


def prepare(
    processor: VideoLlama3Processor, clip: Clip, questions: Sequence[str], *, compress: bool
) -> Prompts:
    """`chat.encode` for each question, but the video goes through the processor once."""
    example = encode(processor, clip, [Turn(questions[0])], compress=compress)
    token, ids = processor.video_token, example["input_ids"]
    # The tokenizer never joins a special token with text: what follows the last one stands alone.
    end = int((ids == processor.tokenizer.convert_tokens_to_ids(token)).nonzero()[-1]) + 1
    prompts = [ids]
    for question in questions[1:]:
        rest = conversation_text([Turn(question)], video_token=token).split(token, 1)[1]
        prompts.append(torch.cat([ids[:end], torch.tensor(processor.tokenizer(rest)["input_ids"])]))
    return Prompts(prompts, {key: example[key] for key in PER_VIDEO})


@torch.inference_mode()
def answer(loaded: Loaded, prompts: Prompts, *, max_new_tokens: int, batch_size: int) -> Answers:
    """Greedy answers, `batch_size` questions at a time at most."""
    said = Answers()
    for cache, ids, mask in _batches(loaded, prompts, batch_size, said):
        with _timed(said, "answer", ids.device):
            tokens = _decode(loaded, cache, ids, mask, max_new_tokens)
            said.texts += loaded.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return said


@torch.inference_mode()
def choose(loaded: Loaded, prompts: Prompts, choices: Sequence[Sequence[str]], *, batch_size: int) -> Answers:
    """The likeliest of each question's choices as the next token, with the log-likelihood of each.

    Raises: ValueError for a choice that is not one token.
    """
    tokenizer, said = loaded.processor.tokenizer, Answers()
    numbers = {choice: tokenizer(choice)["input_ids"] for some in choices for choice in some}
    if wrong := sorted(choice for choice, ids in numbers.items() if len(ids) != 1):
        raise ValueError(
            f"{', '.join(wrong)}: not one token of this tokenizer; use a protocol that generates"
        )
    left = iter(choices)
    for cache, ids, mask in _batches(loaded, prompts, batch_size, said):
        with _timed(said, "answer", ids.device):
            logits = _next_logits(loaded, cache, ids, mask, _positions(mask, ids)).log_softmax(-1).cpu()
        for row in logits:
            said.scores.append({choice: float(row[numbers[choice][0]]) for choice in next(left)})
    said.texts = [max(scores, key=scores.__getitem__) for scores in said.scores]
    return said


@dataclass
class _Continued(Prompts):
    """Prompts that end in a continuation; all of it is scored, so none of it is shared."""

    lengths: list[int]

    @property
    def shared(self) -> int:
        ends = (len(ids) - n for ids, n in zip(self.ids, self.lengths, strict=True))
        return min(super().shared, min(ends) - 1)


@torch.inference_mode()
def score(
    loaded: Loaded, prompts: Prompts, continuations: Sequence[str], *, batch_size: int
) -> list[tuple[float, bool]]:
    """Mean loss a token of each continuation after its prompt, and whether greedy decoding says it.

    Raises: ValueError for a continuation without a token.
    """
    tokens = [torch.tensor(loaded.processor.tokenizer(text)["input_ids"]) for text in continuations]
    if not all(map(len, tokens)):
        raise ValueError("a choice is empty; every choice needs a word")
    ids = [torch.cat(pair) for pair in zip(prompts.ids, tokens, strict=True)]
    whole, base = _Continued(ids, prompts.video, [len(own) for own in tokens]), _base(loaded)
    losses, left = list[tuple[float, bool]](), iter(tokens)
    for cache, rest, mask in _batches(loaded, whole, batch_size, Answers()):
        with loaded.autocast():
            hidden = base.model(
                input_ids=rest,
                attention_mask=mask,
                position_ids=_positions(mask, rest),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            for row in hidden:
                own = next(left).to(row.device)
                logits = base.lm_head(row[-len(own) - 1 : -1]).float()
                loss = F.cross_entropy(logits, own)
                losses.append((float(loss), bool((logits.argmax(-1) == own).all())))
    return losses


def _batches(
    loaded: Loaded, prompts: Prompts, size: int, said: Answers
) -> Iterator[tuple[DynamicCache, Tensor, Tensor]]:
    """A cache of the shared tokens for each batch, the rest of its prompts, and the mask over both.

    Shape:
        rest: (questions, S), padded on the left; mask: (questions, shared + S).
    """
    shared, device = prompts.shared, _base(loaded).get_input_embeddings().weight.device
    pad = loaded.processor.tokenizer.pad_token_id
    cache = _prefill(loaded, prompts, shared, device, said)
    for start in range(0, len(prompts.ids), size):
        rest = [ids[shared:] for ids in prompts.ids[start : start + size]]
        ids = pad_sequence(rest, batch_first=True, padding_value=pad, padding_side="left")
        there = pad_sequence([torch.ones_like(r) for r in rest], batch_first=True, padding_side="left")
        mask = torch.cat([torch.ones(len(rest), shared, dtype=there.dtype), there], dim=1)
        copied = copy.copy(cache) if start + size >= len(prompts.ids) else copy.deepcopy(cache)
        copied.batch_repeat_interleave(len(rest))
        yield copied, ids.to(device), mask.to(device)


def _prefill(
    loaded: Loaded, prompts: Prompts, shared: int, device: torch.device, said: Answers
) -> DynamicCache:
    base, started = _base(loaded), _now(device)
    encoded = started

    def note(*_: Any) -> None:
        nonlocal encoded
        encoded = _now(device)

    hook = base.model.projector.register_forward_hook(note)
    try:
        with loaded.autocast():
            video = {key: value.to(device) for key, value in prompts.video.items()}
            ids = prompts.ids[0][None, :shared].to(device)
            cache = base.model(input_ids=ids, **video, past_key_values=DynamicCache(), use_cache=True)
    finally:
        hook.remove()
    said.seconds["encode"] += encoded - started
    said.seconds["prefill"] += _now(device) - encoded
    return cache.past_key_values


def _decode(
    loaded: Loaded, cache: DynamicCache, ids: Tensor, mask: Tensor, max_new_tokens: int
) -> list[Tensor]:
    """New tokens of each question, with the first that ends its answer."""
    ends = torch.tensor(_end_ids(_base(loaded)), device=ids.device)
    positions, said = _positions(mask, ids), torch.empty(len(ids), 0, dtype=torch.long, device=ids.device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    while True:
        chosen = _next_logits(loaded, cache, ids, mask, positions).argmax(-1)
        said = torch.cat([said, torch.where(ended, ends[0], chosen)[:, None]], dim=1)
        ended |= torch.isin(chosen, ends)
        if bool(ended.all()) or said.shape[1] == max_new_tokens:
            return [row[: int((~torch.isin(row, ends)).cumprod(0).sum()) + 1] for row in said]
        ids, positions = said[:, -1:], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)


def _next_logits(loaded: Loaded, cache: DynamicCache, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Logits after the last token, in float32; the cache then holds these tokens as well."""
    base = _base(loaded)
    with loaded.autocast():
        hidden = base.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        return base.lm_head(hidden[:, -1]).float()


def _positions(mask: Tensor, ids: Tensor) -> Tensor:
    """Places of `ids`, the last tokens under `mask`; padding has none and gets any."""
    return (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]


def _end_ids(base: Any) -> list[int]:
    """Tokens that end an answer, as `generate` would see them."""
    ends = base.generation_config.eos_token_id
    return list(ends) if isinstance(ends, Sequence) else [ends]


def _base(loaded: Loaded) -> Any:
    return loaded.model.get_base_model() if isinstance(loaded.model, PeftModel) else loaded.model


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _timed(said: Answers, stage: str, device: torch.device) -> Iterator[None]:
    started = _now(device)
    yield
    said.seconds[stage] += _now(device) - started
