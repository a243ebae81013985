"""Owns: no text from outside acts on a terminal, in a table, in LaTeX, in markdown or in a picture."""

import io

import pytest
from rich.console import Console
from rich.table import Table as RichTable

from moss_vllm.report.plots import plot_losses
from moss_vllm.runtime.errors import RunStopped, UnusableData, errors_in_one_line
from moss_vllm.runtime.screen import Screen, plain, say
from moss_vllm.runtime.tables import Table, in_latex, in_markdown

HOSTILE = "a[old] [/x] :smile:\x1b]0;X\x07\x9b31m\u202egnp.\u2066\r\n\tb\u2028c\u200bd\udcff"
SHOWN = "a[old] [/x] :smile:\\x1b]0;X\\x07\\x9b31m\\u202egnp.\\u2066\\r\\n\\tb\\u2028c\\u200bd\\udcff"


def test_what_acts_is_shown_escaped_and_what_is_text_stays():
    assert plain(HOSTILE) == SHOWN
    for text in ("naïve Größe 動画　名 \u00a0x", "می\u200cخواهم", "👩\u200d🚒", "C:\\new\\x1b", "+ train"):
        assert plain(text) == text


def test_say_breaks_lines_only_where_it_is_told_to():
    file = io.StringIO()
    say("one", HOSTILE, sep="\n", file=file)
    assert file.getvalue() == f"one\n{SHOWN}\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_screen_shows_strings_as_they_are(terminal):
    screen = Screen(file=io.StringIO(), width=300, force_terminal=terminal, color_system=None)
    screen.print(HOSTILE)
    table = RichTable("head [b]", HOSTILE, title="[red]title")
    table.add_row("[dim]cell[/dim]", HOSTILE)
    screen.print(table)
    text = screen.file.getvalue()
    assert text.splitlines()[0] == SHOWN
    assert text.count(SHOWN) == 3
    assert all(one in text for one in ("head [b]", "[red]title", "[dim]cell[/dim]"))
    assert "\x07" not in text and "\u202e" not in text and "]0;X\x07" not in text


def test_a_table_shows_names_as_they_are_on_rich_s_own_console_too():
    named = Table(HOSTILE, {"[b]": ["[i]"]}, {HOSTILE: {"[b]": {"[i]": 1.0}}}, notes=[HOSTILE])
    console = Console(file=io.StringIO(), width=300)
    console.print(named)
    assert console.file.getvalue().count(SHOWN) == 3
    assert "[i]" in console.file.getvalue()


@pytest.mark.parametrize("kind", [ValueError, RunStopped, OSError])
def test_an_error_is_one_line(kind):
    with pytest.raises(SystemExit) as stopped, errors_in_one_line():
        raise kind(HOSTILE)
    assert str(stopped.value) == f"error: {SHOWN}"


@pytest.mark.parametrize("kind", [UnusableData, RunStopped])
def test_an_error_of_several_lines_breaks_them_itself(kind):
    error = kind("two rows:", f"  {HOSTILE}")
    assert str(error) == f"two rows:\n  {HOSTILE}"
    with pytest.raises(SystemExit) as stopped, errors_in_one_line():
        raise error
    assert str(stopped.value) == f"error: two rows:\n  {SHOWN}"


def test_latex_typesets_names_as_written():
    assert in_latex("a\\input/etc/passwd ~^%&_#{}$") == (
        r"a\textbackslash{}input/etc/passwd \textasciitilde{}\textasciicircum{}\%\&\_\#\{\}\$"
    )
    assert in_latex("[old] *x --still <b>|'' ± -") == (
        r"{[}old{]} {*}x -{}-still \textless{}b\textgreater{}\textbar{}'{}' ± -"
    )
    rows = {"[1]\n\\end{tabular}": {"MB": {"all": 50.0}}}
    assert Table("a\nb % c", {"MB": ["all"]}, rows).latex().splitlines() == [
        r"% a\nb % c",
        "% method & all",
        r"{[}1{]}\textbackslash{}n\textbackslash{}end\{tabular\} & 50.0 \\",
    ]


def test_markdown_shows_names_as_written():
    named = "a|b\n<i src=x> [l](http://x) **b** `c` _d_ snake_case ~e~ $f$ &lt; & \\"
    written = r"a\|b\\n\<i src=x\> \[l\](http\://x) \*\*b\*\* \`c\` \_d\_ snake_case \~e\~ \$f\$ \&lt; & \\"
    assert in_markdown(named) == written
    assert in_markdown("# 95 %: + train") == r"\# 95 %: + train"
    table = Table("t", {"MB": ["all"]}, {named: {"MB": {"all": 50.0}}}, notes=["# n\n- m"])
    assert table.markdown().splitlines()[4:] == [f"| {written} | 50.0 |", "", r"- \# n\\n- m"]


def test_a_picture_takes_names_that_are_no_formula(tmp_path):
    plot_losses({"$\\frac{$": [(1, 2.0)], "_hidden\x1b": [(1, 1.0)]}, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
