"""Answer all questions about a video for little more than the cost of one.

    frames -> vision encoder -> video tokens + the common start of its prompts -> KV cache     per video
    KV cache + the rests of all its prompts, packed into one sequence -> answers               several videos

The answers equal those of `generate(do_sample=False)`, one question at a time, by the model's own generation
config (a repetition penalty, say; see generation.py): token for token in float32. In half precision another
order of summation may decide a tie the other way.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import Cache, DynamicCache, VideoLlama3Processor

from moss_vllm.data.rows import Turn
from moss_vllm.evaluation.generation import logits_processors
from moss_vllm.evaluation.packing import Packed, join_caches, packed_attention
from moss_vllm.video.clip import Clip
from moss_vllm.vlm.checkpoint import Loaded
from moss_vllm.vlm.families import family_with

ROOM_TOKENS = 32  # per answer, before the cache must grow
MOST_TOKENS = 32_768  # in the cache of videos answered together: 0.9 GiB for VideoLLaMA3-2B in bfloat16
STAGES = ("encode", "prefill", "answer")


@dataclass
class Prompts:
    """Questions about one video, ready for the model.

    Args:
        ids: tokens of each question; all begin with the same video tokens.
        video: as from `chat.encode`.
        choices: the choices of each question, for `choose`.
        most_shared: a limit on `shared`.

    Shape:
        ids: (S,) each.
    """

    ids: list[Tensor]
    video: dict[str, Tensor]
    choices: Sequence[Sequence[str]] = ()
    most_shared: int | None = None

    @cached_property
    def shared(self) -> int:
        """The number of tokens that all prompts begin with, without the last token of any prompt."""
        first, shortest = self.ids[0], min(map(len, self.ids))
        same = torch.stack([ids[:shortest] == first[:shortest] for ids in self.ids]).all(0)
        most = shortest - 1 if self.most_shared is None else min(self.most_shared, shortest - 1)
        return min(int(same.cumprod(0).sum()), most)


@dataclass
class Answers:
    """The answers to a video's questions, and the video's share of the seconds of each of `STAGES`."""

    texts: list[str] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def prepare_prompts(
    processor: VideoLlama3Processor, clip: Clip, questions: Sequence[str], *, compress: bool
) -> Prompts:
    """Encode each question as the family does, with one pass of the video through the processor."""
    family = family_with(processor)
    example = family.encode(processor, clip, [Turn(questions[0])], compress=compress)
    token, ids = processor.video_token, example["input_ids"]
    # The tokenizer never joins a special token with text, so the text behind the last one is encoded alone.
    end = int((ids == processor.tokenizer.convert_tokens_to_ids(token)).nonzero()[-1]) + 1
    prompts = [ids]
    for question in questions[1:]:
        rest = family.conversation_text([Turn(question)], video_token=token).split(token, 1)[1]
        prompts.append(torch.cat([ids[:end], torch.tensor(processor.tokenizer(rest)["input_ids"])]))
    return Prompts(prompts, {key: example[key] for key in family.video_inputs})


def answer(
    loaded: Loaded, videos: Iterable[Prompts], *, max_new_tokens: int, batch_size: int
) -> Iterator[Answers]:
    """Greedy answers to the questions of each video, in order.

    Args:
        videos: as many as have `batch_size` questions or `MOST_TOKENS` tokens are answered together.
    """

    def fill(batch: _Batch, hidden: Tensor) -> None:
        texts = loaded.processor.tokenizer.batch_decode(
            _decode(loaded, batch, hidden, max_new_tokens), skip_special_tokens=True
        )
        rest = iter(texts)
        for answers, prompts in zip(batch.answers, batch.videos, strict=True):
            answers.texts = [next(rest) for _ in prompts.ids]

    return _stream(loaded, videos, batch_size, fill)


def choose(loaded: Loaded, videos: Iterable[Prompts], *, batch_size: int) -> Iterator[Answers]:
    """The choice that is the likeliest next token, for each question, and the log-likelihoods of all choices.

    Raises: ValueError for a choice that is not one token.
    """
    tokenizer = loaded.processor.tokenizer

    def fill(batch: _Batch, hidden: Tensor) -> None:
        likely = _logits(loaded, batch.packed.at_ends(hidden)).log_softmax(-1).cpu()
        for answers, prompts, rows in zip(batch.answers, batch.videos, likely, strict=True):
            for choices, row in zip(prompts.choices, rows, strict=False):
                tokens = {choice: tokenizer(choice)["input_ids"] for choice in choices}
                if wrong := sorted(choice for choice, ids in tokens.items() if len(ids) != 1):
                    remedy = "not one token of this tokenizer; use a protocol that generates"
                    raise ValueError(f"{', '.join(wrong)}: {remedy}")
                answers.scores.append({choice: float(row[ids[0]]) for choice, ids in tokens.items()})
            answers.texts = [max(scores, key=scores.__getitem__) for scores in answers.scores]

    return _stream(loaded, videos, batch_size, fill)


def score_continuations(
    loaded: Loaded, prompts: Prompts, continuations: Sequence[str]
) -> list[tuple[float, bool]]:
    """Mean loss per token of each continuation after its prompt, and whether greedy decoding yields it.

    Raises: ValueError for a continuation without a token.
    """
    tokens = [torch.tensor(loaded.processor.tokenizer(text)["input_ids"]) for text in continuations]
    if not all(map(len, tokens)):
        raise ValueError("a choice is empty; every choice needs a word")
    whole = [torch.cat(pair) for pair in zip(prompts.ids, tokens, strict=True)]
    losses: list[tuple[float, bool]] = []

    def fill(batch: _Batch, hidden: Tensor) -> None:
        for own, end in zip(tokens, batch.packed.ends[0].tolist(), strict=True):
            logits = _logits(loaded, hidden[0, end - len(own) : end])
            wanted = own.to(logits.device)
            loss = float(F.cross_entropy(logits, wanted))
            losses.append((loss, bool((logits.argmax(-1) == wanted).all())))

    # Every token of a continuation is scored, so none may be in the shared part.
    unshared = min(len(ids) for ids in prompts.ids) - 1
    list(_stream(loaded, [Prompts(whole, prompts.video, most_shared=unshared)], 1, fill))
    return losses


@dataclass
class _Batch:
    """Videos that are answered together: their packed questions, and the cache that holds all tokens."""

    videos: Sequence[Prompts]
    packed: Packed
    cache: Cache
    answers: list[Answers]


def _stream(
    loaded: Loaded, videos: Iterable[Prompts], size: int, fill: Callable[[_Batch, Tensor], None]
) -> Iterator[Answers]:
    """Each video's answers, which `fill` sets from the hidden states of the unshared parts of the prompts."""

    @torch.inference_mode()
    def work(group: Sequence[Prompts]) -> list[Answers]:
        device, pad = _device(loaded), loaded.processor.tokenizer.pad_token_id
        answers = [Answers() for _ in group]
        caches = [_prefill(loaded, *pair) for pair in zip(group, answers, strict=True)]
        started, shared = _now(device), [prompts.shared for prompts in group]
        rests = [[ids[n:] for ids in prompts.ids] for prompts, n in zip(group, shared, strict=True)]
        packed = Packed(shared, rests, pad, device)
        room = packed.ids.shape[1] + ROOM_TOKENS * packed.ends.shape[1]
        batch = _Batch(group, packed, join_caches(caches, room), answers)
        fill(batch, _forward(loaded, batch, packed.ids, packed.rest_sees, packed.places))
        for one in answers:
            one.seconds["answer"] = (_now(device) - started) / len(group)
        return answers

    group: list[Prompts] = []
    for prompts in videos:
        if group and _tokens([*group, prompts]) > MOST_TOKENS:
            yield from work(group)
            group = []
        group.append(prompts)
        if sum(len(one.ids) for one in group) >= size:
            yield from work(group)
            group = []
    if group:
        yield from work(group)


def _tokens(group: Sequence[Prompts]) -> int:
    """Tokens in the cache of videos answered together before their answers, padding included."""
    rests = [sum(len(ids) - one.shared for ids in one.ids) for one in group]
    return len(group) * (max(one.shared for one in group) + max(rests))


def _prefill(loaded: Loaded, prompts: Prompts, answers: Answers) -> Cache:
    """Encode a video and put the shared tokens into a new cache."""
    base, device = base_model(loaded), _device(loaded)
    started = encoded = _now(device)

    def note(*_: Any) -> None:
        nonlocal encoded
        encoded = _now(device)

    hook, cache = base.model.projector.register_forward_hook(note), DynamicCache()
    try:
        with loaded.autocast():
            video = {key: value.to(device) for key, value in prompts.video.items()}
            ids = prompts.ids[0][None, : prompts.shared].to(device)
            base.model(input_ids=ids, **video, past_key_values=cache, use_cache=True)
    finally:
        hook.remove()
    answers.seconds = {"encode": encoded - started, "prefill": _now(device) - encoded}
    return cache


def _decode(loaded: Loaded, batch: _Batch, hidden: Tensor, max_new_tokens: int) -> list[Tensor]:
    """The new tokens of each answer, up to the one that ends it."""
    ends = torch.tensor(_end_ids(base_model(loaded)), device=hidden.device)
    places, sees = batch.packed.at_ends(batch.packed.places), batch.packed.sees
    itself = torch.eye(sees.shape[1], dtype=torch.bool, device=hidden.device).expand(len(sees), -1, -1)
    hidden = batch.packed.at_ends(hidden)
    new = torch.empty(*places.shape, 0, dtype=torch.long, device=hidden.device)
    process = _logits_rule(loaded, batch, max_new_tokens)
    while True:
        new = torch.cat([new, process(new, _logits(loaded, hidden)).argmax(-1, keepdim=True)], dim=-1)
        rows = torch.stack(batch.packed.real(new))
        ended = torch.isin(rows, ends)
        if new.shape[-1] == max_new_tokens or bool(ended.any(-1).all()):
            kept = ((~ended).cumprod(-1).sum(-1) + 1).tolist()
            return [row[:count] for row, count in zip(rows, kept, strict=True)]
        places, sees = places + 1, torch.cat([sees, itself], dim=-1)
        hidden = _forward(loaded, batch, new[..., -1], sees, places)


def _logits_rule(loaded: Loaded, batch: _Batch, max_new_tokens: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The generation config's changes to logits (V, N, C) after the new tokens (V, N, T)."""
    device, base = _device(loaded), base_model(loaded)
    rows = [(v, n, ids.to(device)) for v, one in enumerate(batch.videos) for n, ids in enumerate(one.ids)]
    if not logits_processors(base, rows[0][2], max_new_tokens):
        return lambda new, logits: logits
    rules = [logits_processors(base, ids, max_new_tokens) for _, _, ids in rows]

    def process(new: Tensor, logits: Tensor) -> Tensor:
        for (video, number, ids), rule in zip(rows, rules, strict=True):
            before = torch.cat([ids, new[video, number]])[None]
            row = logits[video, number][None]
            for each in rule:
                row = each(before, row)
            logits[video, number] = row[0]
        return logits

    return process


def _forward(loaded: Loaded, batch: _Batch, ids: Tensor, sees: Tensor, places: Tensor) -> Tensor:
    """Hidden states of tokens that attend to those in `sees`; appends the tokens to the batch's cache.

    Shape:
        ids, places: (V, Q); sees: (V, Q, tokens in the cache + Q) -> (V, Q, C).
    """
    model = base_model(loaded).model
    with loaded.autocast(), packed_attention(model.language_model):
        hidden: Tensor = model(
            input_ids=ids,
            attention_mask=sees[:, None],
            position_ids=places,
            past_key_values=batch.cache,
            use_cache=True,
        ).last_hidden_state
    return hidden


def _logits(loaded: Loaded, hidden: Tensor) -> Tensor:
    with loaded.autocast():
        logits: Tensor = base_model(loaded).lm_head(hidden)
    return logits.float()


def _end_ids(base: Any) -> list[int]:
    """Tokens at which `generate` ends an answer."""
    ends = base.generation_config.eos_token_id
    return list(ends) if isinstance(ends, Sequence) else [] if ends is None else [ends]


def base_model(loaded: Loaded) -> Any:
    """The model inside peft's wrapper, or the model itself if it has none."""
    return loaded.model.get_base_model() if isinstance(loaded.model, PeftModel) else loaded.model


def _device(loaded: Loaded) -> torch.device:
    device: torch.device = base_model(loaded).get_input_embeddings().weight.device
    return device


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
