"""results/budgets.py: each length is a run of its own, at the rate that is best on val."""
import shutil
from dataclasses import replace

from conftest import run_flags

from data.files import read_json
from results import budgets
from train import load_settings
from transfer import all_rows


def test_each_length_is_run_at_the_rate_that_is_best_on_val(out, tmp_path, monkeypatch):
    assert {*budgets.ROWS, *budgets.ROWS.values()} <= {
        None, *(row.name for row in all_rows("llm_source", "llm_target"))}
    folder = shutil.copytree(out, tmp_path / "out")
    starts = {"transferred_langbridge": "zero_shot_langbridge", "fresh_mlp": None}
    for name, value in (("ROWS", starts), ("LENGTHS", [2, 4]), ("RATES", [0.5, 2.0])):
        monkeypatch.setattr(budgets, name, value)
    monkeypatch.setattr(budgets, "run", run_flags)
    bridge, mlp = budgets.measure(replace(load_settings(folder), threads=1))
    assert [of["samples"] for of in bridge["points"] + mlp["points"]] == [0, 16, 32, 16, 32]
    made = sorted(folder.glob("transfer_steps4_rate*/fresh_mlp/config.json"))
    vals = [read_json(path)["scores"]["val"] for path in made]
    low, high = (val["vqa"] + val["caption_f1"] for val in vals)
    assert mlp["rate"] == (2.0 if high > low else 0.5)
