"""results/sweeps.py: one thing varies, and what has not changed is not made again."""
import pytest
from conftest import assert_refused, run_here

from data.files import read_json
from data.settings import load_settings
from results.sweeps import BUDGETED, RATES, SWEEPS, SWEPT, prepare_point
from transfer import ROWS

STAGE_OF = {"native_mlp": "native_mlp_instruct",
            "native_langbridge": "native_langbridge_instruct"}  # others are named as their rows


def test_budgets_have_a_run_for_each_length_and_a_rate_chosen_on_val(out):
    done = run_here("results/sweeps.py", "budgets", "--out", out, "--steps", "2,4", "--seeds",
                    "0", "--threads", "1")
    assert done.returncode == 0, done.stderr
    r = read_json(out / "budgets.json")
    assert [row["name"] for row in r["rows"]] == list(BUDGETED)
    assert r["samples"] == [0, 16, 32]
    for row in r["rows"]:
        started = BUDGETED[row["name"]] is not None
        assert [point["samples"] for point in row["points"]] == [0, 16, 32][not started:]
        folder = out / "transfer" / "llm_target" / "seed0"
        middle = {rate: [read_json(path) for path in folder.glob(f"steps4/rate{rate:g}/**/"
                         f"{STAGE_OF.get(row['name'], row['name'])}/config.json")]
                  for rate in RATES}
        quality = {rate: config["scores"]["val"]["vqa"] + config["scores"]["val"]["caption_f1"]
                   for rate, (config,) in middle.items()}
        assert quality[row["rate"]] == max(quality.values())
        rates = [config["settings"]["instruct_lr"] for (config,) in middle.values()]
        assert rates == pytest.approx([0.0005, 0.001, 0.002])
    assert (out / "budgets.png").exists() and (out / "budgets.md").exists()


@pytest.mark.parametrize("what, stage2", [("basis", True), ("eye", False)])
def test_an_ablation_has_a_point_for_each_value(out, what, stage2):
    flags = [] if stage2 else ["--no-stage2"]
    done = run_here("results/sweeps.py", what, "--out", out, "--seeds", "0", "--threads", "1",
                    *flags)
    assert done.returncode == 0, done.stderr
    sweep = read_json(out / f"ablate_{what}.json")
    assert [point["value"] for point in sweep["points"]] == list(SWEEPS[what])
    for point in sweep["points"]:
        assert {"on_the_source_llm", "zero_shot_langbridge"} <= set(point["rows"])
        assert ("transferred_langbridge" in point["rows"]) == stage2
    table = (out / f"ablate_{what}.md").read_text(encoding="utf-8")
    assert all(f"| {value} (" in table for value in SWEEPS[what])
    assert (out / f"ablate_{what}.png").exists()


def test_an_ablation_starts_from_what_train_has_made(out):
    """The point with train.py's own value is no new training; another one has its own stages."""
    s = load_settings(out)
    moves, jobs = prepare_point(s, "basis", "words", {}, [0])
    assert jobs == [] and moves[0].own and moves[0].root == "transfer"
    changes = SWEEPS["coefficients"]["relu, none drawn"]
    moves, jobs = prepare_point(s, "coefficients", "relu, none drawn", changes, [0])
    assert jobs == [] and moves[0].s.align_drawn == 0.0 and not moves[0].own
    assert moves[0].root == "ablate/coefficients/relu,nonedrawn"
    moves, jobs = prepare_point(s, "target", "foreign", SWEEPS["target"]["foreign"], [0])
    assert [job.stage.name for job in jobs] == ["llm_target"]
    assert jobs[0].s.of_llm("llm_target")[0] == "foreign" and jobs[0].s.out == moves[0].s.out
    assert moves[0].root == "transfer" and moves[0].s.out != s.out


def test_all_rows_of_sweeps_exist():
    names = {row.name for row in ROWS}
    for of_sweep in [*SWEPT.values(), BUDGETED, set(BUDGETED.values()) - {None}]:
        assert set(of_sweep) <= names
    assert set(SWEPT) <= set(SWEEPS)


@pytest.mark.parametrize("args, says", [
    (["width"], "coefficients"),
    (["budgets", "--steps", "a"], "as in 0,1,2"),
    (["budgets", "--steps", "0,50"], "1 or more"),
    (["K", "--device", "cuda:77"], "--device cpu"),
])
def test_a_wrong_flag_is_answered_in_one_line(out, args, says):
    assert_refused(run_here("results/sweeps.py", "--out", out, *args), says)
