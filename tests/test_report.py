"""What the READMEs say is what the commands said, and figures are drawn."""
import re

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from results.figures import Line, contact_sheet, line_plot, word_map
from results.report import fill, table_names

RESULTS = ROOT / "results"
TUTORIAL = (ROOT / "README.md").read_text(encoding="utf-8")
REPORT = (RESULTS / "README.md").read_text(encoding="utf-8")
FILE = r"[\w/.-]+\.(?:py|json|png|txt|md)"


def files_named_in(text):
    """`files` in backticks, the targets of links and pictures, and scripts that are to be run.

    What stands under out/ is left out: it is there only once the commands were run.
    """
    names = re.findall(rf"`({FILE})`", text)
    names += re.findall(rf"\]\(({FILE})\)", text)
    names += re.findall(r"python ([\w/]+\.py)", text)
    return sorted({name for name in names if not name.startswith("out/")})


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


# ---- the READMEs ---------------------------------------------------------------------------------

@pytest.mark.parametrize("text", [TUTORIAL, REPORT], ids=["tutorial", "report"])
def test_the_tables_are_those_of_the_runs(text):
    assert fill(text, RESULTS) == text, "run python results/report.py"


def test_every_run_is_in_the_report():
    for_the_tutorial = {"claim", "main results", "real"}
    for name in set(table_names(RESULTS)) - for_the_tutorial:
        assert f"<!-- {name} -->" in REPORT, name


def test_a_sweep_and_a_mode_of_transfer_each_have_a_table():
    names = table_names(RESULTS)
    assert {"ablate eye", "ablate coefficients"} <= set(names)
    assert {"transfer_full-seeds.json", "transfer_reverse_full-seeds.json"} <= set(names)


def test_every_file_that_the_tutorial_names_exists():
    for name in files_named_in(TUTORIAL):
        assert (ROOT / name).exists() or (ROOT / "data" / name).exists(), name


def test_every_file_that_the_report_names_exists():
    for name in files_named_in(REPORT):
        assert (RESULTS / name).exists() or (ROOT / name).exists(), name


def test_links_within_the_report_lead_to_its_headings():
    headings = re.findall(r"^#+ (.+)$", REPORT, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", REPORT)) <= anchors


def test_the_tutorial_is_short():
    assert len(TUTORIAL.encode()) <= 12 * 1024


def test_a_table_that_does_not_exist_is_refused_with_the_names_of_those_that_do():
    says = "no table 'nonsense'.*main results.*transfer_full-seeds.json"
    with pytest.raises(ValueError, match=says):
        fill("<!-- nonsense -->\n<!-- end -->", RESULTS)


def test_only_what_stands_between_the_markers_is_written():
    filled = fill("before\n<!-- claim -->\nold\n<!-- end -->\nafter", RESULTS)
    assert filled.startswith("before\n<!-- claim -->\n| on the target LLM |")
    assert filled.endswith("|\n<!-- end -->\nafter")
    assert "old" not in filled


def test_the_tables_of_the_tutorial_fit_its_columns():
    for name in ("claim", "main results", "real"):
        filled = fill(f"<!-- {name} -->\n<!-- end -->", RESULTS)
        assert max(len(line) for line in filled.splitlines()) <= 100


# ---- figures -------------------------------------------------------------------------------------

def test_a_plot_has_its_panels_side_by_side(tmp_path):
    line = Line([0, 10, 100], [0.1, 0.5, 0.9])
    banded = Line([0, 10, 100], [0.2, 0.4, 0.8], [0.1, 0.3, 0.7], [0.3, 0.5, 0.9])
    panel = {"a line": line, "a line with a band": banded}
    line_plot(tmp_path / "one.png", "title", [("y", panel)], "x", "note", log=True)
    line_plot(tmp_path / "two.png", "title", [("y", panel), ("z", panel)], "x", "note")
    assert size_of(tmp_path / "one.png") == (570, 530)  # its legend has one name a row
    assert size_of(tmp_path / "two.png") == (570 + 550, 508)


def test_a_map_of_words_has_a_picture_and_its_panels(tmp_path):
    picture = np.zeros((48, 48, 3), dtype=np.uint8)
    patches = [[("red", 0.9), ("circle", 0.1)]] * 9
    word_map(tmp_path / "map.png", picture, [("LangBridge", patches), ("MLP", patches)], "note")
    assert size_of(tmp_path / "map.png") == (924, 510)


def test_a_contact_sheet_has_three_questions_a_row(tmp_path):
    picture = np.zeros((48, 48, 3), dtype=np.uint8)
    right = (picture, "what color is the circle?", "red", "red")
    wrong = (picture, "what color is the circle?", "blue", "red")
    contact_sheet(tmp_path / "sheet.png", [wrong, right, right, right])
    assert size_of(tmp_path / "sheet.png") == (840, 580)
