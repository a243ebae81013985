"""A trained model and the checkpoint that it was saved to."""

import functools
import shutil

import pytest
from checkpoint_edits import train

from moss_vllm.data.rows import Turn
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.video_llama3.chat import collate, encode


@pytest.fixture(scope="session")
def batch(processor, noise_clip):
    turn = Turn("What moves?", "The red circle moves left.")
    examples = [encode(processor, noise_clip(seed), [turn]) for seed in range(2)]
    return collate(examples, pad_id=processor.tokenizer.pad_token_id)


@pytest.fixture(scope="session")
def train_once(tiny_base, moss, batch, processor, tmp_path_factory):
    """A function of "moss" or "plain", that trains a model and saves it on the first call."""

    @functools.cache
    def make(name):
        settings = moss if name == "moss" else None
        model = train(tiny_base, settings, batch)
        folder = tmp_path_factory.mktemp(name) / "a_run" / "step-000002"
        run = {"base_model": str(tiny_base), "base_revision": None, "moss": settings, "step": 2}
        checkpoint.save(folder, model, processor, run)
        return model, folder

    return make


@pytest.fixture(params=["moss", "plain"])
def saved(request, train_once):
    """A trained model and the folder it was saved to, with and without MOSS; neither is to be changed."""
    return train_once(request.param)


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the folder, to be damaged."""
    return shutil.copytree(saved[1], tmp_path / "step-000002")
