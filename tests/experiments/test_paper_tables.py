"""Owns: the paper's tables as data have the paper's numbers, and each row is a model of the recipe."""

import json

import ablation_plan
import paper_tables
import pytest
import torch
import yaml

from moss_vllm.recognition.build import build_classifier

PRINTED = {  # FLOPs, TP, Mem, SSV1, D48, as in the paper
    ("4a", "none"): ("148.4 4.5 8.0", 56.9, 85.0),
    ("4a", "n=4"): ("154.4 6.6 11.5", 57.9, 85.4),
    ("4b", "n=1,2,3"): ("152.9 6.1 10.7", 59.3, 87.6),
    ("4c", "conv"): ("- - -", 59.2, 86.6),
    ("4d", "+ Fact Attn."): ("151.2 5.8 11.0", 59.2, 86.4),
    ("10a", "L=7, 5"): ("152.0 5.7 10.5", 59.9, 87.8),
    ("10b", "k=4,6"): ("154.5 6.7 11.9", 60.1, 88.1),
    ("10c", "SELFY"): ("151.1 5.1 11.2", 59.2, 87.0),
    ("10d", "AIM + MOSS"): ("211.3 15.6 40.9", 57.4, 89.4),
    ("10e", "DINO + 1st STSS"): ("150.0 5.1 9.0", 55.3, 85.0),
}


def row(table, name):
    return next(row for row in paper_tables.TABLES[table] if row.name == name)


@pytest.mark.parametrize("table, name", PRINTED)
def test_rows_are_the_papers(table, name):
    found = row(table, name)
    assert (found.cost, found.ssv1, found.d48) == PRINTED[table, name]


def test_tables_are_whole_and_a_configuration_has_one_accuracy():
    counts = {name: len(rows) - sum(row.added for row in rows) for name, rows in paper_tables.TABLES.items()}
    assert counts == {
        **{"3": 6, "4a": 5, "4b": 5, "4c": 5, "4d": 5, "6": 4},
        **{"10a": 5, "10b": 5, "10c": 7, "10d": 8, "10e": 9},
    }
    accuracies = {}
    for table, rows in ablation_plan.NAMES.items():
        for found in rows:
            configuration = (ablation_plan.TASKS[table].score, json.dumps(found.set, sort_keys=True))
            accuracies.setdefault(configuration, set()).add((found.ssv1, found.d48, found.thumos14))
    assert all(len(seen) == 1 for seen in accuracies.values())
    assert row("3", "L/14 MOSS-L").ssv2 == 72.9 and row("3", "L/14 Side4Video").preset.d_out == 512


@pytest.mark.parametrize("data", ["mini", pytest.param("ssv1", marks=pytest.mark.slow)])
def test_every_row_is_a_model_of_the_recipe(tmp_path, data):
    """`plan_runs` builds each on the meta device; Tables 3 and 6 are built in test_efficiency.py."""
    root = None if data == "mini" else str(tmp_path)
    tables = {name: rows for name, rows in ablation_plan.NAMES.items() if name.startswith("table")}
    found = ablation_plan.plan_runs(tables, data, root, 1, tmp_path / "out", [])
    refused = {planned.row.name for rows in found.values() for planned in rows if planned.refused}
    encoders = {row.name for row in paper_tables.TABLES["10e"]}
    assert refused == ({"k=6", "k=8", *encoders} if data == "mini" else set())


OF_TASKS = {  # rows of a task's table: of the paper, by data set; the real one and its variant
    "detection": ({"thumos14": (71.4, None, 72.2, None)}, ("thumos14", "b"), "MOSS, one frame a chunk"),
    "boundaries": (
        {"kinetics_gebd": (76.9, None, 79.4, None), "tapos": (60.1, None, 68.5, None)},
        ("kinetics_gebd", "r50"),
        "MOSS, one frame a clip",
    ),
}


@pytest.mark.parametrize("is_mini", [True, False])
@pytest.mark.parametrize("task", OF_TASKS)
def test_rows_of_tables_8_and_9_are_models_of_their_recipes(tmp_path, task, is_mini):
    paper, (real, variant), control = OF_TASKS[task]
    data = "mini" if is_mini else real
    rows = {task: ablation_plan.NAMES[task]}
    found = ablation_plan.plan_runs(rows, data, str(tmp_path), 1, tmp_path / "out", [])[task]
    assert [planned.row.name for planned in found] == ["none", "first order", "MOSS", control]
    for name, printed in paper.items():
        assert tuple(getattr(planned.row, name) for planned in found) == printed
    settings = [planned.runs[0].settings for planned in found]
    assert [one["temporal"] for one in settings] == ["none", "stss1", "moss", "moss"]
    assert [one["one_frame"] for one in settings] == [False, False, False, True]
    assert {one["variant"] for one in settings} == {"mini" if is_mini else variant}
    names = [planned.runs[0].folder.parent.name.rpartition("-")[0] for planned in found]
    assert names == [f"{task}-{name}" for name in ("none", "stss1", "moss", "moss-one_frame")]


def test_on_the_miniature_modules_are_as_large_beside_moss_as_in_the_paper():
    def millions(variant, settings):
        options = yaml.safe_load(settings.get("temporal_options", "{}"))
        with torch.device("meta"):
            how = {"temporal": settings.get("temporal", "moss"), "temporal_options": options}
            model = build_classifier(variant=variant, classes=12, weights="random", image_size=84, **how)
        return sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6

    base = millions("mini", {"temporal": "none"})
    of_moss = millions("mini", {}) - base
    for found in paper_tables.TABLES["10c"]:
        if found.mini is not None:
            here = (millions("mini", found.mini) - base) / of_moss
            paper = (float(found.paper["TP"]) - 4.5) / (5.6 - 4.5)
            assert 0.6 < here / paper < 1.2, found.name


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1, 2]", "it must hold a list of rows under each table's name"),
        ("'4a': [", "cannot be read as YAML"),
        ("'4a': [{name: x, cost: 1 2 3}]", r"table 4a, row 1 \(x\) has no set"),
        ("'4a': [{name: x, cost: 1 2, set: {}}]", r"row 1 \(x\): cost is '1 2'; write FLOPs TP Mem"),
        ("'4a': [{name: x, cost: 1 2 3, set: {}, ssv1: 59}]", r"row 1 \(x\): ssv1 is 59"),
        ("'4a': [{name: x, cost: 1 2 3, set: {}, top1: 59.0}]", r"row 1 \(x\) has top1; it may have added"),
        ("'4a': [{name: x, cost: 1 2 3, set: {}}, {name: x, cost: 1 2 3, set: {}}]", "has x twice"),
        ("'4a': [7]", "table 4a, row 1 is 7, not names"),
    ],
)
def test_a_wrong_file_is_named_with_its_row(tmp_path, text, message):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        paper_tables.read_tables(tmp_path / "t.yaml")
    assert str(tmp_path / "t.yaml") in str(caught.value)
