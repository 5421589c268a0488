"""What the README says is what the commands say."""
import json
import re
from pathlib import Path

from data.report import fill_readme

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_in_the_readme_are_those_of_the_runs():
    assert fill_readme(README, ROOT / "results") == README, "run python evaluate.py --readme"
    sweeps = json.loads((ROOT / "results" / "evaluate.json").read_text(encoding="utf-8"))["ablations"]
    for name in ["seeds", "findings", *(path.name for path in (ROOT / "results").glob("transfer*.json")), *(f"ablate {what}" for what in sweeps)]:
        assert f"<!-- {name} -->" in README, name


def test_every_file_that_the_readme_names_exists():
    for name in re.findall(r"`([\w/]+\.(?:py|json|png|txt))`|\]\(([\w/.]+)\)", README):
        name = name[0] or name[1]
        assert (ROOT / name).exists() or f"`{name}`, which is not written yet" in README, name


def test_every_setting_that_the_readme_names_exists():
    from train import field_help
    from transfer import parse
    source = "".join((ROOT / f"{name}.py").read_text(encoding="utf-8") for name in ("transfer", "evaluate"))
    flags = set(re.findall(r'add(?:_argument)?\("--([\w-]+)"', source)) | set(field_help()) | {"help"}
    named = {name.removeprefix("no-") for name in re.findall(r"--([a-z][\w-]*)", README)}
    assert named <= flags, named - flags
    assert parse([]).seeds == "0,1,2"
