"""Owns: a model card says what the checkpoint's record and results say, and nothing acts as markup."""

import json

import pytest
from huggingface_hub import ModelCard

from moss_vllm.evaluation.scoring import OFFICIAL_COUNTS
from moss_vllm.report.model_card import model_card, read_result

RUN = {
    "base_model": "bases/tiny",
    "base_revision": None,
    "base_fingerprint": "0123456789abcdef",
    "moss": {"moss_d_fuse": 12, "moss_window": [3, 3, 3]},
    "protocol": {"sample_fps": 2.0, "short_side_px": 84},
    "settings": {"data": "FAVOR", "lr_moss": 1e-3, "note": "a|b"},
    "processes": 2,
    "step": 360,
    "command": "recipes/favor_lora.py --data FAVOR",
    "versions": {"torch": "2.12.1", "decord": "not installed", "git_commit": "0123456789ab-dirty"},
}
RESULT = {
    "benchmark": "MotionBench-Dev",
    "protocol": {"name": "letter", "sample_fps": 2.0},
    "run": RUN,
    "asked": 1200,
    "questions": 4018,
    "accuracy_percent": {"all": 51.26, "MR": 40.0},
    "chance_percent": {"all": 25.0},
}


def front_matter(card):
    """As the hub's own parser reads it; it refuses a wrong list of scores."""
    return ModelCard(card).data.to_dict()


def test_a_base_of_the_hub_and_a_licence_are_in_the_front_matter():
    run = {**RUN, "base_model": "someone/base", "base_revision": "abc"}
    card = model_card("me/moss", run, merged=False, licence="apache-2.0")
    matter = front_matter(card)
    assert (matter["license"], matter["base_model"]) == ("apache-2.0", "someone/base")
    assert matter["base_model_relation"] == "adapter"
    assert "`someone/base`, revision abc;" in card and "DIR/run.json" not in card
    assert "None were given." in card and "decord" not in card
    assert "| torch | 2.12.1 |\n| git_commit | 0123456789ab-dirty |" in card.replace("\\", "")


def test_a_merged_model_is_told_from_an_adapter():
    run = {**RUN, "base_model": "someone/base"}
    card = model_card("me/moss", run, merged=True)
    assert "import moss_vllm.vlm" in card and 'AutoProcessor.from_pretrained("me/moss")' in card
    assert front_matter(card)["base_model_relation"] == "finetune"
    plain = model_card("me/moss", {**run, "moss": None}, merged=True)
    assert "moss_vllm.vlm" not in plain and front_matter(plain)["library_name"] == "transformers"
    assert "None: the same training without MOSS." in plain


def test_a_card_without_moss_is_told_from_one_of_no_settings():
    run = {"base_model": "O/B", "base_revision": None, "base_fingerprint": "x"}
    for merged in (False, True):
        card = model_card("me/x", {**run, "moss": {}}, merged=merged)
        assert "VideoLLaMA3 with MOSS" in card and "moss" in front_matter(card)["tags"]


def test_notes_counts_and_intervals_stay_with_the_scores():
    result = RESULT | {
        "asked": 300,
        "questions": 300,
        "accuracy_percent": {"all": 30.8},
        "interval_95_percent": {"all": [25.9, 36.3]},
        "counts": {"correct": {"all": 92}, "answered": {"all": 171}, "total": {"all": 300}},
        "notes": ["the paper's rows are of MotionBench-Dev; these data are the motion world, not comparable"],
        "failed": {"a": "gone"},
    }
    card = model_card("me/m", RUN, merged=False, results=[result])
    assert (
        "- **the paper's rows are of MotionBench-Dev; these data are the motion world, not comparable**"
        in card
    )
    assert "- **1 videos missing or unreadable: their questions count as wrong**" in card
    assert "| all | 30.8 | 25.0 | 25.9 to 36.3 | 171 | 300 |" in card
    assert "model-index" not in front_matter(card)


def whole(benchmark, accuracy, **changed):
    """A result of all questions of a published benchmark."""
    counts = OFFICIAL_COUNTS[benchmark]
    asked = sum(counts.values())
    counts = {"counts": {"total": {**counts, "all": asked}}}
    return {
        **RESULT,
        **counts,
        "benchmark": benchmark,
        "asked": asked,
        "questions": asked,
        "accuracy_percent": {"all": accuracy},
        **changed,
    }


def test_the_hub_lists_whole_benchmarks_under_their_names_and_nothing_else():
    generated = ["these data are the motion world, not comparable"]
    others = [
        RESULT,  # a part
        whole("MotionBench-Dev", 91.0, notes=generated),
        whole("MotionBench-Dev", 92.0, counts={"total": {"MR": 4018, "all": 4018}}),
        whole("MotionBench-Dev", 93.0, protocol={"name": "letter", "still": True}),
        {**whole("FAVOR-Bench", 94.0), "benchmark": "of my own"},
        whole("MotionBench-Dev", 95.0, motion_world=True),
    ]
    both = [
        whole("FAVOR-Bench", 46.604),
        whole("MotionBench-Dev", 54.2),
        whole("MotionBench-Dev", 55.1, protocol={"name": "option_text"}),
    ]
    card = model_card("me/m", RUN, merged=False, licence="a: b", results=[*others, *both])
    data = ModelCard(card).data
    assert data.license == "a: b" and data.model_name == "m"
    assert [
        (one.dataset_type, one.dataset_name, one.metric_value, one.metric_name) for one in data.eval_results
    ] == [
        ("zl2048/FAVOR", "FAVOR-Bench", 46.6, "accuracy (%), all, protocol letter"),
        ("zai-org/MotionBench", "MotionBench-Dev", 54.2, "accuracy (%), all, protocol letter"),
        ("zai-org/MotionBench", "MotionBench-Dev", 55.1, "accuracy (%), all, protocol option_text"),
    ]
    text = card.split("---", 2)[2]
    assert all(f"| all | {value:.1f} |" in text for value in (51.3, 91, 92, 93, 94, 95, 46.6, 54.2, 55.1))
    assert front_matter(model_card("me/m", RUN, merged=False, results=others)).get("model-index") is None


@pytest.mark.parametrize(
    "part",
    [
        {"accuracy_percent": {"all": "high"}},
        {"accuracy_percent": {"all": float("nan")}},
        {"chance_percent": []},
        {"asked": "many"},
        {"protocol": "letter"},
        {"notes": {"a": 1}},
        {"notes": ["over all", 5]},
        {"counts": {"total": 3}},
        {"interval_95_percent": {"all": [1]}},
    ],
)
def test_results_that_no_evaluation_writes_are_refused(tmp_path, part):
    file = tmp_path / "result.json"
    file.write_text(json.dumps(RESULT))
    assert read_result(file, RUN) == RESULT
    file.write_text(json.dumps({**RESULT, **part}))
    with pytest.raises(ValueError, match=r"its .* is not"):
        read_result(file, RUN)


@pytest.mark.parametrize("processes, shown", [(1, "python recipes/"), (2, "recipes/")])
def test_the_command_of_one_process_can_be_run_as_it_stands(processes, shown):
    run = {**RUN, "processes": processes}
    card = model_card("me/moss", run, merged=False, licence="apache-2.0")
    assert f"```bash\n{shown}favor_lora.py --data FAVOR\n```" in card
