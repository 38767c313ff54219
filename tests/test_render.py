"""Tables of texts in their forms."""

from pathlib import Path

import pandas
from tabulating import shown

from satm.config import Layout
from satm.tables.render import Contents, Grid, networks_in_words

GRID = Grid(
    "title", ("method", "accuracy_%", "n"), [["a & b", "**50.0 ± 1.0**", "3"], ["c", "", ""]], ("method",), ["a note"]
)


def test_markdown_and_latex_hold_the_same() -> None:
    assert GRID.markdown().splitlines() == [
        "| method | accuracy_% | n |",
        "| --- | ---: | ---: |",
        "| a & b | **50.0 ± 1.0** | 3 |",
        "| c |  |  |",
        "",
        "a note",
    ]
    assert GRID.latex().splitlines() == [
        "% a note",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"method & accuracy\_\% & n \\",
        r"\midrule",
        r"a \& b & \textbf{50.0 $\pm$ 1.0} & 3 \\",
        r"c &  &  \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_the_page_holds_the_same_and_nothing_from_elsewhere() -> None:
    text = Contents(pandas.DataFrame(), [GRID]).page()
    assert '<td class="text">a &amp; b</td><td><b>50.0 ± 1.0</b></td><td>3</td>' in text
    assert '<th class="text">method</th><th>accuracy_%</th>' in text and "<p>a note</p>" in text
    assert "src=" not in text and "href=" not in text and "color-scheme: light dark" in text


def test_all_forms_are_written_and_shown(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"method": ["c"], "accuracy": [0.5]})
    contents = Contents(frame, [GRID], beside={"-paired": frame})
    contents.write(Layout(str(tmp_path)), "one")
    assert (tmp_path / "one-paired.csv").read_text() == (tmp_path / "one.csv").read_text()
    assert (tmp_path / "one.csv").read_text() == "method,accuracy\nc,0.5\n"
    assert (tmp_path / "one.md").read_text() == GRID.markdown() and (tmp_path / "one.tex").read_text() == GRID.latex()
    assert (tmp_path / "one.html").read_text() == contents.page()
    assert "title" in shown(contents)


def test_networks_are_told_in_words() -> None:
    small, wide = {"depth": 1, "network": "convnet", "width": 4}, {"network": "alexnet"}
    assert networks_in_words({"a": small, "b": dict(small)}) == "convnet, depth 1, width 4"
    assert networks_in_words({"a": small, "b": wide}) == "a: convnet, depth 1, width 4; b: alexnet"
