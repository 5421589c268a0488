"""python transfer.py: an adapter moves to another LLM, and nothing of it changes but its basis."""
import doctest
import re
from dataclasses import replace

import pytest
import torch
from conftest import WORDS, assert_refused, make_llm, run, run_here

import transfer
from adapter import LangBridge, MLPAdapter, fingerprint, load_adapter
from data.files import read_json
from evaluate import load_vlm
from model import load_llm
from results import collect
from results.collect import samples_to
from train import load_settings, new_adapter
from transfer import MEASURE_AT, ROWS, SWEEPS, Move, bring, label, shuffle_words, stitch

TARGET = "transfer/llm_target/seed1"


# ---- how an adapter gets to another LLM ----------------------------------------------------------

def test_a_stitched_mlp_is_exact_where_the_target_is_a_linear_map_of_the_source():
    source, target = make_llm("source", 32), make_llm("source", 48)
    M = torch.randn(32, 48)

    def embed(ids):
        return source[0].embed(ids) @ M

    target[0].embed = embed
    mlp, x = MLPAdapter(16, 32), torch.randn(1, 36, 16)
    assert torch.allclose(stitch(mlp, source, target)(x), mlp(x) @ M, atol=1e-3)


def test_shuffled_words_are_the_same_words_in_other_places():
    llm, adapter = make_llm("source", 32), LangBridge(16, WORDS, 24)
    before, weights = adapter.set_basis(*llm).E.clone(), fingerprint(adapter)
    shuffle_words(adapter, seed=0).set_basis(*llm)
    assert sorted(adapter.tokens) == sorted(WORDS)
    assert not torch.equal(adapter.E, before) and fingerprint(adapter) == weights
    assert torch.equal(adapter.E.sum(1).sort().values, before.sum(1).sort().values)


def test_words_are_shuffled_otherwise_by_another_seed():
    orders = [shuffle_words(LangBridge(16, WORDS, 24), seed).tokens for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


# ---- rows and their stages -----------------------------------------------------------------------

def test_the_examples_of_the_docstrings_are_true():
    result = doctest.testmod(collect)
    assert result.failed == 0 and result.attempted > 0


def test_samples_to_a_goal_are_none_where_it_is_not_reached():
    curve = [[0, 0.5], [100, 0.7], [200, 0.9]]
    assert samples_to(curve, 0.4) == 0 and samples_to(curve, 0.95) is None


def test_every_row_has_a_name_of_its_own_and_its_controls():
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names)) == 15
    headline = {row.name for row in ROWS if row.headline}
    assert {"native_mlp", "zero_shot_langbridge", "zero_shot_shuffled", "blind"} <= headline
    assert [row.headline for row in ROWS] == [True] * 9 + [False] * 6


def test_an_llm_elsewhere_has_a_label_of_its_own(tmp_path):
    assert label("llm_source") == "llm_source"
    assert label(str(tmp_path / "out-seed1" / "llm_source")) == "out-seed1-llm_source"


def test_what_train_has_made_is_used_and_not_made_again(out):
    s = load_settings(out)
    own = Move(s, "llm_source", "llm_target", own=True)
    other = Move(s, "llm_source", "llm_target", own=False)
    assert own.adapter("llm_source", "mlp", "align").name == "mlp_align"
    assert other.adapter("llm_source", "mlp", "align").name == (
        "transfer/llm_source/seed0/mlp_align")
    assert own.adapter("llm_target", "mlp", "align").name == "transfer/llm_target/seed0/mlp_align"


# ---- python transfer.py --------------------------------------------------------------------------

@pytest.fixture(scope="module")
def moved(out):
    """The out folder after transfer.py with one seed that is not train.py's."""
    done = run("transfer.py", "--out", out, "--seeds", "1", "--rows", "all")
    (out / "said.txt").write_text(done.stdout, encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def result(moved):
    return read_json(moved / "transfer.json")


def test_transfer_json_has_every_row_and_every_score(result):
    assert result["seeds"] == [1]
    assert [row["name"] for row in result["rows"]] == [row.name for row in ROWS]
    for row in result["rows"]:
        assert set(row["scores"]) == {"vqa", "caption_f1", "pope_acc", "comp_vqa"}
        assert all(len(score["values"]) == 1 for score in row["scores"].values())
        assert bool(row["curve"]) == row["stage2"]
        assert (row["samples"] > 0) == (row["stage1"] or row["stage2"])
    assert {"transferred_vs_native_mlp", "transferred_vs_native_langbridge",
            "zero_shot_vs_stage1_native_langbridge"} <= set(result["relative"])


def test_rows_are_told_when_they_are_finished_after_what_guessing_scores(moved):
    said = (moved / "said.txt").read_text(encoding="utf-8")
    head, told, table = said.split("stage 1  stage 2")
    assert told.index("\nchance ") < told.index("\nmajority ") < told.index("zero_shot_langbridge ")
    for part in (told, table):
        for row in ROWS:
            scores = r"( +[01]\.\d{3}){4}"
            assert re.search(rf"{row.name} +(yes|no) +(yes|no){scores}", part), row.name
    assert told.index("zero_shot_langbridge ") < told.index("native_mlp  ")
    assert "words llm_target lacks" in said


def test_by_default_it_is_one_seed_and_the_headline():
    args = transfer.parse([])
    assert (args.seeds, args.rows) == ([0], "headline")
    assert transfer.parse(["--full-seeds"]).seeds == [0, 1, 2]
    assert transfer.parse(["--ablate", "K"]).seeds == [0, 1, 2]
    assert transfer.parse(["--seeds", "4"]).seeds == [4]


def test_the_swap_leaves_every_trained_parameter_as_it_was(result):
    assert result["adapter_hash"]["before"] == result["adapter_hash"]["after"]


def test_tables_and_figures_are_written(moved):
    assert (moved / "transfer.png").exists()
    text = (moved / "transfer.md").read_text(encoding="utf-8")
    for row in ROWS:
        assert f"| {row.name} |" in text


def test_every_row_starts_from_the_adapter_that_it_names(moved):
    """Fresh ones are untrained, all others are those of their stage; only shuffled words differ."""
    move = Move(replace(load_settings(moved), seed=1), "llm_source", "llm_target", own=False)
    llm, encoding = load_llm(moved / "llm_target")
    for row in ROWS:
        adapter = bring(move.row_s, row, move, llm, encoding)
        if row.start == "none":
            assert adapter is None
            continue
        if row.start == "fresh":
            expected = new_adapter(move.s, row.kind, llm, encoding)
        else:
            expected = load_adapter(move.start_of(row).folder)
        if row.start == "stitched":
            adapter, _ = adapter
        assert fingerprint(adapter) == fingerprint(expected), row.name
        if row.kind == "langbridge":
            assert (adapter.tokens == expected.tokens) == (row.start != "shuffled")


def test_another_budget_of_stage_2_has_stages_of_its_own(moved):
    usual = Move(load_settings(moved), "llm_source", "llm_target", own=False)
    other = Move(load_settings(moved), "llm_source", "llm_target", own=False, steps=3)
    for row in ROWS:
        if row.stage2:
            assert usual.stage_of(row).name != other.stage_of(row).name
            assert other.stage_of(row).settings["instruct_steps"] == 3


def test_without_what_train_makes_nothing_is_trained(out, tmp_path):
    for name in ("settings.json", "vit", "llm_source", "llm_target"):
        (tmp_path / name).symlink_to(out / name)
    assert_refused(run_here("transfer.py", "--out", tmp_path, "--seeds", "0"), "_align")
    assert not (tmp_path / "transfer" / "llm_target").exists()


def test_every_stage_2_has_the_same_budget_and_is_measured_at_the_same_moments(result):
    curves = [[samples for samples, _ in row["curve"]] for row in result["rows"] if row["stage2"]]
    assert all(curve == curves[0] for curve in curves)
    assert curves[0][0] == 0 and len(curves[0]) <= len(MEASURE_AT)


def test_transferring_again_redoes_nothing(moved):
    def when():
        return {path: path.stat().st_mtime_ns for path in (moved / "transfer").rglob("*.pt")}

    before = when()
    again = run_here("transfer.py", "--out", moved, "--seeds", "1", "--rows", "all", "--threads",
                     "1")
    assert again.returncode == 0, again.stderr
    assert len(before) > 10 and before == when()


def test_an_adapter_also_moves_from_the_target_to_the_source(moved):
    done = run_here("transfer.py", "--out", moved, "--seeds", "1", "--reverse", "--threads", "1")
    assert done.returncode == 0, done.stderr
    r = read_json(moved / "transfer_reverse.json")
    assert (r["source"], r["target"]) == ("llm_target", "llm_source")
    assert r["adapter_hash"]["before"] == r["adapter_hash"]["after"]


def test_the_moved_model_answers_questions(moved, picture):
    done = run_here("evaluate.py", "--out", moved, "--image", picture, "--model",
                    f"{TARGET}/from_llm_source/transferred_langbridge")
    assert done.returncode == 0 and done.stderr == ""


def test_a_shuffled_row_is_loaded_with_its_words_shuffled(moved):
    aligned = load_adapter(moved / "transfer" / "llm_source" / "seed1" / "langbridge_align")
    name = f"{TARGET}/from_llm_source/shuffled_basis"
    loaded = load_vlm(moved, name)[1].adapter
    assert loaded.tokens == shuffle_words(aligned, seed=1).tokens
    expected = load_vlm(moved, f"{TARGET}/from_llm_source/transferred_langbridge")[1].adapter
    order = [expected.tokens.index(token) for token in loaded.tokens]
    assert torch.equal(loaded.E, expected.E[order]) and not torch.equal(loaded.E, expected.E)


@pytest.mark.parametrize("args, says", [
    (["--seeds", "a"], "as in 0,1,2"),
    (["--steps", "-1"], "--steps -1"),
    (["--corpus", "none"], "sentences"),
    (["--source", "nowhere"], "nowhere"),
    (["--full-seeds", "--source", "nowhere"], "use one or the other"),
    (["--ablate", "width"], "coefficients"),
    (["--ablate", "K", "--reverse"], "--ablate does not go with --reverse"),
    (["--no-stage2"], "needs --ablate"),
    (["--device", "cuda:77"], "--device cpu"),
])
def test_a_wrong_flag_is_answered_in_one_line(out, args, says):
    assert_refused(run_here("transfer.py", "--out", out, *args), says)


def test_transfer_before_train_says_what_to_run_first(tmp_path):
    assert_refused(run_here("transfer.py", "--out", tmp_path / "nowhere"), "python train.py --out")


# ---- python transfer.py --ablate -----------------------------------------------------------------

@pytest.mark.parametrize("what, stage2", [("basis", True), ("patches", False)])
def test_an_ablation_has_a_point_for_each_value(out, what, stage2):
    flags = [] if stage2 else ["--no-stage2"]
    done = run_here("transfer.py", "--out", out, "--ablate", what, "--seeds", "0", "--threads", "1",
                    *flags)
    assert done.returncode == 0, done.stderr
    sweep, (_, values) = read_json(out / f"ablate_{what}.json"), SWEEPS[what]
    assert [point["value"] for point in sweep["points"]] == values
    kinds = {"native", "zero_shot", "transferred"} if stage2 else {"native", "zero_shot"}
    for point in sweep["points"]:
        assert set(point) == {"value", "K", "params", "own_weight"} | kinds
    table = (out / f"ablate_{what}.md").read_text(encoding="utf-8")
    assert all(f"| {value} |" in table for value in values)
    assert (out / f"ablate_{what}.png").exists()


def test_an_ablation_starts_from_what_train_has_made(out):
    """The point with train.py's own value is no new training."""
    s = load_settings(out)
    moves = transfer.prepare_point(s, "basis", "align_basis", "words", [0])
    assert moves[0].own and moves[0].root == "transfer"
    moves = transfer.prepare_point(s, "coefficients", "align_coefficients", "relu", [0])
    assert moves[0].s.align_drawn == 0.0 and moves[0].root == "ablate/coefficients/relu"
