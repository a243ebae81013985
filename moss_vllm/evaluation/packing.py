"""The questions about a video as one sequence over one cache that is never copied.

    left padding | shared tokens | rest of question 1 | rest of question 2 | ... | right padding | answers ...

No question attends to another. A batch with a row per question would copy the shared tokens for each row;
here all questions read one copy, also in the steps of the answers, each of which adds a token per question.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer

PACKED_ATTENTION = "moss_packed"


class Packed:
    """The tokens of several videos' questions, their positions and attention masks.

    Args:
        shared: for each video the number of tokens that its questions share.
        starts: for each video the place of the first token that they do not share.
        rests: for each video the unshared tokens of each question.

    Shape:
        V videos with at most N questions, S shared and R unshared tokens each.
        ids, places: (V, R), the unshared tokens and their positions. ends: (V, N), the index in R of each
        question's last token. rest_sees: (V, R, S + R), masks of the unshared tokens. sees: (V, N, S + R),
        masks of each question's next token.
    """

    def __init__(
        self,
        shared: Sequence[int],
        starts: Sequence[int],
        rests: Sequence[Sequence[Tensor]],
        pad: int,
        device: torch.device,
    ) -> None:
        count, longest = max(map(len, rests)), max(shared)
        ids = pad_sequence([torch.cat(list(rest)) for rest in rests], batch_first=True, padding_value=pad)
        width = ids.shape[1]
        owner = torch.full(ids.shape, -1)
        places, ends = torch.zeros_like(ids), torch.zeros(len(rests), count, dtype=torch.long)
        for video, (start, rest) in enumerate(zip(starts, rests, strict=True)):
            sizes = torch.tensor([len(one) for one in rest])
            owner[video, : sizes.sum()] = torch.arange(len(rest)).repeat_interleave(sizes)
            places[video, : sizes.sum()] = torch.cat([start + torch.arange(len(one)) for one in rest])
            ends[video, : len(rest)] = sizes.cumsum(0) - 1
        there = (torch.arange(longest) >= longest - torch.tensor(shared)[:, None])[:, None]  # (V, 1, S)
        own = owner[:, None] == torch.arange(count)[:, None]  # (V, N, R)
        earlier = torch.ones(width, width, dtype=torch.bool).tril()
        same = (owner[:, None] == owner[:, :, None]) & earlier  # (V, R, R)
        self.sees = torch.cat([there.expand(-1, count, -1), own], dim=-1).to(device)
        self.rest_sees = torch.cat([there.expand(-1, width, -1), same], dim=-1).to(device)
        self.ids, self.places, self.ends = ids.to(device), places.to(device), ends.to(device)
        self.counts = [len(rest) for rest in rests]

    def at_ends(self, values: Tensor) -> Tensor:
        """(V, R, ...) -> (V, N, ...): the values of each question's last token."""
        return values[torch.arange(len(values), device=values.device)[:, None], self.ends]

    def real(self, values: Tensor) -> list[Tensor]:
        """(V, N, ...) -> a list of (...), one per question, without the padding."""
        return [row for count, rows in zip(self.counts, values, strict=True) for row in rows[:count]]


def follow(
    packed: Packed, texts: Sequence[Sequence[tuple[int, Tensor]]], pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Texts that follow questions, several a question: their tokens, attention masks and positions.

    A token sees its question, what that sees, and the earlier tokens of its text.

    Args:
        texts: for each video, the number of a question and the tokens of a text.

    Shape:
        V videos with at most Q tokens of texts -> (V, Q), (V, Q, S + R + Q), (V, Q).
    """
    device, parts = packed.ids.device, []
    for some, last in zip(texts, packed.at_ends(packed.places).tolist(), strict=True):
        sizes = torch.tensor([len(ids) for _, ids in some])
        after = [last[question] + 1 + torch.arange(len(ids)) for question, ids in some]
        owners = torch.tensor([question for question, _ in some]).repeat_interleave(sizes)
        numbers = torch.arange(len(some)).repeat_interleave(sizes)
        parts.append((torch.cat([ids for _, ids in some]), torch.cat(after), owners, numbers))
    ids, places, owner, number = (
        pad_sequence(list(column), batch_first=True, padding_value=value).to(device)
        for column, value in zip(zip(*parts, strict=True), (pad, 0, 0, -1), strict=True)
    )
    earlier = torch.ones(2 * ids.shape[1:], dtype=torch.bool, device=device).tril()
    same = (number[:, None] == number[:, :, None]) & earlier
    before = packed.sees[torch.arange(len(ids), device=device)[:, None], owner]
    return ids, torch.cat([before, same], dim=-1), places


class RoomyLayer(DynamicLayer):
    """A cache layer of several videos' shared tokens, padded on the left, with room for more on the right.

    Shape:
        parts: keys and values of each video, (1, heads, S, C). The cache: (V, heads, length, C).
    """

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor]], room: int) -> None:
        super().__init__()
        self.length = max(keys.shape[2] for keys, _ in parts)
        first = parts[0][0]
        shape = (len(parts), first.shape[1], self.length + room, first.shape[3])
        # Zeros, because even masked values must not be NaN.
        self.keys, self.values = both = first.new_zeros(shape), first.new_zeros(shape)
        for video, pair in enumerate(parts):
            for whole, part in zip(both, pair, strict=True):
                whole[video, :, self.length - part.shape[2] : self.length] = part[0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append keys and values; returns all so far."""
        keys, values = cast(Tensor, self.keys), cast(Tensor, self.values)
        end = self.length + key_states.shape[2]
        if end > keys.shape[2]:
            more = (0, 0, 0, max(end, 2 * self.length) - keys.shape[2])
            self.keys, self.values = keys, values = F.pad(keys, more), F.pad(values, more)
        keys[:, :, self.length : end] = key_states
        values[:, :, self.length : end] = value_states
        self.length = end
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self) -> int:
        """The number of tokens in the cache, padding included."""
        return self.length


def join_caches(caches: Sequence[Cache], room: int) -> Cache:
    """One cache of several videos, with space for `room` more tokens before a layer must grow."""
    layers: list[Any] = [cache.layers for cache in caches]
    return Cache(
        [RoomyLayer([(one.keys, one.values) for one in level], room) for level in zip(*layers, strict=True)]
    )


@contextmanager
def packed_attention(language_model: nn.Module) -> Iterator[None]:
    """Within it, the model takes boolean masks (V, 1, Q, keys), and no keys are copied per query head."""
    config: Any = language_model.config
    before = config._attn_implementation
    config._attn_implementation = PACKED_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention that folds query heads with common keys into the queries, instead of copying the keys."""
    groups = module.num_key_value_groups
    queries = rearrange(query, "b (h g) q c -> b h (g q) c", g=groups)
    values = F.scaled_dot_product_attention(
        queries, key, value, attn_mask=attention_mask.repeat(1, 1, groups, 1), scale=scaling
    )
    return rearrange(values, "b h (g q) c -> b q (h g) c", g=groups), None


AttentionInterface.register(PACKED_ATTENTION, _attend)
