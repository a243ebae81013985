"""Owns: download.py fetches what is missing and no more, and tells counts that are not the published ones."""

import os
import subprocess
import sys

import pytest
from launching import ROOT, environment
from table_files import stand_in_hub, write_six

from moss_vllm.commands.scripts import download
from moss_vllm.data import downloads
from moss_vllm.data.favor import read_favor_train


@pytest.fixture
def six(tmp_path):
    return write_six(tmp_path / "FAVOR")


@pytest.fixture
def published(monkeypatch):
    """A function that sets the published counts of favor_train."""

    def set_counts(**counts):
        changed = downloads.ON_HUB["favor_train"]._replace(counts=counts)
        monkeypatch.setitem(downloads.ON_HUB, "favor_train", changed)

    return set_counts


def test_counts_that_agree(six, published, capsys):
    published(videos=6, rows=6)
    assert download.main(["favor_train", "--check", "--out", str(six)]) == 0
    shown = capsys.readouterr().out
    assert "videos: 6 of 6\n  rows: 6 of 6\n" in shown and f"prepare_favor.py --data {six} lists" in shown


def test_counts_that_differ_are_told(six, published, capsys):
    published(videos=5, rows=6, questions=3)
    assert download.main(["favor_train", "--check", "--out", str(six)]) == 1
    shown = capsys.readouterr().out
    assert "videos: 6 of 5 - differs\n  rows: 6 of 6\n  questions: 0 of 3 - differs\n" in shown


def test_a_missing_video_is_counted(six, published, capsys):
    published(videos=6, rows=6)
    (six / "videos/FAVOR-Train/world_3.mp4").unlink()
    assert download.main(["favor_train", "--check", "--out", str(six)]) == 1
    assert "videos: 5 of 6 - differs\n  rows: 6 of 6\n" in capsys.readouterr().out


def test_benchmarks_are_counted_by_task(world):
    favor = downloads.count_favor_bench(world / "FAVOR")
    assert favor["questions"] >= 40 and sum(favor.values()) == favor["videos"] + 2 * favor["questions"]
    motion = downloads.count_motionbench(world / "MotionBench")
    asked = sum(number for name, number in motion.items() if name.startswith("of "))
    assert motion["questions"] >= 45 and 0 < motion["questions"] - asked <= 8  # the withheld ones


@pytest.mark.parametrize("name", ["favor", "motionbench"])
def test_the_published_parts_add_up(name):
    counts = downloads.ON_HUB[name].counts
    withheld = {"favor": 0, "motionbench": 4034}[name]
    assert sum(n for task, n in counts.items() if task.startswith("of ")) == counts["questions"] - withheld


def test_what_comes_from_elsewhere_is_told(capsys):
    assert download.main(["ssv1"]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("ssv1 is not on the hub: Qualcomm") and "86,017 training and 11,522 test" in shown
    assert download.main([]) == 0
    shown = capsys.readouterr().out
    names = [*downloads.ON_HUB, *downloads.ELSEWHERE]
    assert [line.split(":")[0] for line in shown.splitlines()] == names
    pages = {f"docs/{page}.md" for page in [*downloads.PAGES.values(), "action_recognition"]}
    assert all((ROOT / page).is_file() and page in shown for page in pages)


@pytest.mark.parametrize(
    "words, told",
    [
        (["fvor"], "error: there is no fvor; known are favor, favor_train, motionbench, "),
        (
            ["favor", "motionbench", "--out", "X"],
            "--out X is one folder, and favor, motionbench need one each",
        ),
        (["favor", "--check", "--out", "nowhere"], "nowhere: file: is not there; check the path"),
        (["favor", "--out", "X"], "zl2048/FAVOR: data set: is no file or folder here, and the hub cannot be"),
    ],
)
def test_what_cannot_be_done_is_told(words, told):
    with pytest.raises(SystemExit, match="^error: ") as caught:
        download.main(words)
    assert told in str(caught.value)


@pytest.mark.slow
def test_it_fetches_what_is_missing(six, tmp_path):
    (six / "videos/FAVOR-Bench").mkdir()
    (six / "videos/FAVOR-Bench/other.mp4").write_bytes(b"of another part")
    out = tmp_path / "out"
    with stand_in_hub({"zl2048/FAVOR": six}) as (address, asked):
        env = {
            **environment(),
            "HF_ENDPOINT": address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
        }

        def run(*more):
            command = [
                sys.executable,
                str(ROOT / "scripts/download.py"),
                "favor_train",
                "--out",
                str(out),
                *more,
            ]
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
            assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr[-2000:]
            return done.stdout

        assert "7 files of zl2048/FAVOR at 0123456789abcdef" in run("--dry-run") and not out.exists()
        assert "7 to fetch" in run() and len(read_favor_train(out, out)) == 6
        assert not (out / "videos/FAVOR-Bench").exists()
        os.truncate(out / "videos/FAVOR-Train/world_1.mp4", 10)
        asked.clear()
        assert "1 to fetch" in run() and "videos: 6 of 3,114 - differs" in run("--check")
    fetched = [line.rpartition("/")[2] for line in asked if line.startswith("GET /datasets")]
    assert fetched == ["world_1.mp4"]
