"""results/budgets.py: each length is a run of its own, at the rate that is best on val."""
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, run_flags

from data.files import read_json
from results import budgets
from train import load_settings
from transfer import RATES, all_rows

TUNED = [row.name for row in all_rows("llm_source", "llm_target") if row.stage2]


@pytest.fixture
def s(out, tmp_path, monkeypatch):
    """The settings of a copy of the smoke run, and a few short runs to make."""
    monkeypatch.setattr(budgets, "ROWS", {
        "transferred_langbridge": "zero_shot_langbridge", "fresh_mlp": None})
    monkeypatch.setattr(budgets, "LENGTHS", [2, 4])
    monkeypatch.setattr(budgets, "run", run_flags)
    return replace(load_settings(shutil.copytree(out, tmp_path / "out")), threads=1)


def test_each_length_is_a_run_of_its_own(s):
    bridge, mlp = budgets.curves(s)
    assert [of["samples"] for of in bridge["points"] + mlp["points"]] == [0, 16, 32, 16, 32]
    made = read_json(Path(s.out, "transfer_steps4/fresh_mlp/config.json"))
    assert mlp["points"][-1]["vqa"] == made["scores"]["vqa"]


def test_the_rates_of_transfer_are_the_best_on_val_and_none_is_at_the_edge():
    rows = read_json(ROOT / "results" / "json" / "rates" / "rates.json")["rows"]
    assert {row["name"]: row["best"] for row in rows} == RATES
    for row in rows:
        tried = {float(rate): sum(val) for rate, val in row["val"].items()}
        assert row["best"] == max(tried, key=tried.get) in [*tried][1:-1]


def test_the_rate_of_a_row_is_the_best_on_val(s, monkeypatch):
    assert {*budgets.ROWS} <= {*TUNED} == {*RATES}
    monkeypatch.setattr(budgets, "GRID", [0.5, 50.0])
    monkeypatch.setattr(budgets, "HIGHER", [100.0])
    monkeypatch.setattr(budgets, "all_rows", lambda *llms: [
        row for row in all_rows(*llms) if row.name == "fresh_mlp"])
    row, = budgets.rates(s)
    low, high, *_ = val = [sum(its) for its in row["val"].values()]
    assert (len(val) == 3) == (high > low)  # goes on while the highest is the best
    assert row["best"] == [*row["val"]][val.index(max(val))]
    made = read_json(Path(s.out, "transfer_steps10_rate50/fresh_mlp/config.json"))
    assert made["scores"]["val"]["vqa"] == row["val"][50.0][0]
    assert made["settings"]["instruct_lr"] == pytest.approx(50 * s.instruct_lr)
