"""What the README says is what the commands say."""
import json
import re
from pathlib import Path

from evaluate import results_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_results_in_the_readme_are_those_of_the_runs():
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "results").glob("seed*.json"))]
    assert runs and results_table(runs) in README


def test_every_file_that_the_readme_names_exists():
    for name in re.findall(r"`([\w/]+\.(?:py|json|png|txt))`|\]\(([\w/.]+)\)", README):
        name = name[0] or name[1]
        assert (ROOT / name).exists() or f"`{name}`, which is not written yet" in README, name


def test_every_setting_that_the_readme_names_exists():
    from train import field_help
    named = set(re.findall(r"--(\w+)", README))
    assert named <= set(field_help()) | {"help", "image", "ask", "model", "table"}, named
