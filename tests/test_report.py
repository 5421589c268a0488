"""The READMEs have the tables of results/json/, and name only what exists."""
import doctest
import re

import pytest
from conftest import ROOT, assert_refused, run_here

from results import report

TUTORIAL, REPORT = ROOT / "README.md", ROOT / "results" / "README.md"
FILE = r"[\w/.-]+\.(?:py|json|png|txt|md)"


# ---- the READMEs ---------------------------------------------------------------------------------

@pytest.mark.parametrize("path", [TUTORIAL, REPORT], ids=["tutorial", "report"])
def test_the_tables_are_those_of_the_runs(path):
    text = path.read_text(encoding="utf-8")
    assert report.fill(text) == text, "run python results/report.py"
    assert path == REPORT or len(text.encode()) <= 12 * 1024, "the tutorial is to be short"


def test_every_published_table_is_shown():
    shown = report.MARKED.findall(TUTORIAL.read_text("utf-8") + REPORT.read_text("utf-8"))
    for name, (_, *files) in report.TABLES.items():
        published = all(report.load(report.JSON.glob("seed*"), file) for file in files)
        assert published == (name in shown), name


@pytest.mark.parametrize("path", [TUTORIAL, REPORT], ids=["tutorial", "report"])
def test_files_and_headings_that_a_readme_names_exist(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(rf"(?:`|\]\(|python )(?!out/)({FILE})", text):
        assert any((folder / name).exists() for folder in (path.parent, ROOT, ROOT / "data")), name
    headings = re.findall(r"^#+ (.+)$", text.lower(), flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings}
    assert {*re.findall(r"\]\(#([^)]+)\)", text)} <= anchors


def test_a_table_that_cannot_be_made_is_refused_with_the_names_of_all():
    for name in ("nonsense", "transfer in nowhere"):  # there is no such folder
        with pytest.raises(ValueError, match=f"no table '{name}'.*main results.*budgets"):
            report.fill(f"<!-- {name} -->\n<!-- end -->")


# ---- numbers and figures -------------------------------------------------------------------------

def test_the_interval_is_students_t():
    assert report.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3 ** 0.5))
    assert report.interval([0.5]) == (0.5, 0.0)
    assert doctest.testmod(report).failed == 0


def test_ratios_are_taken_within_a_seed():
    runs = [{"a": {"vqa": 0.2}, "b": {"vqa": 0.4}}, {"a": {"vqa": 0.9}, "b": {"vqa": 0.6}}]
    assert report.ratios(runs, "a", "b", "vqa") == pytest.approx([0.5, 1.5])


def test_a_row_that_no_run_has_is_left_out():
    runs = [{"a": {"vqa": 0.2}}]
    table = report.score_table(runs, "row", {"a": "a", "b": "b"}, {"vqa": "vqa"})
    assert "| a | .200 |" in table and "b" not in table


def test_every_figure_is_drawn(tmp_path):
    for name, (plot, file) in report.FIGURES.items():
        plot(tmp_path / f"{name}.png", report.load(report.JSON.glob("seed*"), file))


# ---- python results/report.py out-0 out-1 --------------------------------------------------------

def test_tables_over_out_folders():
    first, second = report.JSON / "seed0", report.JSON / "seed1"
    said = run_here("results/report.py", first, second).stdout
    assert "## transfer\n\nllm_source to llm_target. 2 seeds: mean ±" in said
    assert "## glyphs" not in said  # only one of them has these
    assert_refused(run_here("results/report.py", first, first), "another seed")
