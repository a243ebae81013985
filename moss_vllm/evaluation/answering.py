"""Answer all questions about a video for little more than the cost of one.

    frames -> vision encoder -> video tokens + the common start of its prompts -> KV cache     per video
    KV cache + the rests of all its prompts, packed into one sequence -> answers               several videos
                  ... + their choices, packed again -> losses                                  several videos

The answers equal those of `generate(do_sample=False)`, one question at a time, by the model's own generation
config (a repetition penalty, say; see generation.py): token for token in float32. In half precision another
order of summation may decide a tie the other way.
"""

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import Cache, DynamicCache

from moss_vllm.evaluation.finite import refuse_not_finite
from moss_vllm.evaluation.generation import end_ids, logits_rule
from moss_vllm.evaluation.packing import Packed, follow, join_caches, packed_attention
from moss_vllm.video.clip import Clip
from moss_vllm.vlm.checkpoint import Loaded
from moss_vllm.vlm.families import family_with

ROOM_TOKENS = 32  # per answer, before the cache must grow
MOST_TOKENS = 32_768  # in the cache of videos answered together: 0.9 GiB for VideoLLaMA3-2B in bfloat16
MOST_LOGITS = 1024  # tokens whose logits are in memory at once: 0.6 GiB in float32 for 151,936 tokens
STAGES = ("encode", "prefill", "answer")


@dataclass
class Prompts:
    """Questions about one video, ready for the model.

    Args:
        ids: tokens of each question; all begin with the same video tokens.
        video: as from `chat.encode`.
        choices: the choices of each question, for `choose` and `choose_text`.
        choice_ids: their tokens, which `choose_text` sets.
        names: what a message calls each question.

    Shape:
        ids, choice_ids: (S,) each.
    """

    ids: list[Tensor]
    video: dict[str, Tensor]
    choices: Sequence[Sequence[str]] = ()
    choice_ids: list[list[Tensor]] = field(default_factory=list)
    names: Sequence[str] = ()

    @cached_property
    def shared(self) -> int:
        """The number of tokens that all prompts begin with, without the last token of any prompt."""
        first, shortest = self.ids[0], min(map(len, self.ids))
        same = torch.stack([ids[:shortest] == first[:shortest] for ids in self.ids]).all(0)
        return min(int(same.cumprod(0).sum()), shortest - 1)


@dataclass
class Answers:
    """The answers to a video's questions, scores of choices, and its share of the seconds of `STAGES`."""

    texts: list[str] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def prepare_prompts(processor: Any, clip: Clip, questions: Sequence[str], *, compress: bool) -> Prompts:
    """Encode each question as `chat.encode` does, with one pass of the video through the processor."""
    return Prompts(
        *family_with(processor).chat.encode_questions(processor, clip, questions, compress=compress)
    )


def answer(
    loaded: Loaded, videos: Iterable[Prompts], *, max_new_tokens: int, batch_size: int
) -> Iterator[Answers]:
    """Greedy answers to the questions of each video, in order.

    Args:
        videos: as many as have `batch_size` questions or `MOST_TOKENS` tokens are answered together.

    Raises: RunStopped for logits that are not finite, as the functions below.
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

    def fill(batch: _Batch, hidden: Tensor) -> None:
        likely = _logits(loaded, batch.packed.at_ends(hidden)).log_softmax(-1).cpu()
        for answers, prompts, rows in zip(batch.answers, batch.videos, likely, strict=True):
            for choices, row in zip(prompts.choices, rows, strict=False):
                tokens = {choice: _answer_ids(loaded, choice) for choice in choices}
                if wrong := sorted(choice for choice, ids in tokens.items() if len(ids) != 1):
                    remedy = "not one token of this tokenizer; use a protocol that generates"
                    raise ValueError(f"{', '.join(wrong)}: {remedy}")
                answers.scores.append({choice: float(row[ids[0]]) for choice, ids in tokens.items()})
            refuse_not_finite(loaded.name, prompts.names, [sum(scores.values()) for scores in answers.scores])
            answers.texts = [max(scores, key=scores.__getitem__) for scores in answers.scores]

    return _stream(loaded, videos, batch_size, fill)


def choose_text(loaded: Loaded, videos: Iterable[Prompts], *, batch_size: int) -> Iterator[Answers]:
    """The choice with the lowest mean loss per token, for each question, and the mean losses of all choices.

    A choice is scored as what the model's turn begins with, without the token that ends a turn: with it, the
    model would be asked as well where an answer stops. Of equal losses the first one's choice is taken.

    Raises: ValueError for a choice without a token.
    """

    def fill(batch: _Batch, hidden: Tensor) -> None:
        found = iter(_score_choices(loaded, batch, hidden))
        for answers, prompts in zip(batch.answers, batch.videos, strict=True):
            answers.scores = [{choice: next(found)[0] for choice in some} for some in prompts.choices]
            refuse_not_finite(loaded.name, prompts.names, [sum(losses.values()) for losses in answers.scores])
            answers.texts = [min(losses, key=losses.__getitem__) for losses in answers.scores]

    return _stream(loaded, (_with_choice_ids(loaded, one) for one in videos), batch_size, fill)


def score_continuations(
    loaded: Loaded, prompts: Prompts, continuations: Sequence[str]
) -> list[tuple[float, bool]]:
    """Mean loss per token of each continuation after its prompt, and whether greedy decoding yields it.

    Raises: ValueError for a continuation without a token.
    """
    prompts.choices, found = [[text] for text in continuations], list[tuple[float, bool]]()

    def fill(batch: _Batch, hidden: Tensor) -> None:
        found.extend(_score_choices(loaded, batch, hidden))
        refuse_not_finite(loaded.name, prompts.names, [loss for loss, _ in found])

    list(_stream(loaded, [_with_choice_ids(loaded, prompts)], 1, fill))
    return found


def _with_choice_ids(loaded: Loaded, prompts: Prompts) -> Prompts:
    if not all(choice.strip() for some in prompts.choices for choice in some):
        raise ValueError("a choice is empty; every choice needs a word")
    every = [[torch.tensor(_answer_ids(loaded, text)) for text in some] for some in prompts.choices]
    prompts.choice_ids = every
    return prompts


def _answer_ids(loaded: Loaded, text: str) -> list[int]:
    """The tokens of a text that the model's turn begins with."""
    said = loaded.family.chat.lead(loaded.processor) + text
    ids: list[int] = loaded.processor.tokenizer(said, add_special_tokens=False)["input_ids"]
    return ids


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
        caches, starts = zip(*map(partial(_prefill, loaded), group, answers), strict=True)
        started, shared = _now(device), [prompts.shared for prompts in group]
        rests = [[ids[n:] for ids in prompts.ids] for prompts, n in zip(group, shared, strict=True)]
        packed = Packed(shared, starts, rests, pad, device)
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
    rests = [sum(map(len, chain(one.ids, *one.choice_ids))) - len(one.ids) * one.shared for one in group]
    return len(group) * (max(one.shared for one in group) + max(rests))


def _prefill(loaded: Loaded, prompts: Prompts, answers: Answers) -> tuple[Cache, int]:
    """Encode a video and put the shared tokens into a new cache; also the place of the token behind them."""
    base, device = base_model(loaded), _device(loaded)
    started = encoded = _now(device)

    def note(*_: Any) -> None:
        nonlocal encoded
        encoded = _now(device)

    hook, cache = loaded.family.encoded_by(base).register_forward_hook(note), DynamicCache()
    try:
        with loaded.autocast():
            whole = {"input_ids": prompts.ids[0][None], **prompts.video}
            placed = loaded.family.place(base, {name: value.to(device) for name, value in whole.items()})
            places, start = placed.get("position_ids"), prompts.shared
            if places is not None:
                start, places = int(places[0, 0, prompts.shared]), places[..., : prompts.shared]
            inputs = {**placed, "input_ids": placed["input_ids"][:, : prompts.shared], "position_ids": places}
            base.model(**inputs, **_as_argument(base, cache), use_cache=True)
    finally:
        hook.remove()
    answers.seconds = {"encode": encoded - started, "prefill": _now(device) - encoded}
    return cache, start


def _score_choices(loaded: Loaded, batch: _Batch, hidden: Tensor) -> list[tuple[float, bool]]:
    """Mean loss per token of every choice, and whether greedy decoding yields it.

    A question's last token predicts the first of each of its choices, whose tokens follow it as answers do.
    """
    texts = [[(n, ids) for n, some in enumerate(one.choice_ids) for ids in some] for one in batch.videos]
    but_last = [[(n, ids[:-1]) for n, ids in some] for some in texts]
    more = follow(batch.packed, but_last, loaded.processor.tokenizer.pad_token_id)
    after = _forward(loaded, batch, *more) if more[0].shape[1] else hidden
    rows, losses, greedy = list[Tensor](), list[Tensor](), list[Tensor]()
    for some, first, rest in zip(but_last, batch.packed.at_ends(hidden), after, strict=True):
        sizes = [len(ids) for _, ids in some]
        for (n, _), tail in zip(some, rest[: sum(sizes)].split(sizes), strict=True):
            rows += [first[n][None], tail]
    wanted = [ids for some in texts for _, ids in some]
    both = (torch.cat(each).to(hidden.device).split(MOST_LOGITS) for each in (rows, wanted))
    for part, own in zip(*both, strict=True):
        logits = _logits(loaded, part)
        losses.append(F.cross_entropy(logits, own, reduction="none"))
        greedy.append(logits.argmax(-1) == own)
    split = (torch.cat(each).cpu().split(list(map(len, wanted))) for each in (losses, greedy))
    return [(float(loss.mean()), bool(hit.all())) for loss, hit in zip(*split, strict=True)]


def _decode(loaded: Loaded, batch: _Batch, hidden: Tensor, max_new_tokens: int) -> list[Tensor]:
    """The new tokens of each answer, up to the one that ends it."""
    ends = torch.tensor(end_ids(base_model(loaded)), device=hidden.device)
    places, sees = batch.packed.at_ends(batch.packed.places), batch.packed.sees
    itself = torch.eye(sees.shape[1], dtype=torch.bool, device=hidden.device).expand(len(sees), -1, -1)
    hidden = batch.packed.at_ends(hidden)
    new = torch.empty(*places.shape, 0, dtype=torch.long, device=hidden.device)
    process = logits_rule(base_model(loaded), [one.ids for one in batch.videos], max_new_tokens)
    highest = torch.zeros(places.shape, device=hidden.device)
    while True:
        logits = _logits(loaded, hidden)
        highest = highest + logits.amax(-1)  # NaN and infinities stay
        new = torch.cat([new, process(new, logits).argmax(-1, keepdim=True)], dim=-1)
        rows = torch.stack(batch.packed.real(new))
        ended = torch.isin(rows, ends)
        if new.shape[-1] == max_new_tokens or bool(ended.any(-1).all()):
            for prompts, values in zip(batch.videos, highest.tolist(), strict=True):
                refuse_not_finite(loaded.name, prompts.names, values[: len(prompts.ids)])
            kept = ((~ended).cumprod(-1).sum(-1) + 1).tolist()
            return [row[:count] for row, count in zip(rows, kept, strict=True)]
        places, sees = places + 1, torch.cat([sees, itself], dim=-1)
        hidden = _forward(loaded, batch, new[..., -1], sees, places)


def _forward(loaded: Loaded, batch: _Batch, ids: Tensor, sees: Tensor, places: Tensor) -> Tensor:
    """Hidden states of tokens that attend to those in `sees`; appends the tokens to the batch's cache.

    Shape:
        ids, places: (V, Q); sees: (V, Q, tokens in the cache + Q) -> (V, Q, C).
    """
    base = base_model(loaded)
    with loaded.autocast(), packed_attention(base.get_submodule(loaded.family.language_model)):
        hidden: Tensor = base.model(
            input_ids=ids,
            attention_mask=sees[:, None],
            position_ids=places,
            **_as_argument(base, batch.cache),
            use_cache=True,
        ).last_hidden_state
    return hidden


def _as_argument(base: Any, cache: Cache) -> dict[str, Cache]:
    """The cache by the name that forward has for it: another one from transformers 5.24 on."""
    names = inspect.signature(base.model.forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache}


def _logits(loaded: Loaded, hidden: Tensor) -> Tensor:
    with loaded.autocast():
        logits: Tensor = base_model(loaded).lm_head(hidden)
    return logits.float()


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
