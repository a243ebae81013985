"""Owns: a base is found by its path, hub id or name, and known by its weights; what is absent is named."""

import shutil

import pytest
import torch
from checkpoint_edits import edit_json, refused
from safetensors.torch import load_file, save_file
from torch import nn

from moss_vllm.vlm import base, checkpoint, places
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.places import MINIATURE, MINIATURES, base_fingerprint, miniature_name, resolve
from moss_vllm.vlm.processor import load_processor


def test_a_base_is_recorded_by_its_whole_path(tiny_base, monkeypatch):
    (tiny_base.parent / "below").mkdir(exist_ok=True)
    monkeypatch.chdir(tiny_base.parent / "below")
    assert load_base("../tiny").opened_from["base_model"] == str(tiny_base.resolve())


def test_a_fingerprint_is_of_the_weights_not_of_how_they_are_stored(tiny_base, tmp_path):
    expected = base_fingerprint(tiny_base)
    model = load_base(tiny_base)
    assert model.opened_from["base_fingerprint"] == expected
    model.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert base_fingerprint(tmp_path / "shards") == expected
    assert base_fingerprint(tmp_path / "half") == expected


@pytest.mark.parametrize("name", ["model.language_model.layers.3.mlp.up_proj.weight", "lm_head.weight"])
def test_a_base_trained_further_has_another_fingerprint(tiny_base, tmp_path, name):
    folder = shutil.copytree(tiny_base, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights.get(name, torch.zeros(2, 2)) + 0.1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert base_fingerprint(folder) != base_fingerprint(tiny_base)


def test_another_base_at_the_same_place_is_refused(saved, copy, tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    edit_json(copy / "run.json", base_model=str(folder))
    checkpoint.load(copy)  # a moved base is the same base
    weights = load_file(folder / "model.safetensors")
    weights["model.language_model.layers.0.self_attn.q_proj.weight"] *= 1.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(copy, r"base is not the base that .*step-000002 was trained on \(fingerprint")


def serve(monkeypatch, folder, expected):
    """A hub with one repository, of that id and revision."""

    def fetch(*asked, revision=None):
        if (asked[0], revision) == expected and (folder / asked[1]).is_file():
            return str(folder / asked[1])
        raise places.EntryNotFoundError(asked[1])

    monkeypatch.setattr(places, "check_reachable", lambda *_: None)
    monkeypatch.setattr(places, "hf_hub_download", fetch)


def test_a_checkpoint_on_the_hub_opens_by_its_name(saved, monkeypatch):
    asked = []
    serve(monkeypatch, saved[1], ("someone/trained", None))
    monkeypatch.setattr(
        checkpoint, "snapshot_download", lambda *repo, **only: asked.append((*repo, only)) or str(saved[1])
    )
    loaded = checkpoint.load("someone/trained")
    assert loaded.name == "someone/trained" and loaded.run["step"] == 2
    assert asked == [("someone/trained", {"allow_patterns": ["*.json", "*.jinja", "*.txt", "*.safetensors"]})]


def test_a_base_of_the_hub_is_recorded_with_its_commit(tiny_base, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = shutil.copytree(tiny_base, tmp_path / "models--someone--base" / "snapshots" / commit)
    serve(monkeypatch, snapshot, ("someone/base", "main"))
    assert base._origin("someone/base", "main") == {
        "base_model": "someone/base",
        "base_revision": commit,
        "base_fingerprint": base_fingerprint(tiny_base),
    }


def test_a_hub_id_is_refused_at_once_where_the_hub_is_switched_off():
    message = r"someone/nothing: is not cached, .* offline mode .* hf download someone/nothing --local-dir"
    for opened in (checkpoint.load, load_base, load_processor, base.is_miniature):
        with pytest.raises(FileNotFoundError, match=message):
            opened("someone/nothing")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    asked = []

    def fail(url, timeout):
        asked.append(url)
        raise RuntimeError("[Errno -2] Name or service not known")

    monkeypatch.setattr(places, "get_hf_file_metadata", fail)
    message = r"someone/nothing: .*RuntimeError: \[Errno -2\] Name or serv"
    refused("someone/nothing", message, FileNotFoundError)
    assert len(asked) == 1


def test_a_checkpoint_whose_base_cannot_be_reached_names_both(copy):
    edit_json(copy / "run.json", base_model="someone/nothing")
    refused(copy, "the base model of .*step-000002 is not there: someone/noth", FileNotFoundError)


def test_a_head_that_should_be_tied_and_is_not_is_refused(tiny_base):
    model = load_base(tiny_base)
    assert model.config.tie_word_embeddings
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(ValueError, match="ties the head to the embedding and the loaded head is another"):
        base._check_tied(tiny_base, model)


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "nowhere", "~/no/such/folder"])
def test_a_path_that_does_not_exist_is_named(source):
    refused(source, f"{source}: no config.json there; give a checkpoint folder", FileNotFoundError)


def test_a_folder_of_attach_names_what_opens_it(tmp_path):
    (tmp_path / "moss.json").write_text("{}")
    refused(
        tmp_path, "was written by `moss attach` or moss_vllm.save; moss_vllm.load opens it", FileNotFoundError
    )


def test_the_folder_of_a_run_is_not_taken_for_a_hub_id(saved, monkeypatch):
    runs = saved[1].parent.parent
    monkeypatch.chdir(runs.parent)
    message = f"is the folder of a run; give one of its checkpoints, such as {runs.name}/a_run/step-"
    refused(f"{runs.name}/a_run", message, FileNotFoundError)


def test_resolve(tiny_base, monkeypatch):
    assert resolve("miniature") == str(MINIATURE)
    for name, folder in MINIATURES.items():
        assert resolve(name) == str(folder) and miniature_name(folder) == name
    assert miniature_name(tiny_base) is None
    assert resolve("DAMO-NLP-SG/VideoLLaMA3-2B") == "DAMO-NLP-SG/VideoLLaMA3-2B"
    assert resolve(tiny_base) == resolve(str(tiny_base)) == str(tiny_base)
    monkeypatch.chdir(tiny_base.parent.parent)
    relative = f"{tiny_base.parent.name}/{tiny_base.name}"  # looks like a hub id, and is a folder
    assert resolve(relative) == relative
    monkeypatch.setenv("HOME", str(tiny_base.parent))
    assert resolve("~/tiny") == str(tiny_base)
