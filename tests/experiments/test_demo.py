"""Owns: the demo ends with what a stranger needs, from its own evaluations; means are those of the seeds."""

import html
import json
import re
import shlex
from pathlib import Path

import demo
import pytest
import reproduce_miniature
from command_lines import parser_of
from demo_page import EXAMPLES, RULE, choose_examples
from launching import ROOT
from side_by_side import run_commands

from moss_vllm.data.rows import BenchmarkVideo, Question
from moss_vllm.data.world.benchmarks import WorldSize

SMALL = WorldSize(train_clips=8, motionbench_questions=16, withheld_questions=1, favor_questions=8)
ROWS = ["+ train + MOSS, one frame", "miniature", "+ train", "+ train + MOSS"]


def video(name, *tasks):
    asked = (Question(f"{name}_{n}", task, "?", ("a", "b"), "A", "?") for n, task in enumerate(tasks))
    return BenchmarkVideo(name, Path(name), tuple(asked))


def test_examples_are_the_first_of_each_task_then_the_second_each_of_another_clip():
    videos = [
        video("a", "MR", "MR"),
        video("b", "MR"),
        video("c", "RC"),
        video("d", "AO", "RC"),
        video("e", "RC"),
    ]
    chosen = choose_examples(videos, {"RC": "", "AO": "", "LM": "", "MR": ""})
    assert [question.uid for _, question in chosen] == ["c_0", "d_0", "a_0", "e_0", "b_0"]
    assert all(question in shown.questions for shown, question in chosen)
    many = [video(str(n), "MR") for n in range(30)]
    assert [one.video_id for one, _ in choose_examples(many, {"MR": ""})] == [str(n) for n in range(EXAMPLES)]


@pytest.mark.slow
def test_the_demo_ends_with_table_differences_page_and_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(demo, "QUICK_WORLD", SMALL)
    short = ["--quick", "--steps", "1", "--held-out", "2"]
    scores, out = demo.main([*short, "--out", str(tmp_path)]), tmp_path
    told = capsys.readouterr().out
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(scores))
    assert list(scores["rows"]) == ROWS
    beside = (out / "side-by-side.html").read_text()
    assert all(f"<b>{title}</b>" in beside for title in ("Loss", "Held-out loss", "Right answers"))
    assert 'href="side-by-side.html"' in (out / "page.html").read_text()
    assert [step for step, _ in demo.losses(out / "moss", "held_out_loss")] == [1]
    for row, arm in zip(ROWS, ("moss-still", "base", "plain", "moss"), strict=True):
        for benchmark, folder in (("FAVOR-Bench", "FAVOR"), ("MotionBench-Dev", "MotionBench")):
            own, text = demo.PROTOCOLS[benchmark]
            for protocol, name in ((own, arm), (text, f"{arm}-option_text")):
                result = json.loads((out / "eval" / folder / name / "result.json").read_text())
                assert result["protocol"]["name"] == protocol and result["motion_world"]
                assert result["protocol"]["still"] == (row == ROWS[0])
                assert scores["rows"][row][benchmark][protocol] == result["accuracy_percent"]
                if protocol == own:
                    share = result["counts"]["answered"]["all"] / result["counts"]["total"]["all"]
                    assert scores["named"][row][benchmark]["all"] == pytest.approx(100 * share)
                else:
                    assert result["counts"]["answered"] == result["counts"]["total"]

    table, rest = told[told.index("Motion world, all questions (%)") :].split(
        "MOSS against the same training"
    )
    for row, numbers in scores["rows"].items():
        lines = [line.split(row)[1].split() for line in table.splitlines() if line.startswith(f" {row}  ")]
        wanted = [
            [by[own]["all"], scores["named"][row][name]["all"], by[text]["all"]]
            for name, (own, text) in demo.PROTOCOLS.items()
            for by in [numbers[name]]
        ]
        assert lines == [[f"{value:.1f}" for value in line] for line in wanted]
    for name, protocols in demo.PROTOCOLS.items():
        for protocol in protocols:
            rows = scores["rows"]
            after, before = (rows[row][name][protocol]["all"] for row in ("+ train + MOSS", "+ train"))
            points = round(after - before, 1) + 0.0
            said = re.escape(f"  {name}, {protocol}: {points:+.1f} (95 % interval ")
            assert re.search(said + r"[+-][\d.]+ to [+-][\d.]+\), McNemar's test p [=<] [\d.]+\n", rest)
            assert (out / f"{name.lower()}-{protocol}.png").is_file()
    *_, page, _, _, ask, compare = rest.splitlines()
    assert page == f"Ten clips with the answers without and with MOSS: {out / 'page.html'}"
    for command in (ask, compare):
        python, script, *words = shlex.split(command)
        assert python == "python" and parser_of(script).parse_args(words)
        assert all(Path(word).exists() for word in words if word.startswith("/"))
    assert "Warning" not in told + "".join(file.read_text() for file in (out / "logs").iterdir())

    text = (out / "page.html").read_text()
    cards = re.findall(r"<article>.*?</article>", text, re.DOTALL)
    assert len(cards) == EXAMPLES and html.escape(RULE) in text and "<script" not in text
    for card in cards:
        assert card.count("<img ") > 1 and card.count('<li class="key">') == 1
        assert card.count("without MOSS") == 1 and card.count(">with MOSS") == 1
        assert len(re.findall('class="mark (?:right|wrong)"', card)) == 4  # two models by two protocols
    assert text.count('<path class="level"') == 4


def test_a_stage_that_a_signal_ended_says_so(tmp_path, capsys):
    killed = [["-c", "import os; os.kill(os.getpid(), 9)"]]
    with pytest.raises(SystemExit, match="moss failed; the message is above"):
        run_commands({"moss": killed}, tmp_path)
    assert "[moss] was ended by signal 9\n" in capsys.readouterr().out


def test_commands_to_try_are_for_a_shell():
    out, question = Path('my runs/it\'s "$HOME"'), "What's <b>moving</b>; `ls`?"
    ask, compare = map(shlex.split, demo.commands_to_try(out, out / "a clip.mp4", question, f"{out}/moss"))
    assert ask == ["python", "scripts/ask.py", str(out / "a clip.mp4"), question, "--ckpt", f"{out}/moss"]
    folders = [str(out / "eval" / "MotionBench" / f"{arm}-option_text") for arm in ("plain", "moss")]
    assert compare == ["python", "eval/compare.py", *folders]


@pytest.mark.parametrize(
    ("script", "flags", "told"),
    [
        (demo, "--quick --steps 0", "--steps is 0; it must be at least 1"),
        (demo, "--steps -1", "--steps is -1"),
        (demo, "--seed -1", "--seed is -1; it must be from 0 to 2147483647"),
        (reproduce_miniature, "--seeds 0", "--seeds is 0; it must be at least 1"),
        (reproduce_miniature, "--steps 0", "--steps is 0"),
        (reproduce_miniature, "--json .", "--json . is a folder; name a file"),
        (reproduce_miniature, "--json README.md/a.json", "README.md is a file"),
    ],
)
def test_bad_arguments_are_refused_before_the_work(script, flags, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(demo, "ensure_world", lambda *_: pytest.fail("the work began"))
    with pytest.raises(SystemExit) as stopped:
        script.main([*flags.split(), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2 and told in capsys.readouterr().err
    with pytest.raises(ValueError, match="--out .*README.md/out is not a folder that can be written to"):
        script.main(["--out", "README.md/out"])


def test_means_and_spreads_are_over_the_seeds_and_stand_in_the_tables(tmp_path, monkeypatch, capsys):
    def of_seed(argv):
        seed = int(argv[argv.index("--seed") + 1])
        tasks = lambda start: {"all": start + 2.0 * seed, "MR": 50.0, "AS": 40.0}  # noqa: E731
        rows = {
            row: {name: {p: tasks(10.0 * n) for p in some} for name, some in demo.PROTOCOLS.items()}
            for n, row in enumerate(ROWS)
        }
        return {
            "chance": {name: {"all": 25.0} for name in demo.BENCHMARKS},
            "rows": rows,
            "named": {row: {name: {"all": 60.0 + seed} for name in demo.BENCHMARKS} for row in ROWS},
            "differences": {
                name: {p: {"points": 5.0 + seed, "p": 0.5} for p in some}
                for name, some in demo.PROTOCOLS.items()
            },
        }

    monkeypatch.setattr(demo, "main", of_seed)
    file = tmp_path / "numbers.json"
    reproduce_miniature.main(["--seeds", "3", "--out", str(tmp_path), "--json", str(file)])
    written = json.loads(file.read_text())
    assert written["mean_and_spread"]["+ train"]["FAVOR-Bench"]["option_text"]["all"] == [22.0, 2.0]
    assert written["named"]["miniature"]["MotionBench-Dev"]["all"] == [61.0, 1.0]
    assert written["differences"]["MotionBench-Dev"]["letter"] == [6.0, 1.0]
    assert [seed["rows"]["+ train"]["FAVOR-Bench"]["option_text"]["all"] for seed in written["seeds"]] == [
        20,
        22,
        24,
    ]
    tables = (tmp_path / "tables.md").read_text()
    assert "| + train + MOSS | 32.0 ± 2.0 | 50.0 ± 0.0 | - | - | - | - | - | 61.0 ± 1.0 |" in tables
    assert "| + train + MOSS | 32.0 ± 2.0 | 50.0 ± 0.0 | - | - | - | - | - |\n" in tables
    assert "MOSS against the same training without it: 6.0 ± 1.0 points of all" in tables
