"""A written page, taken apart; and what a browser makes of it."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from moss_vllm.commands.scripts import report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Page(HTMLParser):
    """Tags, attributes, visible text, the cells of each table row, and the data of the page's script."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.words, self.cells = [], [], [], []
        self.hidden = self.in_cell = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))
        self.data = json.loads(re.search(r'id="data">(.*?)</script>', self.source, re.S)[1])

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.hidden = tag in ("script", "style")
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.hidden, self.in_cell = False, self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if not self.hidden:
            self.words.append(data)
            if self.in_cell:
                self.cells[-1][-1] += data

    def row(self, name):
        """The other cells of the first row that begins with `name`."""
        return next(cells for cells in self.cells if cells[0] == name)[1:]

    @property
    def charts(self):
        """The data of a run's charts by title."""
        titles = [html.unescape(title) for title in re.findall(r"<figcaption><b>(.*?)</b>", self.source)]
        return dict(zip(titles, self.data, strict=True))

    def curve(self, title, name):
        """A curve's values by step."""
        (curve,) = [one for one in self.charts[title]["curves"] if one["name"] == name]
        return dict(zip(curve["x"], curve["y"], strict=True))

    @property
    def questions(self):
        """An evaluation's questions by uid; failed videos by their name."""
        return {row[0] or self.data["videos"][row[1]]: row for row in self.data["questions"]}

    def outcomes(self):
        """The outcome of each question."""
        return {uid: self.data["outcomes"][row[3]] for uid, row in self.questions.items()}


def write(folder, *more):
    """The page that scripts/report.py writes of a folder."""
    return Page(report.main([str(folder), *more]))


def refusal(*arguments):
    """What scripts/report.py ends with."""
    with pytest.raises(SystemExit) as error:
        report.main(list(map(str, arguments)))
    return str(error.value)


def browse(page, tmp_path, script, *flags):
    """The value of `seen` after `script` ran in a browser's page, which wrote nothing to its console."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    probe = f"""<script>(async () => {{ {script}
      const probe = Object.assign(document.createElement("pre"), {{ id: "probe" }});
      probe.textContent = JSON.stringify(seen);
      document.body.append(probe); }})();</script>"""
    file = tmp_path / "probed.html"
    file.write_text(page.read_text(encoding="utf-8").replace("</body>", probe + "</body>"), encoding="utf-8")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,900", *flags]
    command += ["--virtual-time-budget=4000", "--enable-logging=stderr", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    return json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)[1]))
