"""python transfer.py: an adapter moves to another LLM, and nothing of it changes but its basis."""
import doctest
import re
from dataclasses import replace

import pytest
import torch
from conftest import WORDS, assert_refused, make_llm, run, run_here

import transfer
from adapter import NOTHING, LangBridge, MLPAdapter, Voted, Written, fingerprint, load_adapter
from data.files import read_json
from data.settings import load_settings
from data.world import make_scene
from evaluate import load_vlm
from model import load_llm
from results import collect
from results.collect import collect_budgets, ratio, samples_to
from train import new_adapter
from transfer import (
    ROWS, Move, Probe, bring, can_be_made, fit_probe, label, shuffle_words, stitch)

TARGET = "transfer/llm_target/seed1"


# ---- how an adapter gets to another LLM ----------------------------------------------------------

def test_a_stitched_mlp_is_exact_where_the_target_is_a_linear_map_of_the_source():
    torch.manual_seed(0)
    mlp, x, e = MLPAdapter(16, 32), torch.randn(1, 36, 16), torch.randn(100, 32) + 1
    M = torch.randn(32, 48)
    stitched = stitch(mlp, mlp(x).detach()[0], e, e @ M + 2, ridge=1e-6)
    got, wanted = stitched(x) - (e @ M + 2).mean(0), (mlp(x) - e.mean(0)) @ M
    scale = (got / wanted).median()
    assert torch.allclose(got, scale * wanted, atol=1e-2)
    assert got.norm(dim=-1).mean().item() == pytest.approx(
        ((e - e.mean(0)) @ M).norm(dim=1).mean().item(), rel=1e-2)


def test_a_probe_learns_the_words_of_tiles_from_labels():
    torch.manual_seed(0)
    words = torch.eye(5)[torch.randint(0, 5, (200, 9))]  # one word a tile
    tiles = words @ torch.randn(5, 4 * 16)
    x = tiles.view(200, 3, 3, 2, 2, 16).transpose(2, 3).reshape(200, 36, 16)
    x = x + 0.1 * torch.randn_like(x)
    probe = Probe(16, [b" ."] * 5).fit(x[:150], words[:150])
    probe.present = torch.ones(5, dtype=torch.bool)
    said = probe.weights(x[150:])[:, [0, 2, 4, 12, 14, 16, 24, 26, 28]]  # a patch of each tile
    assert (said.argmax(-1) == words[150:].argmax(-1)).all()
    probe.present[2] = False  # a word that an LLM lacks is not said
    assert not (probe.weights(x).argmax(-1) == 2).any()


def test_the_probe_is_taught_what_stands_on_each_tile(out, monkeypatch):
    taught = {}

    def fit(probe, x, words):
        taught["words"] = words
        return probe

    monkeypatch.setattr(Probe, "fit", fit)
    tokens = fit_probe(load_settings(out)).tokens
    for i, tiles in enumerate(taught["words"]):
        scene = make_scene("train", 0, i)
        shown = {o.place: {f" {o.color}".encode(), f" {o.shape}".encode()} for o in scene}
        for place, tile in enumerate(tiles):
            assert {tokens[k] for k in tile.nonzero()} == shown.get(place, {b" ."})


def test_shuffled_words_are_the_same_words_in_other_places():
    llm, adapter = make_llm("source", 32), LangBridge(16, WORDS, 24)
    before, weights = adapter.set_basis(*llm).E.clone(), fingerprint(adapter)
    shuffle_words(adapter, seed=0).set_basis(*llm)
    assert sorted(adapter.tokens) == sorted(WORDS)
    assert adapter.tokens.index(NOTHING) == WORDS.index(NOTHING)
    assert not torch.equal(adapter.E, before) and fingerprint(adapter) == weights
    assert torch.equal(adapter.E.sum(1).sort().values, before.sum(1).sort().values)


def test_words_are_shuffled_differently_with_another_seed():
    orders = [shuffle_words(LangBridge(16, WORDS, 24), seed).tokens for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


# ---- rows and their stages -----------------------------------------------------------------------

def test_the_examples_of_the_docstrings_are_true():
    result = doctest.testmod(collect)
    assert result.failed == 0 and result.attempted > 0


def test_samples_to_a_goal_are_none_where_it_is_not_reached():
    curve = [[0, 0.5], [100, 0.7], [200, 0.9]]
    assert samples_to(curve, 0.4) == 0 and samples_to(curve, 0.95) is None


def config_of(right):
    """A finished stage that gets these of its questions right, two a picture."""
    counts = [[n, 2] for n in right]
    return {"scores": {"vqa": sum(right) / (2 * len(right))}, "counts": {"vqa": counts}}


def test_a_ratio_is_taken_within_a_seed_and_its_pictures_are_drawn_in_pairs():
    high, low = config_of([2, 1, 2, 1] * 20), config_of([1, 0, 1, 0] * 20)
    assert ratio([high, high], [high, high], "vqa")["interval"] == [1.0, 1.0]
    found = ratio([high, low], [low, low], "vqa")
    assert found["values"] == pytest.approx([3.0, 1.0]) and found["mean"] == pytest.approx(2.0)
    assert found["interval"][0] < 2.0 < found["interval"][1]


def test_budgets_tell_how_many_samples_bring_95_percent_of_the_longest_native_mlp():
    def row(name, *vqa):
        return {"name": name, "points": [{"samples": 100 * k, "vqa": [v, v]}
                                         for k, v in enumerate(vqa)]}

    r = collect_budgets([row("native_mlp", 0.5, 0.9, 1.0), row("fresh_mlp", 0.0, 0.1, 0.2),
                         row("transferred_langbridge", 0.96, 0.9, 0.9)], [0, 1])
    assert r["goal"] == pytest.approx(0.95) and r["samples"] == [0, 100, 200]
    needed = {row["name"]: row["samples_to_95"] for row in r["rows"]}
    assert needed["native_mlp"] == pytest.approx(150)
    assert needed["fresh_mlp"] is None and needed["transferred_langbridge"] == 0


def test_every_row_has_a_name_of_its_own_and_its_controls():
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names)) == 25
    headline = {row.name for row in ROWS if row.headline}
    assert {"native_mlp", "zero_shot_langbridge", "zero_shot_shuffled", "blind",
            "zero_shot_mlp_as_words", "words_as_text_mlp", "probe_as_text"} <= headline
    assert [row.headline for row in ROWS] == [True] * 13 + [False] * 12


@pytest.mark.parametrize("changes, lost", [
    ({}, 0), (dict(vit_patch=16), 4), (dict(align_mlp_hidden=64), 4)])
def test_rows_that_the_settings_do_not_allow_are_left_out(out, changes, lost):
    s = replace(load_settings(out), **changes)
    assert sum(not can_be_made(row, s) for row in ROWS) == lost


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
        assert (row["samples"] > 0) == (row["stage1"] or row["stage2"])
    assert {"transferred_vs_native_mlp", "transferred_vs_native_langbridge",
            "zero_shot_vs_stage1_native_langbridge"} <= set(result["relative"])
    for ratios in result["ratios"].values():
        for found in ratios.values():
            low, high = found["interval"]
            assert len(found["values"]) == 1 and low <= high


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
    assert transfer.parse(["--seeds", "4"]).seeds == [4]


def test_the_swap_leaves_every_trained_parameter_as_it_was(moved, result):
    """The one hash is of the end of the source's training, the other of the end of the row."""
    assert result["adapter_hash"]["before"] == result["adapter_hash"]["after"]
    aligned = moved / "transfer" / "llm_source" / "seed1" / "langbridge_align"
    assert result["adapter_hash"]["before"] == fingerprint(load_adapter(aligned))
    tuned = read_json(moved / TARGET / "from_llm_source" / "transferred_langbridge" / "config.json")
    assert tuned["hash"] != result["adapter_hash"]["after"]


def test_the_table_has_every_row(moved):
    text = (moved / "transfer.md").read_text(encoding="utf-8")
    for row in ROWS:
        assert f"| {row.name} |" in text


def test_every_row_starts_from_the_adapter_that_it_names(moved):
    """Fresh ones are untrained, all others are those of their stage; only shuffled words differ."""
    move = Move(replace(load_settings(moved), seed=1), "llm_source", "llm_target", own=False)
    llm, encoding = load_llm(moved / "llm_target")
    for row in ROWS:
        adapter, constant = bring(move.row_s, row, move, llm, encoding)
        assert isinstance(adapter, Written) == (row.written in ("top", "relaid"))
        assert isinstance(adapter, Voted) == (row.written == "voted")
        assert (constant is not None) == (row.start in ("stitched", "as_words"))
        if row.written in ("top", "relaid"):
            assert adapter.relaid == (row.written == "relaid")
        if row.written:
            adapter = adapter.adapter
        if row.start == "none":
            assert adapter is None
        elif row.start == "probe":
            assert isinstance(adapter, Probe)
        elif row.start in ("stitched", "as_words"):  # the MLP's first layer, and more behind it
            first = (adapter.net if row.start == "stitched" else adapter.W)[0]
            mlp = load_adapter(move.start_of(row).folder)
            assert torch.equal(first.weight, mlp.net[0].weight)
            assert isinstance(adapter, LangBridge) == (row.start == "as_words")
        else:
            if row.start == "fresh":
                expected = new_adapter(move.s, row.kind, llm, encoding)
            else:
                expected = load_adapter(move.start_of(row).folder)
            assert fingerprint(adapter) == fingerprint(expected), row.name
            if row.kind == "langbridge":
                assert (adapter.tokens == expected.tokens) == (row.start != "shuffled")


def test_an_open_constant_is_the_one_that_is_best_on_val(moved, monkeypatch):
    """The fourth temperature is told to be the best."""
    scored = []

    def score_vlm(vlm, exam, data):
        assert list(exam) == ["val"]
        scored.append(vlm.adapter.W[3].weight.std().item())
        return {"val": {"vqa": -scored[-1], "caption_f1": 0.0}}  # the flattest is best

    monkeypatch.setattr(transfer, "score_vlm", score_vlm)
    move = Move(replace(load_settings(moved), seed=1), "llm_source", "llm_target", own=False)
    (row,) = [row for row in ROWS if row.name == "zero_shot_mlp_as_words"]
    chosen, temperature = bring(move.row_s, row, move, *load_llm(moved / "llm_target"))
    assert len(scored) == len(transfer.TEMPERATURES)
    assert chosen.W[3].weight.std().item() == min(scored)
    assert temperature == transfer.TEMPERATURES[-1]


def test_another_budget_of_stage_2_has_stages_of_its_own(moved):
    usual = Move(load_settings(moved), "llm_source", "llm_target", own=False)
    other = Move(load_settings(moved), "llm_source", "llm_target", own=False, steps=3)
    for row in ROWS:
        if row.stage2:
            assert usual.stage_of(row).name != other.stage_of(row).name
            assert other.stage_of(row).settings["instruct_steps"] == 3
        else:  # no stage 2: the same row
            assert usual.stage_of(row).name == other.stage_of(row).name
            assert usual.stage_of(row).settings == other.stage_of(row).settings


def test_without_what_train_makes_nothing_is_trained(out, tmp_path):
    for name in ("settings.json", "vit", "llm_source", "llm_target"):
        (tmp_path / name).symlink_to(out / name)
    assert_refused(run_here("transfer.py", "--out", tmp_path, "--seeds", "0"), "_align")
    assert not (tmp_path / "transfer" / "llm_target").exists()


def test_every_stage_2_has_the_same_budget(result):
    for row in result["rows"]:
        steps = 20 * row["stage1"] + 8 * row["stage2"]  # of the smoke preset, and two fifths of it
        assert (row["steps"], row["samples"]) == (steps, 8 * steps)


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
    (["--steps", "-1"], "--steps: '-1'"),
    (["--corpus", "none"], "sentences"),
    (["--source", "nowhere"], "nowhere"),
    (["--full-seeds", "--source", "nowhere"], "use one or the other"),
    (["--full-seeds", "--corpus", "sentences"], "--full-seeds does not go with --corpus"),
    (["--device", "cuda:77"], "--device cpu"),
])
def test_a_wrong_flag_is_answered_in_one_line(out, args, says):
    assert_refused(run_here("transfer.py", "--out", out, *args), says)


def test_transfer_before_train_says_what_to_run_first(tmp_path):
    assert_refused(run_here("transfer.py", "--out", tmp_path / "nowhere"), "python train.py --out")
