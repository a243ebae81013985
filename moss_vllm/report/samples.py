"""The same questions over time: the answers of each step side by side, marked right or wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moss_vllm.report.html import Html, counted, escape, join_parts, table, tag, trim

MOST_EVALUATIONS = 16  # side by side, the first and the last among them
ANSWER_CHARACTERS = 600  # of an answer


@dataclass
class Sample:
    """A question and its (output, correct) at each step that asked it."""

    question: Mapping[str, Any]
    answers: dict[int, tuple[Any, bool | None]] = field(default_factory=dict)

    def kinds(self) -> list[str]:
        """Its names in the filter: "right" or "wrong" as last judged, "changed" if it was both."""
        judged = [correct for _, correct in self.answers.values() if correct is not None]
        last = [] if not judged else ["right" if judged[-1] else "wrong"]
        return last + ["changed"] * (len(set(judged)) > 1)


def gather(lines: Mapping[int, Mapping[str, Any]]) -> tuple[list[Sample], int]:
    """The questions in a benchmark's evaluations by step, and the number of unreadable samples."""
    gathered: dict[str, Sample] = {}
    unreadable = 0
    for step, line in lines.items():
        samples = line.get("samples", [])
        for sample in samples if isinstance(samples, list) else [samples]:
            if not isinstance(sample, dict):
                unreadable += 1
                continue
            key = escape([sample.get(name) for name in ("video", "question", "options")])
            correct = sample.get("correct")
            answer = sample.get("output"), correct if isinstance(correct, bool) else None
            gathered.setdefault(key, Sample(sample)).answers[step] = answer
    return list(gathered.values()), unreadable


def show_samples(name: str, lines: Mapping[int, Mapping[str, Any]], number: int) -> list[Html]:
    """Filter and table of one benchmark; `number` keeps the ids of several on a page apart."""
    asked, unreadable = gather(lines)
    every = sorted({step for one in asked for step in one.answers})
    steps = _evenly(every)
    notes = [f"{counted(unreadable, 'sample')} of {name} cannot be read."] if unreadable else []
    if len(steps) < len(every):
        notes.append(f"{len(steps)} of {len(every):,} evaluations are shown; the filter counts all of them.")
    shown = [tag("h3", name), *(tag("p", note, class_="soft") for note in notes)]
    if not asked:
        return [*shown, tag("p", "No sample was kept.")]
    kinds = [one.kinds() for one in asked]
    labels = {"all": "All", "right": "Right at last", "wrong": "Wrong at last", "changed": "Changed"}
    buttons = (
        tag(
            "button",
            f"{label} ({len(asked) if only == 'all' else sum(only in kind for kind in kinds)})",
            type="button",
            data_only=only,
            aria_pressed="true" if only == "all" else "false",
        )
        for only, label in labels.items()
    )
    rows = [
        tag(
            "tr",
            tag("td", _question(one.question)),
            *(_answer(one, step) for step in steps),
            data_is=" ".join(kind),
        )
        for one, kind in zip(asked, kinds, strict=True)
    ]
    key = f"samples-{number}"
    head = ["question", *(f"step {step:,}" for step in steps)]
    return [
        *shown,
        Html(f'<div class="filter" data-of="{key}" hidden>{join_parts(buttons)}</div>'),
        tag("div", table(head, rows, class_="answers"), id=key),
    ]


def _evenly(steps: Sequence[int]) -> list[int]:
    most = MOST_EVALUATIONS
    if len(steps) <= most:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]


def _question(sample: Mapping[str, Any]) -> Html:
    """Text, options with the right one marked, video. The right answer is a letter or an option's text."""
    options, answer = sample.get("options"), str(sample.get("answer")).strip()
    options = [str(option) for option in options] if isinstance(options, list) else []
    right = [answer in (chr(ord("A") + place), option.strip()) for place, option in enumerate(options)]
    listed = [tag("li", text, class_="key" if it else None) for text, it in zip(options, right, strict=True)]
    return join_parts(
        [
            trim(str(sample.get("question")), ANSWER_CHARACTERS),
            tag("ol", *listed) if listed else "",
            "" if any(right) else tag("p", f"right: {answer}"),
            tag("p", f"video {sample.get('video')}", class_="soft"),
        ]
    )


def _answer(one: Sample, step: int) -> Html:
    if step not in one.answers:
        return tag("td", "not asked", class_="soft")
    output, correct = one.answers[step]
    mark, kind = {True: ("✓ right", "right"), False: ("✗ wrong", "wrong"), None: ("not judged", "soft")}[
        correct
    ]
    text = trim(str(output), ANSWER_CHARACTERS)
    return tag("td", tag("span", mark, class_=f"mark {kind}"), text)
