"""The READMEs have the tables of results/json/, and name only what exists."""
import doctest
import json
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
def test_files_flags_and_headings_that_a_readme_names_exist(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(rf"(?:`|\]\(|python )(?!out/)({FILE})", text):
        assert any((folder / name).exists() for folder in (path.parent, ROOT, ROOT / "data")), name
    for script, rest in re.findall(r"python ([\w/]+\.py)([^`\n]*)", text):
        for flag in re.findall(r" --(\w+)", rest):
            assert flag in (ROOT / script).read_text(encoding="utf-8"), f"{script} --{flag}"
    headings = re.findall(r"^#+ (.+)$", text.lower(), flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings}
    assert {*re.findall(r"\]\(#([^)]+)\)", text)} <= anchors


def test_a_table_that_cannot_be_made_is_refused_with_the_names_of_all():
    for name in ("nonsense", "transfer in nowhere"):  # there is no such folder
        with pytest.raises(ValueError, match=f"no table '{name}'.*main results.*sweep eye"):
            report.fill(f"<!-- {name} -->\n<!-- end -->")


# ---- numbers and figures -------------------------------------------------------------------------

def test_the_interval_is_students_t():
    assert report.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3 ** 0.5))
    assert report.interval([0.5]) == (0.5, 0.0)
    assert doctest.testmod(report).failed == 0


def test_ratios_are_taken_within_a_seed():
    runs = [{"rows": {"a": {"scores": {"vqa": a}}, "b": {"scores": {"vqa": b}}}}
            for a, b in ((0.2, 0.4), (0.9, 0.6))]
    assert report.ratios(runs, "a", "b", "vqa") == pytest.approx([0.5, 1.5])


def test_every_figure_is_drawn(tmp_path):
    for name, (plot, file) in report.FIGURES.items():
        plot(tmp_path / f"{name}.png", report.load(report.JSON.glob("seed*"), file))


# ---- python results/report.py out-0 out-1 --------------------------------------------------------

def test_tables_over_out_folders(tmp_path):
    for seed, vqa in ((0, 0.5), (1, 0.7)):
        scores = dict.fromkeys(report.SCORES, vqa)
        every = dict.fromkeys(["align", "instruct", "majority", "chance"], scores)
        results = {"seed": seed, "llm": {"source": {}, "target": {}}, "vit": {"probe": vqa},
                   "vlm": {"mlp": every, "langbridge": every, "blind": scores} | every}
        rows = [{"name": name, "stage1": False, "stage2": True, "scores": scores}
                for name in ("transferred_langbridge", "native_mlp", f"only_of_{seed}")]
        transfer = {"source": "a", "target": "b", "stage2_samples": 9, "rows": rows} | every
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "results.json").write_text(json.dumps(results))
        (tmp_path / str(seed) / "transfer.json").write_text(json.dumps(transfer))
    said = run_here("results/report.py", tmp_path / "0", tmp_path / "1").stdout
    assert "| LangBridge, after instruct | 0.600 ± 1.271 |" in said
    assert "| transferred_langbridge / native_mlp | 1.000 |" in said and "only_of" not in said
    assert_refused(run_here("results/report.py", tmp_path / "0", tmp_path / "0"), "another seed")
