"""Owns: experiments/efficiency.py counts what the paper prints, to the digit, or says why not."""

import json

import efficiency
import multiply_adds
import pytest
import torch
from efficiency import KeptForBackward, MacCounter
from torch import nn

from moss_vllm.core.presets import LadderPreset
from moss_vllm.core.stss import stss

# Rows whose FLOPs or parameters round to another digit than the paper's.
OTHER_FLOPS = {"B/16 MOSS-S", "L/14 MOSS-L", "MOSS-L", "Local Attn.", "ATM"}
OTHER_FLOPS |= {"full FT + MOSS", "AIM + MOSS", "DiST", "DiST + MOSS"}
OTHER_TP = {"L=3, 5", "L=5, 3", "Fact Attn.", "ATM", "DiST + MOSS"}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    path = tmp_path_factory.mktemp("cost") / "deep" / "cost.json"
    found = {}
    for table in ("3", "4", "6", "10", "video-llm"):  # 8 and 9 have tests of their own, and take a minute
        found |= efficiency.main(["--table", table, "--json", str(path)])
    assert json.loads(path.read_text()) == {"video-llm": found["video-llm"]}
    return found


def rows(tables):
    return [(name, row) for name, found in tables.items() if name in efficiency.TABLES for row in found]


@pytest.mark.slow
@pytest.mark.parametrize("unit, others", [("FLOPs", OTHER_FLOPS), ("TP", OTHER_TP)])
def test_numbers_have_the_papers_digits(tables, unit, others):
    differ = set()
    for _, row in rows(tables):
        printed = row["paper"][unit]
        if printed != "-" and unit in row:
            digits = len(printed.partition(".")[2])
            differ |= set() if f"{row[unit]:.{digits}f}" == printed else {row["name"]}
    assert differ == others


@pytest.mark.slow
def test_every_difference_is_explained(tables):
    for _, row in rows(tables):
        assert row["note"] or efficiency.unexplained(row) == []


@pytest.mark.slow
def test_hosts_differ_from_the_paper_by_what_their_notes_say(tables):
    found = {row["name"]: (row["FLOPs"], row["TP"]) for row in tables["10d"]}
    pairs = [("full FT ViT-B", "full FT + MOSS"), ("AIM ViT-B", "AIM + MOSS"), ("DiST", "DiST + MOSS")]
    for base, with_moss in pairs:
        (flops, millions), (more_flops, more_millions) = found[base], found[with_moss]
        assert more_flops - flops + 0.13 == pytest.approx(3.43, abs=0.01)
        assert more_millions - millions + 0.08 == pytest.approx(1.29, abs=0.01)
    assert found["DiST"][0] + 3.43 == pytest.approx(165.5, abs=0.05)


def test_a_difference_without_a_note_is_reported():
    row = {
        "name": "x",
        "note": "",
        "paper": {"FLOPs": "150.0", "TP": "6", "Mem": "-"},
        "FLOPs": 150.6,
        "TP": 6.4,
    }
    assert efficiency.unexplained(row) == ["! FLOPs 150.60 instead of 150.0, unexplained"]


@pytest.mark.slow
def test_memory_grows_with_the_order_and_is_below_the_papers_total(tables):
    kept = [row["kept"] for row in tables["4a"]]
    assert kept == sorted(kept)
    by_name = {row["name"]: row for row in tables["10c"]}
    assert by_name["MOSS"]["kept"] < by_name["SELFY"]["kept"] < by_name["ATM"]["kept"]
    for row in tables["4a"] + tables["4b"] + tables["10c"]:
        assert row["kept"] < float(row["paper"]["Mem"])
        assert row["kept MB/clip"] == pytest.approx(row["kept"] * 1000 / 32)


@pytest.mark.slow
def test_the_operator_multiplies_less_than_the_paper_counts(tables):
    for row in tables["stss"]:
        assert row["inside windows"] <= row["here, on a CPU"] <= row["as the paper counts"]
    assert tables["stss"][0]["as the paper counts"] == pytest.approx(5 * 8 * 196**2 * 128 / 1e9)


@pytest.mark.slow
def test_video_llm_parts_add_up(tables):
    *parts, total = tables["video-llm"].values()
    assert sum(parts) == pytest.approx(total) and total == pytest.approx(12.967, abs=1e-3)
    assert tables["video-llm"]["order1 fuse"] == pytest.approx((9 * 7 * 256 * 256 + 2 * 256) / 1e6)


@pytest.mark.parametrize(
    "run, expected",
    [
        (lambda: nn.Linear(3, 4)(torch.ones(2, 3)), 2 * 3 * 4),
        (lambda: torch.ones(5, 2, 3) @ torch.ones(5, 3, 4), 5 * 2 * 3 * 4),
        (lambda: nn.Conv2d(4, 6, 3, groups=2)(torch.ones(1, 4, 5, 5)), 3 * 3 * 6 * 9 * 2),
        (lambda: nn.LayerNorm(4)(torch.ones(2, 4)), 5 * 8),
        (lambda: nn.BatchNorm2d(4)(torch.ones(2, 4, 3, 3)), 5 * 72),
        (lambda: nn.functional.scaled_dot_product_attention(*[torch.ones(2, 3, 5, 8)] * 3), 2 * 6 * 25 * 8),
        (lambda: stss(torch.ones(2, 4, 3, 5, 8), (3, 5, 5)), 2 * 3 * 4 * 15**2 * 8),
        (lambda: nn.functional.gelu(torch.ones(9)), 0),
    ],
)
def test_counting_rules(run, expected):
    with MacCounter() as counter:
        run()
    assert counter.macs == expected


def test_an_own_operator_without_a_cost_is_an_error(monkeypatch):
    monkeypatch.delitem(multiply_adds.MACS, torch.ops.moss_vllm.stss)
    with pytest.raises(NotImplementedError, match="moss_vllm.stss"), MacCounter():
        stss(torch.ones(1, 2, 3, 3, 4), (1, 1, 1))


def test_kept_bytes_count_each_storage_once_without_weights_and_inputs():
    linear, x = nn.Linear(3, 5, bias=False), torch.randn(7, 3)
    with KeptForBackward(linear, [x]) as kept:
        y = linear(x)  # keeps its input and its weight
        z = y.sin()  # keeps y
        (y * z).sum()  # keeps y again, and z
    assert kept.total_bytes() == 2 * 7 * 5 * 4


@pytest.mark.slow
@pytest.mark.parametrize("host", ["ladder", "full", "aim", "dist"])
def test_a_training_step_moves_what_is_trained_and_not_the_encoder(monkeypatch, host):
    torch.manual_seed(0)
    monkeypatch.setattr(efficiency, "CLASSES", 3)
    preset = LadderPreset("test_vit", 64, 16, (1, 2), 16, 2, (2,), (3, 3, 3), 8, 4, None)
    model = efficiency.build_model(host, preset, {}, image_size=32)
    video, labels = torch.randn(2, 3, 3, 32, 32), torch.tensor([0, 1])
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen or host == "full"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for dtype in efficiency.PRECISIONS.values():
        losses = [efficiency.train_step(model, optimizer, video, labels, dtype) for _ in range(12)]
        assert sum(losses[6:]) < sum(losses[:6])  # AIM has dropout
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in frozen.items())


def test_what_a_frozen_part_hands_over_can_be_left_out():
    linear = nn.Linear(3, 5)
    with KeptForBackward(linear, []) as kept:
        tap = torch.randn(7, 3).exp()
        kept.exclude([tap])
        linear(tap.view(7, 1, 3)).exp()  # keeps its input, which is left out, and its output
    assert kept.total_bytes() == 7 * 5 * 4


def test_video_llm_parameters_are_those_of_the_module_that_is_attached(monkeypatch):
    class Thinner(efficiency.MossVideoLlama3VisionConfig):
        moss_d_fuse: int = 8

    whole = efficiency.video_llm_parameters()["all"]
    monkeypatch.setattr(efficiency, "MossVideoLlama3VisionConfig", Thinner)
    assert efficiency.video_llm_parameters()["all"] < whole / 2


def test_json_is_whole_or_not_there_and_its_place_is_tried_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(efficiency, "video_llm_parameters", lambda: pytest.fail("computed first"))
    (tmp_path / "file").touch()
    for place, message in ((tmp_path, "is a folder"), (tmp_path / "file" / "a.json", "cannot be made")):
        with pytest.raises(SystemExit):
            efficiency.main(["--table", "video-llm", "--json", str(place)])
        assert message in capsys.readouterr().err
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(efficiency, "video_llm_parameters", lambda: {"all": 1.0, "no json": object()})
    monkeypatch.setattr(efficiency, "video_llm_table", lambda parts: "")
    with pytest.raises(TypeError, match="not JSON serializable"):
        efficiency.main(["--table", "video-llm", "--json", str(tmp_path / "file")])
    monkeypatch.setattr(efficiency, "video_llm_parameters", lambda: {"all": 1.0})
    monkeypatch.setattr(efficiency.os, "replace", lambda part, path: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        efficiency.main(["--table", "video-llm", "--json", str(tmp_path / "file")])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


@pytest.mark.gpu
def test_peak_memory_is_at_least_what_is_kept():
    row = efficiency.measure(efficiency.TABLES["4a"][1], torch.device("cuda"))
    assert row["kept"] < row["peak f32"]
    assert row["bf16"] < row["peak f32"]
