"""results/sweeps.py: one thing varies, and what is the same is not made again."""
import os
import shutil
from dataclasses import asdict, replace

import pytest
from conftest import run_here

from data.files import read_json
from results import sweeps
from train import load_settings, parse_settings


@pytest.fixture
def folder(out, tmp_path, monkeypatch):
    """A finished smoke run for one test; commands run in this process."""
    monkeypatch.setattr(sweeps, "run", lambda *command: run_here(*command).check_returncode())
    return shutil.copytree(out, tmp_path / "out", copy_function=os.link)


def test_each_point_is_a_command_line_of_train_and_its_rows_are_those_of_transfer():
    s, rows = parse_settings(["--preset", "smoke"]), [*sweeps.BUDGETS, *sweeps.BUDGETS.values()]
    for changes in [changes for points in sweeps.SWEEPS.values() for changes in points.values()]:
        point = replace(s, **changes)
        assert parse_settings(sweeps.flags(asdict(point))) == point
    assert {*sum(sweeps.ROWS.values(), rows)} - {None} <= {row.name for row in sweeps.ALL_ROWS}


def test_a_sweep_makes_only_what_a_point_changes_and_resumes(folder, monkeypatch):
    monkeypatch.setattr("sys.argv", f"sweeps.py whitening --out {folder} --threads 1".split())
    made, found = [folder / "sweeps" / "whitening" / name for name in ("on", "off")], []
    for _ in range(2):  # the second time everything is there
        sweeps.main()
        result = read_json(folder / "sweep_whitening.json")
        found.append([result, *((point / "langbridge_align").stat().st_mtime for point in made)])
    assert found[0] == found[1]
    assert [point["value"] for point in result["points"]] == ["on", "off"]
    for point, at in zip(result["points"], made):
        assert {*point} == {"value", "K", "params", "own_weight", "vit", "rows"}
        assert len(point["rows"]) == 3 and len(point["rows"]["on_the_source_llm"]) == 4
        assert (at / "vit" / "features.pt").samefile(folder / "vit" / "features.pt")
        adapter = "langbridge_align/adapter.pt"
        assert (at / adapter).samefile(folder / adapter) == (at == made[0])


def test_each_length_is_run_at_the_rate_that_is_best_on_val(folder, monkeypatch):
    rows, rates = {"transferred_langbridge": "zero_shot_langbridge", "fresh_mlp": None}, [0.5, 2.0]
    for name, value in (("BUDGETS", rows), ("LENGTHS", [2, 4]), ("RATES", rates)):
        monkeypatch.setattr(sweeps, name, value)
    for row in sweeps.sweep_budgets(load_settings(folder), "budgets", 1)["rows"]:
        samples = [point["samples"] for point in row["points"]]
        assert samples == ([0, 16, 32] if rows[row["name"]] else [16, 32])
        paths = [f"transfer_steps4_rate{rate:g}/{row['name']}/config.json" for rate in rates]
        vals = [read_json(folder / "sweeps/budgets" / path)["scores"]["val"] for path in paths]
        quality = [val["vqa"] + val["caption_f1"] for val in vals]
        assert row["rate"] == rates[quality.index(max(quality))]
