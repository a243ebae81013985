"""Owns: a page's style and scripts are packaged, and a page is written whole to the file asked for."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from launching import ROOT

from moss_vllm.commands.scripts import report
from moss_vllm.report import html


def test_style_and_script_are_in_the_wheel():
    packaged = re.search(r"^moss_vllm = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)[1]
    patterns = re.findall(r'"(.*?)"', packaged)
    for name in ("page.css", "run.js", "answers.js"):
        assert (html.ASSETS / name).is_file()
        place = (html.ASSETS / name).relative_to(ROOT / "moss_vllm").as_posix()
        assert any(fnmatch(place, pattern) for pattern in patterns), name


def test_where_the_page_goes(folder, tmp_path, capsys):
    assert report.main([str(folder)]) == folder / "page.html"
    size = (folder / "page.html").stat().st_size / 1e3
    assert (
        capsys.readouterr().out == f"{folder}/page.html is written ({size:,.0f} kB); open it in a browser\n"
    )
    out = tmp_path / "new" / "mine.html"
    assert report.main([str(folder), "--out", str(out)]) == out and out.read_text().startswith(
        "<!DOCTYPE html>"
    )
    with pytest.raises(SystemExit) as error:
        report.main([str(folder), "--out", str(tmp_path)])
    assert str(error.value) == (
        f"error: --out {tmp_path} is a folder; name a file in it, such as {tmp_path}/page.html"
    )
    log = folder / "train.jsonl"
    before = log.read_text()
    with pytest.raises(SystemExit, match=r"does not end in .html; name the page to write, such as page.html"):
        report.main([str(folder), "--out", str(log)])
    with pytest.raises(SystemExit, match=r"the folder of --out, .* is not a folder that can be written to"):
        report.main([str(folder), "--out", str(log / "page.html")])
    assert log.read_text() == before


def test_a_page_that_cannot_be_finished_leaves_the_old_one(folder, monkeypatch):
    page = report.main([str(folder)])
    before = page.read_bytes()

    def fill_the_disk(self, data):
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(SystemExit, match="No space left on device"):
        report.main([str(folder)])
    assert page.read_bytes() == before
    assert not [path for path in folder.iterdir() if "part" in path.name]
