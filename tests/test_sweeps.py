"""results/sweeps.py: one thing varies, and what is the same is not made again."""
import shutil
from dataclasses import asdict, replace

import pytest
from conftest import run_here

from data.files import read_json, write_json
from results import sweeps
from train import load_settings, parse_settings


@pytest.fixture
def folder(out, tmp_path, monkeypatch):
    """A finished smoke run for one test; commands run in this process."""
    monkeypatch.setattr(sweeps, "run", lambda *command: run_here(*command).check_returncode())
    folder = shutil.copytree(out, tmp_path / "out")
    write_json(folder / "settings.json", asdict(replace(load_settings(folder), threads=1)))
    return folder


def test_each_point_is_a_command_line_of_train_and_its_rows_are_those_of_transfer():
    s, rows = parse_settings(["--preset", "smoke"]), [*sweeps.BUDGETS, *sweeps.BUDGETS.values()]
    for changes in [changes for points in sweeps.SWEEPS.values() for changes in points.values()]:
        point = replace(s, **changes)
        assert parse_settings(sweeps.flags(asdict(point))) == point
    assert {*rows, *sweeps.ROWS["target"]} - {None} <= {row.name for row in sweeps.ALL_ROWS}


def test_a_sweep_makes_only_what_a_point_changes_and_can_be_run_again(folder, monkeypatch):
    monkeypatch.setitem(sweeps.SWEEPS, "K", {"16": dict(align_K=16), "used": dict(align_K=0)})
    monkeypatch.setattr("sys.argv", f"sweeps.py K --out {folder}".split())
    for _ in range(2):
        sweeps.main()
    few, used = read_json(folder / "sweep_K.json")["points"]
    assert len(few["rows"]) == 3 and few["K"] == 16 < used["K"] and 0 < used["own_weight"] < 1

    def is_linked(point, file):
        return (folder / "sweeps/K" / point / file).samefile(folder / file)

    assert is_linked("16", "vit/vit.pt") and is_linked("used", "langbridge_align/adapter.pt")
    assert not is_linked("16", "langbridge_align/adapter.pt")


def test_each_length_is_run_at_the_rate_that_is_best_on_val(folder, monkeypatch):
    starts = {"transferred_langbridge": "zero_shot_langbridge", "fresh_mlp": None}
    for name, value in (("BUDGETS", starts), ("LENGTHS", [2, 4]), ("RATES", [0.5, 2.0])):
        monkeypatch.setattr(sweeps, name, value)
    bridge, mlp = sweeps.sweep_budgets(load_settings(folder))["rows"]
    assert [of["samples"] for of in bridge["points"] + mlp["points"]] == [0, 16, 32, 16, 32]
    made = sorted(folder.glob("sweeps/budgets/transfer_steps4_rate*/fresh_mlp/config.json"))
    vals = [read_json(path)["scores"]["val"] for path in made]
    low, high = (val["vqa"] + val["caption_f1"] for val in vals)
    assert mlp["rate"] == (2.0 if high > low else 0.5)
