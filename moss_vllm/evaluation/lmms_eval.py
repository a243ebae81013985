"""MOSS checkpoints in lmms-eval, found through its entry points: any task about one video, one image or text.

    pip install lmms-eval
    python -m lmms_eval --model moss_vllm --model_args pretrained=CKPT --tasks mvbench --batch_size 16

There it is a "simple" model, as lmms-eval's own VideoLLaMA3 is: both get the same prompts, and tasks that
compare likelihoods run too. Questions about one video share its encoding.
"""

import os
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from lmms_eval.api.instance import GenerationResult  # type: ignore[import-not-found]
from lmms_eval.api.model import lmms  # type: ignore[import-not-found]
from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore[import-not-found]
from PIL import Image

from moss_vllm.data.rows import Turn
from moss_vllm.evaluation.answering import Prompts, answer, prepare_prompts, score_continuations
from moss_vllm.evaluation.asking import fit_protocol, read_as
from moss_vllm.evaluation.protocols import MOTIONBENCH, Protocol
from moss_vllm.runtime.errors import UnusableData
from moss_vllm.runtime.precision import DTYPES
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.screen import say
from moss_vllm.video.clip import Clip, read_clip
from moss_vllm.video.frames import short_side_within, stack_frames
from moss_vllm.vlm.checkpoint import Loaded, load
from moss_vllm.vlm.families import family_with

NEW_TOKENS = 1024  # where a task sets no limit
SHOWN_FAULTS = 20


def manifest() -> ModelManifest:
    """The entry that lmms-eval registers."""
    return ModelManifest(model_id="moss_vllm", simple_class_path=f"{__name__}.{Moss.__name__}")


@dataclass(frozen=True)
class _Shown:
    """The video or image of a question; `key` is equal for equal videos."""

    key: Hashable
    read: Callable[[], Clip | None]


class Moss(lmms):
    """A checkpoint of this package, a base model of a family, or "miniature", answering greedily.

    Args:
        pretrained: folder or hub id.
        device: as torch names it; None: cuda if there is one.
        dtype: of the base's weights, a name of `DTYPES`; None: bf16 on cuda, fp32 elsewhere.
        batch_size: questions of one video answered at once; on the command line lmms-eval's `--batch_size`.
        sample_fps, short_side_px, max_frames, compress_tokens: None: the checkpoint's own settings, or the
            paper's if it has none.
        allow_text: ask questions that show nothing as text alone. Off by default, because many tasks show
            nothing if a video is missing.
    """

    def __init__(
        self,
        pretrained: str = "miniature",
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 16,
        sample_fps: float | None = None,
        short_side_px: int | None = None,
        max_frames: int | None = None,
        compress_tokens: bool | None = None,
        allow_text: bool = False,
    ) -> None:
        super().__init__()
        numbers = {"sample_fps": sample_fps, "short_side_px": short_side_px, "max_frames": max_frames}
        switches = {"compress_tokens": compress_tokens, "allow_text": allow_text}
        for name, value in {**numbers, **switches}.items():
            kinds, allowed = ((bool,), "True or False") if name in switches else ((int, float), "a number")
            if value is not None and type(value) not in kinds:
                raise ValueError(f"model_args: {name}={value} is not {allowed}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be a whole number of at least 1")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cuda" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        dtype = dtype or ("bf16" if device.startswith("cuda") else "fp32")
        if dtype not in DTYPES:
            raise ValueError(f"model_args: dtype={dtype} is not one of {', '.join(DTYPES)}")
        self.batch_size, self.device, self.allow_text = int(batch_size), torch.device(device), allow_text
        self.loaded: Loaded = load(pretrained, device=device, dtype=DTYPES[dtype])
        own = {**numbers, "compress_tokens": compress_tokens}
        usual = replace(MOTIONBENCH.protocols["letter"], name="clips")
        adapted = usual.adapt(self.loaded.run.get("protocol", {}), own)
        asked = [name for name, value in own.items() if value is not None]
        self.protocol: Protocol = fit_protocol(adapted, self.loaded.processor, asked)
        say(f"moss_vllm: {self.loaded.name} on {device} in {dtype}; {self.protocol}", file=sys.stderr)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy answers, each cut before the first of its task's `until` strings."""
        _report_sampling(requests)
        texts = [""] * len(requests)
        limits = [int(request.args[1].get("max_new_tokens") or NEW_TOKENS) for request in requests]
        for clip, numbers in self._clips(requests, limits):
            prompts = self._prompts(clip, [requests[n].args[0] for n in numbers])
            limit = limits[numbers[0]]
            answers = next(answer(self.loaded, [prompts], max_new_tokens=limit, batch_size=self.batch_size))
            for n, text in zip(numbers, answers.texts, strict=True):
                texts[n] = cut_at(text, requests[n].args[1].get("until"))
        return texts

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Mean loss per token of each continuation, and whether greedy decoding yields it.

        Despite the name, lmms-eval's tasks take the smallest value. lmms-eval 0.7.3 turns a bare tuple into
        text, which likelihood tasks cannot score; it leaves the contents of a `GenerationResult` alone.
        """
        results: list[Any] = [None] * len(requests)
        for clip, numbers in self._clips(requests, [0] * len(requests)):
            prompts = self._prompts(clip, [requests[n].args[0] for n in numbers])
            wanted = [self._continuation(requests[n]) for n in numbers]
            losses = score_continuations(self.loaded, prompts, wanted)
            for n, loss in zip(numbers, losses, strict=True):
                results[n] = GenerationResult(loss)
        return results

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raise NotImplementedError: only single questions are answered."""
        raise NotImplementedError(
            "moss_vllm answers one question at a time; leave out tasks of several rounds"
        )

    def clean(self) -> None:
        """Free the memory; lmms-eval calls this before it starts a judge on the same device."""
        del self.loaded
        super().clean()

    def _clips(
        self, requests: Sequence[Any], limits: Sequence[int]
    ) -> Iterator[tuple[Clip | None, list[int]]]:
        """Each video or image, read once, and the indices of the requests about it that have equal limits.

        Raises: ValueError naming what cannot be shown, before anything is read.
        """
        visuals: dict[Hashable, _Shown | str] = {}
        groups: dict[Hashable, tuple[_Shown, list[int]]] = {}
        for n, request in enumerate(requests):
            document = request.args[3:]
            if document not in visuals:
                visuals[document] = self._find(request)
            shown = visuals[document]
            if isinstance(shown, _Shown):
                groups.setdefault((shown.key, limits[n]), (shown, []))[1].append(n)
        if faults := [fault for fault in visuals.values() if isinstance(fault, str)]:
            lines = [f"  {fault}" for fault in faults[:SHOWN_FAULTS]]
            raise UnusableData(f"{len(faults)} questions cannot be asked, the first of them:", *lines)
        if texts := sum(shown.key is None for shown in visuals.values() if isinstance(shown, _Shown)):
            say(f"moss_vllm: {texts} questions show nothing and are asked as text alone", file=sys.stderr)
        rows = show_progress(groups.values(), len(requests), "questions", size=lambda row: len(row[1]))
        for shown, numbers in rows if self.rank == 0 else groups.values():
            yield shown.read(), numbers

    def _find(self, request: Any) -> _Shown | str:
        """The video or image of a request, or why it cannot be shown."""
        if len(request.args) < 6:  # a choice without its question, for acc_mutual_info
            return _Shown(None, lambda: None)
        _, _, doc_to_visual, doc_id, task, split = request.args

        def look() -> list[Any]:
            shown = doc_to_visual(self.task_dict[task][split][doc_id])
            return shown if isinstance(shown, list) else [] if shown is None else [shown]

        visuals, where = look(), f"{task}, {split} {doc_id}"
        if not visuals and self.allow_text:
            return _Shown(None, lambda: None)
        if not visuals:
            remedy = "if the task means that, add allow_text=True to --model_args"
            return f"{where}: the task shows nothing, as many do for a missing video; {remedy}"
        if len(visuals) > 1:
            return f"{where}: shows {len(visuals)} videos or images; a question can be about one"
        if isinstance(visuals[0], Image.Image):
            return _Shown((task, split, doc_id), lambda: self._image(look()[0]))
        part = visuals[0] if isinstance(visuals[0], Mapping) else {"path": visuals[0]}
        path = part.get("path") or part.get("url")
        if not isinstance(path, str) or part.get("type", "video") != "video":
            return f"{where}: shows a {type(visuals[0]).__name__}, neither path of a video nor image"
        if not os.path.exists(path):
            return f"{where}: {path} does not exist"
        start_s, end_s = part.get("video_start") or 0.0, part.get("video_end")
        read = partial(read_clip, start_s=start_s, end_s=end_s)
        return _Shown((path, start_s, end_s), partial(read_as, self.protocol, path, read))

    def _image(self, image: Image.Image) -> Clip:
        """A clip of one frame, resized as the frames of a video are."""
        frame, side = np.asarray(image.convert("RGB")), self.protocol.short_side_px
        if self.protocol.max_pixels:
            side = short_side_within(image.height, image.width, self.protocol.max_pixels, self.protocol.sides)
        return Clip(stack_frames("image", iter([frame]), 1, side, self.protocol.sides), np.zeros(1))

    def _prompts(self, clip: Clip | None, questions: Sequence[str]) -> Prompts:
        processor = self.loaded.processor
        if clip is not None:
            return prepare_prompts(processor, clip, questions, compress=self.protocol.compress_tokens)
        encode = family_with(processor).chat.encode
        return Prompts([encode(processor, None, [Turn(text)])["input_ids"] for text in questions], {})

    def _continuation(self, request: Any) -> str:
        """A request's continuation without leading space: answers begin a line, as in training."""
        wanted = request.args[1]
        if callable(wanted):
            _, _, _, doc_id, task, split = request.args
            wanted = wanted(self.task_dict[task][split][doc_id])
        return str(wanted).strip()


def cut_at(text: str, until: str | Sequence[str] | None) -> str:
    """The text before the first occurrence of any of the `until` strings."""
    for stop in [until] if isinstance(until, str) else until or []:
        text = text.split(stop, 1)[0] if stop else text
    return text


def _report_sampling(requests: Sequence[Any]) -> None:
    """Name the tasks that ask for sampling or beams, as answers are greedy."""
    tasks = set()
    for request in requests:
        wants = request.args[1]
        hot = (wants.get("temperature") or 0) > 0 and wants.get("do_sample") is not False
        if hot or wants.get("do_sample") or (wants.get("num_beams") or 1) > 1:
            tasks.add(str(request.args[4]))
    if tasks:
        say(
            f"moss_vllm: {', '.join(sorted(tasks))} ask for sampling or beams; answers are greedy",
            file=sys.stderr,
        )
