"""results/targets.py: another target is an LLM of its own; source and adapter are the same."""
import shutil
from dataclasses import replace
from pathlib import Path

from conftest import run_flags

from data.files import read_json
from results import budgets, targets
from train import load_settings


def test_the_adapter_is_moved_to_another_target(out, tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "run", run_flags)
    monkeypatch.setattr(targets, "OTHERS", {"mark": targets.OTHERS["mark"]})
    monkeypatch.setattr(targets, "ROWS", ["zero_shot_langbridge", "zero_shot_own_mark"])
    s = replace(load_settings(shutil.copytree(out, tmp_path / "out")), threads=1)
    row, = targets.measure(s)
    assert row["name"] == "mark" and row == targets.measure(s)[0]
    of = [read_json(Path(s.out, where, "config.json"))
          for where in ("llm_target", "targets/mark/llm_target", "langbridge_align",
                        "targets/mark/langbridge_align")]
    assert of[0]["settings"]["llm_target_dialect"] == "target"
    assert of[1]["settings"]["llm_target_dialect"] == "mark"
    assert of[2] == of[3]
