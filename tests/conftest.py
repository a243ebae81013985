"""What every test runs under: no hub, no other machine, one thread, gpu tests only on a GPU."""

import gc
import os

gc.disable()  # to go through half a million imported objects again and again took a quarter of the start
# Before anything imports a Hugging Face library: they read these once, at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import ipaddress
import json
import socket

import numpy as np
import pytest
import torch
from launching import SCRIPT, load_script

torch.set_num_threads(1)  # the models are tiny: on busy cores a second thread costs more than it gives


def pytest_collection_finish(session):
    """Collect garbage from here on, of what the tests make; what was imported is here to stay."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item):
    """Skip tests marked `gpu` where there is no CUDA device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fail a test that connects to another machine, also where the caller swallows the error."""
    connect, attempts = socket.socket.connect, []

    def connect_here_only(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            attempts.append(address)
            raise ConnectionRefusedError(f"tests may not connect to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here_only)
    yield
    if attempts:
        pytest.fail(f"the test tried to connect to {attempts}; tests run without a network")


def _is_loopback(host):
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # any other name
        return False


@pytest.fixture(scope="session")
def moss():
    """MOSS settings small enough for a test."""
    return {"moss_window": [3, 3, 3], "moss_d_hidden": 8, "moss_d_similarity": 8, "moss_d_fuse": 12}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory, moss):
    """A folder with a VideoLLaMA3 of random weights, its processor and the MOSS settings it names."""
    from moss_vllm.data.rows import CAPTION_PROMPT
    from moss_vllm.data.world import scenes
    from moss_vllm.vlm.video_llama3.miniature import build, build_processor, build_tokenizer

    rng = np.random.default_rng(0)
    corpus = [CAPTION_PROMPT, "Time 0.0s:,Time 1.5s:\n"]
    corpus += [scenes.caption(scenes.draw_scene_plan(rng), rng) for _ in range(100)]
    processor = build_processor(build_tokenizer(corpus, 400))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(processor.tokenizer)
        for name, weight in model.named_parameters():  # as initialised it says much the same of every video
            if weight.dim() > 1 and "embed_tokens" not in name:
                weight.data.mul_(3)
    folder = tmp_path_factory.mktemp("base") / "tiny"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "miniature.json").write_text(json.dumps({"moss": moss}))
    return folder


@pytest.fixture(scope="session")
def processor(tiny_base):
    """The processor of `tiny_base`."""
    from moss_vllm.vlm.processor import load_processor

    return load_processor(tiny_base)


@pytest.fixture(scope="session")
def checkpoints(tiny_base, moss, processor, tmp_path_factory):
    """Two checkpoints of `tiny_base`: "moss" and "plain", without. All that was trained matters in both."""
    from moss_vllm.vlm import checkpoint
    from moss_vllm.vlm.adapter import attach_lora, trained_state
    from moss_vllm.vlm.base import load_base

    folders = {}
    for name, settings in (("moss", moss), ("plain", None)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            base = load_base(tiny_base, moss=settings)
            model = attach_lora(base, rank=2, alpha=2, dropout=0.0)
            for key, value in trained_state(model).items():
                if "lora_B" in key or ".moss." in key and value.dim() > 1:
                    value.normal_(std=0.05)
                elif "running_mean" in key:
                    value.normal_(std=0.1)
        folders[name] = tmp_path_factory.mktemp(name) / f"with_{name}" / "step-000002"
        checkpoint.save(folders[name], model, processor, {"moss": settings, "step": 2})
    return folders


@pytest.fixture(params=["moss", "plain"])
def reopen(request, checkpoints):
    """A function that opens a checkpoint as each process does for itself, with other numbers drawn."""
    from moss_vllm.vlm import checkpoint

    return lambda *_, **__: checkpoint.load(checkpoints[request.param])


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A small motion world on disk."""
    from moss_vllm.data.world.benchmarks import WorldSize, ensure_world

    size = WorldSize(train_clips=12, motionbench_questions=40, withheld_questions=5, favor_questions=40)
    return ensure_world(tmp_path_factory.mktemp("motion") / "world", size)


@pytest.fixture(scope="session")
def noise_clip():
    """A function that makes a clip of T noise frames of H x W pixels, two a second."""
    from moss_vllm.video.clip import Clip

    def make(seed=0, frames=4, height=56, width=56):
        pixels = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)
        return Clip(pixels, np.arange(frames) / 2)

    return make


@pytest.fixture(scope="module")
def recipe():
    """The module recipes/favor_lora.py."""
    return load_script(SCRIPT)


@pytest.fixture
def one_process(monkeypatch):
    """Accelerate as in a fresh process, on the CPU and one thread."""
    from accelerate.state import AcceleratorState, GradientState

    def reset():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reset()
    yield
    reset()
    torch.set_num_threads(threads)
