"""What the README says is what the commands say."""
import json
import re
from pathlib import Path

from evaluate import ablation_table, findings, results_table
from transfer import markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_results_in_the_readme_are_those_of_the_runs():
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "results").glob("seed*.json"))]
    assert runs and results_table(runs) in README


def test_the_transfer_tables_in_the_readme_are_those_of_the_runs():
    files = sorted((ROOT / "results").glob("transfer*.json"))
    assert files
    for path in files:
        assert markdown(json.loads(path.read_text(encoding="utf-8"))) in README, path


def test_the_numbers_of_what_the_adapter_sees_are_those_of_the_run():
    r = json.loads((ROOT / "results" / "evaluate.json").read_text(encoding="utf-8"))
    assert findings(r) in README


def test_the_ablation_tables_in_the_readme_are_those_of_the_runs():
    r = json.loads((ROOT / "results" / "evaluate.json").read_text(encoding="utf-8"))
    for what, points in r.get("ablations", {}).items():
        assert ablation_table(what, points) in README, what


def test_every_file_that_the_readme_names_exists():
    for name in re.findall(r"`([\w/]+\.(?:py|json|png|txt))`|\]\(([\w/.]+)\)", README):
        name = name[0] or name[1]
        assert (ROOT / name).exists() or f"`{name}`, which is not written yet" in README, name


def test_every_setting_that_the_readme_names_exists():
    from train import field_help
    from transfer import parse
    source = "".join((ROOT / f"{name}.py").read_text(encoding="utf-8") for name in ("transfer", "evaluate"))
    flags = set(re.findall(r'add(?:_argument)?\("--([\w-]+)"', source)) | set(field_help()) | {"help"}
    named = set(re.findall(r"--([a-z][\w-]*)", README))
    assert named <= flags, named - flags
    assert parse([]).seeds == "0,1,2"
