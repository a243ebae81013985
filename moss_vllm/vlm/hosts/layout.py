"""The text of a conversation in the layout of a processor's chat template, and where its answers stand.

An answer is what the template writes for a conversation with it and not for the same one up to it. A template
for which the second is not the beginning of the first is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from moss_vllm.data.rows import Turn
from moss_vllm.vlm.conversation import has_special_token

MEASURED = Turn("?", "answer")  # the conversation that a layout is measured with
Span = tuple[int, int]  # of characters


@dataclass(frozen=True)
class Layout:
    """How the chat templates of a family write answers.

    Args:
        answers_in_parts: whether they take an answer as a list of parts, or else as a text.
        next_turn: what ends an answer where they write nothing that does: the token that begins the user's
            turn, on which the model stops.
        respelled: what they write, and what to write in its place.
    """

    answers_in_parts: bool = True
    next_turn: str = ""
    respelled: tuple[str, str] = ("", "")

    def write(self, processor: Any, turns: Sequence[Turn], *, video: bool) -> tuple[str, list[Span]]:
        """The text of a conversation, with one video token where the video goes, and its answers.

        Answers go up to what ends the turn, that included. After an open turn comes the prompt for an answer.

        Raises:
            ValueError: no turn, an open turn before the last, a text with a special token, or a template by
                which an answer cannot be found.
        """
        if not turns or any(turn.answer is None for turn in turns[:-1]):
            raise ValueError(f"a conversation needs turns, all but the last answered; got {list(turns)}")
        for turn in turns:
            for said in (turn.question, turn.answer or ""):
                _refuse_special_tokens(processor, said)
        whole, answers = self._render(processor, turns, video), list[Span]()
        if self.next_turn and turns[-1].answer is not None:
            whole = whole.rstrip() + self.next_turn
        for index, turn in enumerate(turns):
            if turn.answer is None:
                continue
            before = self._render(processor, [*turns[:index], Turn(turn.question)], video)
            after = self._render(processor, turns[: index + 1], video).rstrip()
            if not (whole.startswith(after + self.next_turn) and after.startswith(before.rstrip())):
                raise ValueError(
                    _writes(processor, "an answered turn otherwise than the prompt for its answer")
                )
            said = after[len(before) :]
            if not said.lstrip().startswith(turn.answer.strip()):
                raise ValueError(_writes(processor, f"{said[:80]!r} for the answer {turn.answer[:80]!r}"))
            answers.append((len(before), len(after + self.next_turn)))
        return whole, answers

    def around_answer(self, processor: Any) -> tuple[str, str]:
        """What stands between the prompt for an answer and the answer, and what ends its turn."""
        return _around_answer(self, processor)

    def _render(self, processor: Any, turns: Sequence[Turn], video: bool) -> str:
        messages: list[dict[str, Any]] = []
        for index, turn in enumerate(turns):
            shown = [{"type": "video"}] if video and index == 0 else []
            messages.append({"role": "user", "content": [*shown, _part(turn.question)]})
            if turn.answer is not None:
                answer: Any = [_part(turn.answer)] if self.answers_in_parts else turn.answer.strip()
                messages.append({"role": "assistant", "content": answer})
        opened = turns[-1].answer is None
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
        return str(text).replace(*self.respelled) if any(self.respelled) else str(text)


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text.strip()}


def _writes(processor: Any, what: str) -> str:
    return (
        f"the chat template of this {type(processor).__name__} writes {what}, as those of models that think "
        "do; open a model, or give it a chat template, that answers at once"
    )


def _refuse_special_tokens(processor: Any, text: str) -> None:
    if has_special_token(text) or any(token in text for token in _special_tokens(processor)):
        raise ValueError(
            f"text contains a special token of the chat layout: {text[:200]!r}; remove it from the row"
        )


@lru_cache(maxsize=16)
def _special_tokens(processor: Any) -> frozenset[str]:
    """What the tokenizer reads as one token wherever it stands, and what the processor puts frames for."""
    tokens = {processor.video_token, processor.image_token, *processor.tokenizer.get_added_vocab()}
    return frozenset(token for token in tokens if token.strip())


@lru_cache(maxsize=16)
def _around_answer(layout: Layout, processor: Any) -> tuple[str, str]:
    text, ((begin, end),) = layout.write(processor, [MEASURED], video=True)
    before, _, behind = text[begin:end].partition(str(MEASURED.answer))
    return before, behind
