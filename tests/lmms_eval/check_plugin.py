"""Owns: in the real lmms-eval a checkpoint gets the answers and losses it gets here, and every video is seen.

`make test-lmms-eval` runs it in an environment of its own; the name keeps it out of `make test`, which has no
lmms-eval.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import environment
from lmms_eval import evaluator
from lmms_eval.api.instance import Instance
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.tasks import TaskManager
from PIL import Image

from moss_vllm.core import MOSS
from moss_vllm.data.motionbench import motionbench_prompt, read_motionbench
from moss_vllm.data.rows import Turn
from moss_vllm.data.world.benchmarks import DEFAULT_ROOT, WorldSize, ensure_world
from moss_vllm.evaluation import answering
from moss_vllm.evaluation.answering import score_continuations
from moss_vllm.evaluation.lmms_eval import Moss, cut_at
from moss_vllm.evaluation.scoring import parse_letter
from moss_vllm.video.clip import Sampling, read_clip
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import attach_lora
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.processor import load_processor
from moss_vllm.vlm.reload_check import model_inputs
from moss_vllm.vlm.video_llama3.miniature import MINIATURE_MOSS

HERE = Path(__file__).parent
HOW = {"sample_fps": 4.0, "short_side_px": 56, "max_frames": 6}
TOKENS = 16  # of motion_world_letter.yaml


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the tasks look for their motion world."""
    folder = tmp_path_factory.mktemp("lmms")
    ensure_world(
        folder / DEFAULT_ROOT, WorldSize(1, motionbench_questions=14, withheld_questions=1, favor_questions=1)
    )
    return folder


@pytest.fixture(autouse=True)
def place(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["miniature", "miniature_qwen2_5_vl"])
def trained(request, tmp_path_factory):
    """A miniature with LoRA and MOSS that speak, and clips of its own."""
    torch.manual_seed(0)
    base = load_base(request.param, moss=MINIATURE_MOSS)
    model = attach_lora(base, rank=2, alpha=2, dropout=0.0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or ".moss." in name and weight.dim() > 1:
                weight.normal_(std=0.05)
    folder = tmp_path_factory.mktemp("run") / "step-000002"
    run = {"moss": MINIATURE_MOSS, "protocol": {**HOW, "compress_tokens": False}}
    checkpoint.save(folder, model, load_processor(request.param), run)
    return folder


@pytest.fixture(scope="module")
def loaded(trained):
    return checkpoint.load(trained)


@pytest.fixture
def model(trained):
    return Moss(str(trained), device="cpu", batch_size=3)


@pytest.fixture
def videos():
    folder = DEFAULT_ROOT / "MotionBench"
    return read_motionbench(folder, folder)


@pytest.fixture
def prefills(monkeypatch):
    """One entry for each time a model was given a video, or text alone."""
    seen, prefill = [], answering._prefill

    def count(loaded, prompts, *rest):
        seen.append(prompts)
        return prefill(loaded, prompts, *rest)

    monkeypatch.setattr(answering, "_prefill", count)
    return seen


def run(trained, tasks, **more):
    return evaluator.simple_evaluate(
        model="moss_vllm",
        model_args=f"pretrained={trained},device=cpu",
        tasks=tasks,
        task_manager=TaskManager(include_path=str(HERE)),
        batch_size=3,
        **more,
    )


def generated(loaded, clip, question, tokens=TOKENS):
    example = loaded.family.chat.encode(loaded.processor, clip, [Turn(question)], compress=False)
    inputs = model_inputs(loaded.model, loaded.processor, example)
    with torch.inference_mode():
        ids = loaded.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return loaded.processor.tokenizer.decode(new, skip_special_tokens=True)


def loss_of(loaded, clip, question, choice):
    """Of one choice in one pass over the whole conversation, whose labels end with <|im_end|>."""
    example = loaded.family.chat.encode(loaded.processor, clip, [Turn(question, choice)], compress=False)
    labels = example["labels"][1:]
    with torch.inference_mode():
        inputs = model_inputs(loaded.model, loaded.processor, example)
        logits = loaded.model(**inputs).logits[0, :-1].float()
    places = (labels != -100).nonzero().flatten()[:-1]
    loss = torch.nn.functional.cross_entropy(logits[places], labels[places])
    return float(loss), bool((logits[places].argmax(-1) == labels[places]).all())


def requests(model, docs, kind="generate_until", told=None, show=lambda doc: doc["show"]):
    """What lmms-eval hands over for `docs` of one task."""
    model.task_dict = {"task": {"test": docs}}
    return [
        Instance(
            request_type=kind,
            arguments=(
                doc["ask"],
                {"max_new_tokens": TOKENS} if told is None else told,
                show,
                n,
                "task",
                "test",
            ),
            idx=0,
            metadata={"task": "task", "doc_id": n, "repeats": 1},
        )
        for n, doc in enumerate(docs)
    ]


def test_the_entry_point_is_found():
    assert MODEL_REGISTRY_V2.get_model_class("moss_vllm") is Moss


def test_a_task_is_answered_as_by_generate(trained, loaded, videos, prefills):
    assert any(isinstance(module, MOSS) for module in loaded.model.modules())
    found = run(trained, ["motion_world_letter"])
    questions = [(video, question) for video in videos for question in video.questions]
    wanted = [
        generated(loaded, read_clip(video.path, Sampling(**HOW)), motionbench_prompt(question))
        for video, question in questions
    ]
    samples = found["samples"]["motion_world_letter"]
    assert [sample["resps"][0][0] for sample in samples] == [text.split("\n\n")[0] for text in wanted]
    assert len(set(wanted)) >= 5
    right = [
        parse_letter(text, question.options) == question.answer
        for text, (_, question) in zip(wanted, questions, strict=True)
    ]
    assert found["results"]["motion_world_letter"]["acc,none"] == pytest.approx(np.mean(right))
    assert len(prefills) == len(videos) < len(questions)


def test_a_likelihood_task_takes_the_likeliest_choice(trained, loaded, videos, prefills):
    found = run(trained, ["motion_world_likelihood"])
    right = []
    questions = [(video, question) for video in videos for question in video.questions]
    samples = found["samples"]["motion_world_likelihood"]
    for sample, (video, question) in zip(samples, questions, strict=True):
        clip, prompt = read_clip(video.path, Sampling(**HOW)), motionbench_prompt(question)
        wanted = [loss_of(loaded, clip, prompt, letter) for letter in "ABCDEF"[: len(question.options)]]
        got = sample["filtered_resps"]
        assert [loss for loss, _ in got] == pytest.approx([loss for loss, _ in wanted], abs=1e-4)
        assert [greedy for _, greedy in got] == [greedy for _, greedy in wanted]
        right.append("ABCDEF"[int(np.argmin([loss for loss, _ in wanted]))] == question.answer)
    assert found["results"]["motion_world_likelihood"]["acc,none"] == pytest.approx(np.mean(right))
    assert 0 < np.mean(right) < 1  # else the likeliest and the unlikeliest might score the same
    assert len(prefills) == len(videos)


def test_losses_are_of_all_words_of_a_choice(loaded, noise_clip):
    asked = ["What moves?", "What moves?", "What moves first, and where to?", "What moves?"]
    choices = ["the red circle moves left", "the red circle moves left twice", "no", "the red circle"]
    prompts = answering.prepare_prompts(loaded.processor, noise_clip(), asked, compress=False)
    found = score_continuations(loaded, prompts, choices)
    wanted = [loss_of(loaded, noise_clip(), *pair) for pair in zip(asked, choices, strict=True)]
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in wanted], abs=1e-4)
    assert len({round(loss, 3) for loss, _ in found}) == 4
    said = generated(loaded, noise_clip(), asked[0])
    prompts = answering.prepare_prompts(loaded.processor, noise_clip(), asked[:2], compress=False)
    assert [greedy for _, greedy in score_continuations(loaded, prompts, [said, "no"])] == [True, False]
    with pytest.raises(ValueError, match="a choice is empty"):
        score_continuations(loaded, prompts, ["", "no"])


def test_what_is_shown_is_read_once_wherever_it_is_asked_about(model, loaded, videos, prefills):
    first, second = (str(video.path) for video in videos[:2])
    part = {"type": "video", "path": first, "video_start": 1.0, "video_end": 2.0}
    docs = [
        {"ask": f"What moves {n}?", "show": [path]} for n, path in enumerate([first, second, part, first])
    ]
    texts = model.generate_until(requests(model, docs))
    clips = [
        read_clip(first, Sampling(**HOW)),
        read_clip(second, Sampling(**HOW)),
        read_clip(first, Sampling(**HOW), start_s=1.0, end_s=2.0),
    ]
    wanted = [generated(loaded, clips[n], doc["ask"]) for n, doc in zip([0, 1, 2, 0], docs, strict=True)]
    assert texts == wanted
    assert [len(prompts.ids) for prompts in prefills] == [2, 1, 1]


def test_an_image_is_a_video_of_one_frame(model, loaded):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 112, 3), np.uint8)
    image = Image.fromarray(pixels).convert("RGBA")
    docs = [{"ask": "What is it?", "show": [image]}, {"ask": "Where is it?", "show": [image]}]
    texts = model.generate_until(requests(model, docs))
    clip = model._image(image)
    assert clip.frames.shape == (1, 56, 84, 3) and clip.frame_times_s.tolist() == [0.0]
    assert texts == [generated(loaded, clip, doc["ask"]) for doc in docs]


def test_every_video_that_cannot_be_shown_is_named_before_any_question(model, videos, prefills):
    path = str(videos[0].path)
    shown = [[path], ["gone.mp4"], [], None, [path, path], [{"type": "audio", "array": [0.0]}]]
    docs = [{"ask": "What moves?", "show": one} for one in shown]
    with pytest.raises(ValueError, match="5 questions cannot be asked") as caught:
        model.generate_until(requests(model, docs))
    told = str(caught.value).splitlines()[1:]
    assert [line.split(": ")[0].strip() for line in told] == [f"task, test {n}" for n in range(1, 6)]
    assert (
        "gone.mp4 does not exist" in told[0] and "allow_text=True" in told[1] and "allow_text=True" in told[2]
    )
    assert "shows 2 videos or images" in told[3] and "shows a dict, neither" in told[4]
    assert not prefills


def test_text_alone_is_asked_only_where_allowed_and_counted(trained, loaded, videos, capsys):
    model = Moss(str(trained), device="cpu", allow_text=True)
    path = str(videos[0].path)
    docs = [
        {"ask": ask, "show": show} for ask, show in (("Who?", []), ("Where?", [path]), ("How often?", None))
    ]
    texts = model.generate_until(requests(model, docs))
    clips = [None, read_clip(path, Sampling(**HOW)), None]
    assert texts == [generated(loaded, clip, doc["ask"]) for clip, doc in zip(clips, docs, strict=True)]
    assert "2 questions show nothing and are asked as text alone" in capsys.readouterr().err


def test_limits_ends_and_sampling_are_those_of_the_request(model, loaded, videos, capsys):
    path, ask = str(videos[0].path), "What moves?"
    whole = generated(loaded, read_clip(path, Sampling(**HOW)), ask, 12)
    stop = whole[len(whole) // 2 :][:3]
    told = [{"max_new_tokens": 1}, {"max_new_tokens": 12}, {"max_new_tokens": 12, "until": ["never", stop]}]
    told.append({"max_new_tokens": 12, "until": stop, "temperature": 0.7})
    docs = [{"ask": ask, "show": [path]}] * 4
    asked = [requests(model, docs, told=one)[n] for n, one in enumerate(told)]
    short = generated(loaded, read_clip(path, Sampling(**HOW)), ask, 1)
    ended = whole[: whole.index(stop)]
    assert len({short, whole, ended}) == 3
    assert model.generate_until(asked) == [short, whole, ended, ended]
    assert capsys.readouterr().err.count("task ask for sampling") == 1
    assert (
        cut_at("a b c", None) == "a b c" and cut_at("a b c", ["c", "b"]) == "a " and cut_at("ab", "") == "ab"
    )


def test_arguments_are_those_of_lmms_eval(trained, loaded):
    compresses = loaded.family.compresses
    text = f"pretrained={trained},device=cpu,sample_fps=1,short_side_px=84,compress_tokens={compresses}"
    model = Moss.create_from_arg_string(text, {"batch_size": "5"})
    clips = model.protocol
    assert (clips.sample_fps, clips.short_side_px, clips.max_frames, clips.compress_tokens) == (
        1,
        84,
        6,
        compresses,
    )
    assert model.batch_size == 5
    for wrong, told in (
        ("max_frames=many", "max_frames=many is not a number"),
        ("compress_tokens=no", "compress_tokens=no is not True or False"),
        ("dtype=float32", "dtype=float32 is not one of fp32, bf16, fp16"),
        ("batch_size=auto", "batch_size is auto; it must be a whole number"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            Moss.create_from_arg_string(f"pretrained={trained},{wrong}")
    with pytest.raises(NotImplementedError, match="one question at a time"):
        model.generate_until_multi_round([])


def test_the_command_runs_on_two_processes_as_on_one(folder, trained):
    found = run(trained, ["motion_world"])["results"]
    launcher = (
        "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    )
    argv = ["-m", *launcher.split(), "--dynamo_backend", "no", "--main_process_port", "0", "-m", "lmms_eval"]
    argv += ["--model", "moss_vllm", "--model_args", f"pretrained={trained},device=cpu", "--batch_size", "3"]
    argv += ["--tasks", "motion_world", "--include_path", str(HERE)]
    done = subprocess.run(
        [sys.executable, *argv], env=environment(), cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    scores = dict(re.findall(r"- (motion_world_\w+) *\|none.*?acc\|↑ *\| *([0-9.]+)\|", done.stdout))
    assert scores, done.stdout[-4000:] + done.stderr[-4000:]
    wanted = {name: found[name]["acc,none"] for name in ("motion_world_letter", "motion_world_likelihood")}
    assert {name: float(score) for name, score in scores.items()} == pytest.approx(wanted, abs=1e-3)


def test_memory_is_given_back_for_a_judge(model):
    model.clean()
    assert not hasattr(model, "loaded")
