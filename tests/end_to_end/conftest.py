"""What faults and recipes start from: runs of one or two steps, and folders to damage."""

import json
import os
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import tiny_boundaries
from action_layouts import DATASETS, TINY, write_layout
from boundary_layouts import GROUND_TRUTH, TEST, write_kinetics, write_tapos
from boundary_runs import flags as boundary_flags
from detection_layouts import write_thumos
from detection_runs import flags as detection_flags
from detection_runs import small_detectors
from launching import ROOT, as_flags, load_script
from tiny_boundaries import write_moving
from tiny_detector import edit_run, write_checkpoint, write_encoder, write_videos

from moss_vllm.data.boundaries.datasets import read_boundaries
from moss_vllm.data.detection.datasets import read_detection
from moss_vllm.vlm import checkpoint

CLIPS = "FAVOR/videos/FAVOR-Train"


@pytest.fixture(scope="session")
def layouts(tmp_path_factory):
    """The folder of each action dataset; not to be changed."""
    root = tmp_path_factory.mktemp("layouts")
    for data in DATASETS:
        write_layout(data, root / data)
    return root


@pytest.fixture(scope="session")
def action_recipe():
    return load_script(ROOT / "recipes" / "action_recog.py")


@pytest.fixture(scope="session")
def action_tester():
    return load_script(ROOT / "eval" / "action_recog.py")


@pytest.fixture(scope="session")
def trained_actions(action_recipe, layouts, tmp_path_factory):
    """The folder of a run on `list`, and of one on Kinetics; not to be changed."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    root = tmp_path_factory.mktemp("trained")
    for data in ("list", "k400"):
        given = {**TINY, "data": data, "root": layouts / data, "out": root / data}
        action_recipe.main(as_flags(given))
    return root


@pytest.fixture(scope="module")
def trained(recipe, tiny_base, world, tmp_path_factory):
    """The folder of a Video-LLM's run of one step."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    out = tmp_path_factory.mktemp("trained") / "run"
    given = {"model": tiny_base, "data": world / "FAVOR", "out": out, "steps": 1, "batch_size": 2}
    recipe.main(as_flags({**given, "workers": 0, "lora_rank": 4, "tracker": "none"}))
    return out


@pytest.fixture
def ground(recipe, trained, tiny_base, world, tmp_path, one_process, monkeypatch):
    """A folder with the world's FAVOR-Train, and functions that add to it or run something."""
    favor, run, base = tmp_path / "FAVOR", tmp_path / "run", tmp_path / "base"
    shutil.copytree(world / CLIPS, tmp_path / CLIPS)
    rows = json.loads((world / "FAVOR" / "train.json").read_text())

    def write():
        (favor / "train.json").write_text(json.dumps(rows))

    def words(*more, **settings):
        given = {"model": tiny_base, "data": favor, "out": run, "steps": 2, "batch_size": 2, "workers": 0}
        return [*as_flags({**given, "lora_rank": 4, "tracker": "none", **settings}), *more]

    def train(*more, **settings):
        return partial(recipe.main, words(*more, **settings))

    def script(name, *given):
        return partial(load_script(f"scripts/{name}.py").main, list(map(str, given)))

    def checkpoint_folder():
        shutil.copytree(trained, run)
        return run / "step-000001"

    def base_folder():
        shutil.copytree(tiny_base, base)
        return base

    def delete_before(function, *indices):
        """Delete videos when the recipe comes to one of its functions."""
        call = getattr(recipe, function)

        def delete(*args, **settings):
            for index in indices:
                clip(index).unlink()
            return call(*args, **settings)

        monkeypatch.setattr(recipe, function, delete)

    def clip(index):
        return tmp_path / CLIPS / rows[index]["video_name"]

    write()
    return SimpleNamespace(
        tmp=tmp_path,
        places={"tmp": tmp_path, "base": tiny_base},
        favor=favor,
        world=world,
        tiny_base=tiny_base,
        rows=rows,
        write=write,
        clip=clip,
        delete_before=delete_before,
        words=words,
        train=train,
        dry=partial(train, "--dry-run"),
        bare=lambda *argv: partial(recipe.main, argv),
        script=script,
        load=lambda folder: partial(checkpoint.load, folder),
        checkpoint=checkpoint_folder,
        base=base_folder,
        patch=monkeypatch.setattr,
    )


@pytest.fixture
def action_ground(request, action_recipe, action_tester, layouts, tmp_path, one_process):
    """A folder to write to, and functions that fill it or run something in it."""
    run = tmp_path / "run"

    def copy(data):
        return shutil.copytree(layouts / data, tmp_path / data)

    def train(*more, **given):
        known = {**TINY, "root": layouts / "list", "out": run, **given}
        flags = {name: value for name, value in known.items() if value is not None}
        return partial(action_recipe.main, [*as_flags(flags), *more])

    def finished_run():
        """The run on `list`, copied."""
        return shutil.copytree(request.getfixturevalue("trained_actions") / "list", run)

    def test(**given):
        return partial(action_tester.main, as_flags({"ckpt": run / "best", "workers": 0, **given}))

    return SimpleNamespace(
        tmp=tmp_path,
        places={"tmp": tmp_path, "list": layouts / "list", "gym99": layouts / "gym99"},
        run=run,
        layouts=layouts,
        copy=copy,
        train=train,
        test=test,
        finished_run=finished_run,
    )


@pytest.fixture
def detection_ground(tmp_path):
    """A small THUMOS-14, and a function that reads its test."""
    file = write_thumos(tmp_path / "thumos")
    return SimpleNamespace(
        tmp=tmp_path,
        places={"tmp": tmp_path},
        file=file,
        videos=tmp_path / "thumos" / "raw_data" / "video",
        read=partial(partial, read_detection, "thumos14", tmp_path / "thumos", "test"),
    )


@pytest.fixture
def boundary_ground(tmp_path):
    """A small Kinetics-GEBD and TAPOS in their real layouts, and functions that read their tests."""
    root, tapos = tmp_path / "kinetics", tmp_path / "tapos"
    file, instances = write_kinetics(root), write_tapos(tapos)
    return SimpleNamespace(
        tmp=tmp_path,
        places={"tmp": tmp_path},
        file=file,
        clips=root / "images" / "val",
        instances=instances,
        read=partial(partial, read_boundaries, "kinetics_gebd", root, "test"),
        read_tapos=partial(partial, read_boundaries, "tapos", tapos, "test"),
        read_own=partial(partial, read_boundaries, "json", root, "test"),
    )


@pytest.fixture(scope="session")
def tiny_boundaries_root(tmp_path_factory):
    """A small Kinetics-GEBD, and a boundary model's checkpoint as run/best; not to be changed."""
    root = tmp_path_factory.mktemp("boundaries")
    write_moving(root / "kinetics")
    tiny_boundaries.write_checkpoint(root / "run" / "best", root / "kinetics")
    return root


@pytest.fixture
def boundary_test_ground(tiny_boundaries_root, tmp_path):
    """A copy of `tiny_boundaries_root`, and a function that tests the checkpoint or a file."""
    tester, root = load_script(ROOT / "eval" / "boundaries.py"), tmp_path / "kinetics"
    for name in ("kinetics", "run"):
        shutil.copytree(tiny_boundaries_root / name, tmp_path / name)
    edit_run(tmp_path / "run" / "best", settings={"root": str(root)})

    def test(**flags):
        given = {"ckpt": tmp_path / "run" / "best", "root": root, "workers": 0, "device": "cpu", **flags}
        words = as_flags({name: value for name, value in given.items() if value is not None})
        return partial(tester.main, [word.replace("<tmp>", str(tmp_path)) for word in words])

    clips = root / "images" / "val"
    return SimpleNamespace(
        tmp=tmp_path,
        places={"tmp": tmp_path},
        best=tmp_path / "run" / "best",
        file=root / GROUND_TRUTH.format("val"),
        clips=clips,
        clip=clips / f"{TEST[0]}_000003_000013",
        test=test,
    )


@pytest.fixture(scope="session")
def tiny_detection(tmp_path_factory):
    """A small THUMOS-14 with videos, and a detector's checkpoint as run/best; not to be changed."""
    root = tmp_path_factory.mktemp("detection")
    write_videos(root / "thumos")
    write_checkpoint(root / "run" / "best", root / "thumos", write_encoder(root / "videomae"))
    return root


@pytest.fixture
def detector_ground(tiny_detection, tmp_path):
    """A copy of `tiny_detection`, and a function that tests the checkpoint."""
    tester = load_script(ROOT / "eval" / "detection.py")
    for name in ("thumos", "run"):
        shutil.copytree(tiny_detection / name, tmp_path / name)

    def test(**flags):
        given = {"ckpt": tmp_path / "run" / "best", "root": tmp_path / "thumos", **flags}
        given |= {"workers": 0, "device": "cpu"} if given["ckpt"] else {}
        return partial(
            tester.main,
            [
                word.replace("<tmp>", str(tmp_path))
                for word in as_flags({name: value for name, value in given.items() if value is not None})
            ],
        )

    return SimpleNamespace(
        tmp=tmp_path,
        places={"tmp": tmp_path, "encoder": tiny_detection / "videomae"},
        best=tmp_path / "run" / "best",
        file=tmp_path / "thumos" / "annotations" / "thumos_14_anno.json",
        videos=tmp_path / "thumos" / "raw_data" / "video",
        test=test,
    )


@pytest.fixture(scope="session")
def boundary_recipe():
    return load_script(ROOT / "recipes" / "boundaries.py")


@pytest.fixture(scope="session")
def detection_recipe():
    return load_script(ROOT / "recipes" / "detection.py")


@pytest.fixture
def small_detector():
    """Every detector that names no sizes is a small one."""
    with small_detectors():
        yield


@pytest.fixture(scope="session")
def trained_detection(detection_recipe, tiny_detection, tmp_path_factory):
    """The folder of a run of two steps; not to be changed."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    out = tmp_path_factory.mktemp("trained") / "run"
    with small_detectors():
        detection_recipe.main(detection_flags(tiny_detection / "thumos", tiny_detection / "videomae", out))
    return out


@pytest.fixture
def detection_run_ground(request, tiny_detection, tmp_path, detection_recipe, small_detector, one_process):
    """A copy of the small THUMOS-14, and a function that trains on it."""
    shutil.copytree(tiny_detection / "thumos", tmp_path / "thumos")

    def train(**given):
        known = {"root": tmp_path / "thumos", "encoder": tiny_detection / "videomae", "out": tmp_path / "run"}
        return partial(detection_recipe.main, detection_flags(**{**known, **given}))

    def finished_run():
        return shutil.copytree(request.getfixturevalue("trained_detection"), tmp_path / "run")

    return SimpleNamespace(
        tmp=tmp_path,
        places={"tmp": tmp_path, "encoder": tiny_detection / "videomae"},
        videos=tmp_path / "thumos" / "raw_data" / "video",
        train=train,
        finished_run=finished_run,
    )


@pytest.fixture(scope="session")
def trained_boundaries(boundary_recipe, tmp_path_factory):
    """A small Kinetics-GEBD, and the folder of a run of two steps on it as run; not to be changed."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    folder = tmp_path_factory.mktemp("boundaries")
    write_kinetics(folder / "kinetics")
    boundary_recipe.main(boundary_flags(folder / "kinetics", folder / "run"))
    return folder


@pytest.fixture
def boundary_run_ground(trained_boundaries, tmp_path, boundary_recipe, one_process):
    """A copy of the small Kinetics-GEBD, and a function that trains on it."""
    shutil.copytree(trained_boundaries / "kinetics", tmp_path / "kinetics")

    def train(*more, **given):
        known = {"root": tmp_path / "kinetics", "out": tmp_path / "run"}
        return partial(boundary_recipe.main, [*boundary_flags(**{**known, **given}), *more])

    return SimpleNamespace(
        tmp=tmp_path,
        places={"tmp": tmp_path},
        clips=tmp_path / "kinetics" / "images" / "train",
        train=train,
        finished_run=lambda: shutil.copytree(trained_boundaries / "run", tmp_path / "run"),
    )
