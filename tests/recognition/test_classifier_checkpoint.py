"""Owns: a classifier's checkpoint holds all that was trained, not the frozen encoder, or is refused."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from moss_vllm.encoders.image import open_encoder
from moss_vllm.recognition import checkpoint
from moss_vllm.recognition.build import HOSTS, build_classifier
from moss_vllm.recognition.checkpoint import WEIGHTS_FILE, load, restore, save
from moss_vllm.runtime.trained_weights import encoder_fingerprint

MINI = {"variant": "mini", "classes": 3, "weights": "random", "frames": 2, "image_size": 28}


def clip(seed=0):
    return torch.randn(2, 2, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


def trained_model(**options):
    """A classifier none of whose weights and statistics is as it was built."""
    torch.manual_seed(1)
    model = build_classifier(**{**MINI, **options}).train()
    with torch.no_grad():
        for name in model.trained_names():
            value = model.state_dict()[name]
            if value.is_floating_point():
                value.add_(0.01 * torch.rand(value.shape))
    frames = model.frames_per_encoded
    model(clip().repeat_interleave(frames, dim=1))  # moves BatchNorm's statistics
    return model


def write(folder, model, **changes):
    run = {"model": {**MINI, **changes}, "classes": ["a", "b", "c"], "views": {}, "data": "list", "step": 7}
    save(folder, model, run, state=model.trained_state())
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "run" / "step-000007", trained_model())


@pytest.mark.parametrize(
    "name, value", [*(("host", host) for host in HOSTS), *(("temporal", t) for t in ("stss1", "atm", "none"))]
)
def test_what_was_saved_scores_the_same_again(tmp_path, name, value):
    model = trained_model(**{name: value})
    write(tmp_path / "step-000007", model, **{name: value})
    torch.manual_seed(2)  # a rebuilt model begins elsewhere
    loaded = load(tmp_path / "step-000007")
    assert not loaded.model.training and loaded.name == "step-000007" and loaded.classes == ("a", "b", "c")
    before, after = model.state_dict(), loaded.model.state_dict()
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    video = clip(3).repeat_interleave(model.frames_per_encoded, dim=1)
    assert torch.equal(loaded.model(video), model.eval()(video))


def test_the_keeper_checks_what_is_on_disk(tmp_path):
    keeper = checkpoint.Keeper(trained_model(), {"model": MINI, "classes": ["a", "b", "c"]})
    state, folder = keeper.state(), tmp_path / "step-000007"
    keeper.save(folder, state, 7)
    keeper.check(folder, state)
    assert json.loads((folder / "run.json").read_text())["step"] == 7
    name = next(name for name in state if name.endswith("running_mean"))
    with pytest.raises(RuntimeError, match=f"differs from the weights in memory in {re.escape(name)};"):
        keeper.check(folder, {**state, name: state[name] + 1})


def test_the_file_has_the_ladder_with_its_statistics_and_not_the_encoder(folder):
    weights, model = load_file(folder / WEIGHTS_FILE), trained_model()
    assert set(weights) == {name for name in model.state_dict() if name.startswith("ladder.")}
    # BatchNorm's statistics, which are no parameters: in the ladder, and in MOSS.
    for name in ("ladder.stem.batch_norm", "ladder.moss.order1.fuse.batch_norm"):
        assert int(weights[f"{name}.num_batches_tracked"]) == 1
        assert not torch.equal(
            weights[f"{name}.running_var"], torch.ones_like(weights[f"{name}.running_var"])
        )
    kinds = {weights[name].dtype for name in weights if not name.endswith("num_batches_tracked")}
    assert kinds == {torch.float32}
    run = json.loads((folder / "run.json").read_text())
    assert run["step"] == 7 and set(run["versions"]) >= {"torch", "moss_vllm"}
    assert re.fullmatch("[0-9a-f]{16}", run["encoder_fingerprint"])


@pytest.mark.parametrize(
    "host, inside, outside",
    [
        ("full", "vit.blocks.0.attn.qkv.weight", None),
        ("aim", "vit.norm.weight", "vit.blocks.0.attn.qkv.weight"),
        ("dist", "head.weight", "encoder.vit.blocks.0.attn.qkv.weight"),
    ],
)
def test_the_other_hosts_save_what_they_train(tmp_path, host, inside, outside):
    model = trained_model(host=host)
    names = load_file(write(tmp_path / "one", model, host=host) / WEIGHTS_FILE).keys()
    assert inside in names and outside not in names
    assert outside is None or outside in model.state_dict()
    moved = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved <= names


def test_a_new_head_is_left_as_it_is(folder):
    model = build_classifier(**{**MINI, "classes": 5})
    head = model.ladder.head.weight.clone()
    with pytest.raises(ValueError, match=r"2 of another shape \(ladder\.head\.bias, ladder\.head\.weight\)"):
        restore(folder, model)
    restore(folder, model, but_head=True)
    assert torch.equal(model.ladder.head.weight, head) and model.ladder.head.out_features == 5
    weights, now = load_file(folder / WEIGHTS_FILE), model.state_dict()
    kept = [name for name in weights if not name.startswith("ladder.head.")]
    assert len(kept) == len(weights) - 2 and all(torch.equal(now[name], weights[name]) for name in kept)


# ---- the encoder it was trained beside


@pytest.fixture
def beside_a_file(tmp_path):
    """A checkpoint trained beside an encoder from a file, and that file."""
    vit = open_encoder("mini_vit", layers=(2, 4), weights="random").vit
    file = tmp_path / "vit.safetensors"
    torch.manual_seed(5)
    weights = {name: value + 0.1 * torch.randn(value.shape) for name, value in vit.state_dict().items()}
    save_file(weights, file)
    model = trained_model(weights=str(file))
    return write(tmp_path / "step-000001", model, weights=str(file)), file, model


def test_the_encoder_is_opened_where_it_was_or_where_it_is_named(beside_a_file, tmp_path):
    folder, file, model = beside_a_file
    expected = model.eval()(clip())
    assert torch.equal(load(folder).model(clip()), expected)
    moved = file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(FileNotFoundError, match=f"weights {file}: no such file"):
        load(folder)
    assert torch.equal(load(folder, weights=str(moved)).model(clip()), expected)


def test_another_encoder_is_refused(beside_a_file, tmp_path):
    folder, file, model = beside_a_file
    own, theirs = (encoder_fingerprint(one) for one in (build_classifier(**MINI), model))
    told = rf"beside other weights of mini_vit \(fingerprint {theirs}, these have {own}\); pass those"
    with pytest.raises(ValueError, match=told):
        load(folder, weights="random")
    weights = load_file(file)
    for name in ("pos_embed", "blocks.3.mlp.fc2.bias"):  # one tensor is enough
        save_file({**weights, name: weights[name] + 1}, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match="trained beside other weights"):
            load(folder, weights=str(tmp_path / "other.safetensors"))


def test_what_trains_is_no_part_of_the_fingerprint():
    one, other = trained_model(), build_classifier(**MINI)
    assert encoder_fingerprint(one) == encoder_fingerprint(other)
    assert encoder_fingerprint(one) != encoder_fingerprint(build_classifier(**{**MINI, "host": "aim"}))


# ---- what is refused


def edit(folder, change):
    save_file(change(load_file(folder / WEIGHTS_FILE)), folder / WEIGHTS_FILE)


def test_every_fault_of_the_weights_is_named_at_once(folder):
    def damage(weights):
        weights.pop("ladder.norm.weight")
        weights["ladder.extra"] = torch.zeros(1)
        weights["ladder.head.bias"] = torch.zeros(4)
        weights["ladder.norm.running_var"][3] = float("inf")
        return weights

    edit(folder, damage)
    with pytest.raises(ValueError) as caught:
        load(folder)
    assert str(caught.value) == (
        f"{folder}/{WEIGHTS_FILE}: 1 missing (ladder.norm.weight), 1 left over (ladder.extra), 1 of another "
        "shape (ladder.head.bias), 1 not finite (ladder.norm.running_var); use a checkpoint of this "
        "classifier, whole"
    )


def test_a_refused_checkpoint_changes_no_weight(folder):
    edit(folder, lambda weights: {**weights, "ladder.norm.weight": torch.full((48,), float("nan"))})
    model = build_classifier(**MINI)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"1 not finite \(ladder\.norm\.weight\)"):
        restore(folder, model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_pickle_in_place_of_weights_is_refused(folder):
    torch.save({"a": torch.zeros(1)}, folder / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=rf"{re.escape(str(folder))}.*use another checkpoint"):
        load(folder)


@pytest.mark.parametrize("lacking", checkpoint.NEEDED)
def test_a_record_without_what_is_needed(folder, lacking):
    run = json.loads((folder / "run.json").read_text())
    run.pop(lacking)
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(ValueError, match=rf"run\.json: has no {lacking}; is it of a classifier\?"):
        load(folder)


@pytest.mark.parametrize(
    "model", [{"variant": "mini"}, {**MINI, "depth": 3}, {**MINI, "classes": "three"}, [1]]
)
def test_a_record_whose_model_cannot_be_built(folder, model):
    run = {**json.loads((folder / "run.json").read_text()), "model": model}
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(
        ValueError, match=r"run\.json: its model cannot be built \((.|\n)*\); use a whole checkpoint"
    ):
        load(folder)
