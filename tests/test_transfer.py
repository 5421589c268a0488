"""python transfer.py: another LLM gets the adapter, and nothing of it changes but its basis."""
import copy
import pickle
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import WORDS, assert_refused, run_here

import transfer
from adapter import EMPTY, LangBridge, MLPAdapter, fingerprint, load_adapter
from data.files import read_json
from data.world import make_scene, patches_of
from evaluate import load_vlm
from model import GPT, load_llm
from train import load_settings, new_adapter
from transfer import (Probe, TopWords, all_rows, can_be_made, from_tiles, in_tiles, linear_map,
                      shuffled)

LLMS = "llm_source", "llm_target"
ROWS = all_rows(*LLMS)


# ---- baselines and controls ----------------------------------------------------------------------

def test_a_linear_map_is_exact_where_the_target_is_a_linear_map_of_the_source():
    mlp, x, M = MLPAdapter(16, 32), torch.randn(1, 36, 16), torch.randn(32, 48)
    v, e = mlp(x).detach(), torch.randn(100, 32) + 1
    mapped = linear_map(mlp, v[0], e, e @ M + 2, strength=1e-6)(x) - (e @ M + 2).mean(0)
    expected = (v - e.mean(0)) @ M
    assert torch.allclose(mapped, (mapped / expected).median() * expected, atol=1e-2)
    size_of_words = ((e - e.mean(0)) @ M).norm(dim=1).mean().item()
    assert mapped.norm(dim=-1).mean().item() == pytest.approx(size_of_words, rel=1e-2)


def test_tiles_are_the_patches_of_places_and_there_is_a_way_back():
    assert in_tiles(torch.arange(36)[None])[0].tolist() == [patches_of(k, 6) for k in range(9)]
    x = torch.randn(2, 144, 5)
    assert torch.equal(from_tiles(in_tiles(x)), x)


def test_as_text_a_tile_is_its_two_top_words_in_both_rows_or_four_times_the_empty_word():
    empty, red, circle = map(WORDS.index, (EMPTY, b" red", b" circle"))
    beta = torch.zeros(1, 9, 4, 6)  # (B, tiles, 4, K)
    beta[..., empty] = 0.5
    beta[0, 4, :, red] = torch.tensor([1.0, 0.0, 0.0, 1.2])  # more than all four for the empty word
    beta[0, 5, :2, red] = 0.9  # less
    beta[0, 4:6, 1, circle] = 1.9
    text = TopWords(SimpleNamespace(tokens=WORDS, E=torch.randn(6, 32), weights=lambda x: x))
    words = text.weights(from_tiles(beta)).argmax(-1)  # (B, N)
    assert in_tiles(words)[0, 4].tolist() == [red, circle, red, circle]
    assert (words == empty).sum() == 32
    assert torch.equal(text(from_tiles(beta)), text.E[words])


def test_a_probe_learns_the_words_of_tiles_from_labels():
    words = torch.eye(5)[torch.randint(0, 5, (200, 9))]  # one word for each tile
    x = from_tiles((words @ torch.randn(5, 4 * 16)).view(200, 9, 4, 16))
    x = x + 0.1 * torch.randn_like(x)
    probe = Probe(16, [b" ."] * 5).fit(x[:150], words[:150])
    probe.present = torch.ones(5, dtype=torch.bool)
    found = in_tiles(probe.weights(x[150:])).argmax(-1)
    assert torch.equal(found, words[150:].argmax(-1, keepdim=True).expand(-1, -1, 4))
    probe.present[2] = False  # an LLM lacks this word
    assert not (probe.weights(x).argmax(-1) == 2).any()


def test_the_probe_is_taught_what_stands_on_each_tile(out, monkeypatch):
    taught = []
    monkeypatch.setattr(Probe, "fit", lambda probe, x, words: taught.append(words) or probe)
    tokens = transfer.probe(load_settings(out), None, None, load_llm(out / "llm_target")).tokens
    for i, tiles in enumerate(taught[0]):
        shown = {o.place: {f" {o.color}".encode(), f" {o.shape}".encode()}
                 for o in make_scene("train", 0, i)}
        for place, tile in enumerate(tiles):
            assert {tokens[k] for k in tile.nonzero()} == shown.get(place, {EMPTY})


def test_shuffled_words_are_the_same_words_in_an_order_of_the_seed():
    orders = [shuffled(WORDS, seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and WORDS not in orders
    for order in orders:
        assert sorted(order) == sorted(WORDS) and order.index(EMPTY) == WORDS.index(EMPTY)


# ---- rows ----------------------------------------------------------------------------------------

def test_rows_have_names_of_their_own_and_can_be_sent_to_other_processes():
    names = [row.name for row in pickle.loads(pickle.dumps(ROWS))]
    assert len({*names}) == len(names) == 23
    assert [row.headline for row in ROWS] == [True] * 13 + [False] * 10


@pytest.mark.parametrize("changes, lost", [
    ({}, 0), ({"vit_patch": 16}, 3), ({"align_mlp_hidden": 64}, 3)])
def test_rows_that_the_settings_do_not_allow_are_left_out(out, changes, lost):
    s = replace(load_settings(out), **changes)
    assert sum(not can_be_made(row, s) for row in ROWS) == lost


@pytest.fixture(scope="module")
def moved(out, tmp_path_factory):
    """A copy of the finished run, in which all rows were made; said.txt is what that printed."""
    moved = tmp_path_factory.mktemp("moved") / "out"
    shutil.copytree(out, moved)
    with pytest.MonkeyPatch.context() as patch:  # short answers: these models only babble
        patch.setattr(GPT.generate.__wrapped__, "__defaults__", (2, None))
        done = run_here("transfer.py", "--out", moved, "--rows", "all", "--threads", 1)
    assert done.returncode == 0, done.stderr
    (moved / "said.txt").write_text(done.stdout, encoding="utf-8")
    return moved


def test_every_row_has_its_scores_in_the_table_and_in_json(moved):
    r, said = read_json(moved / "transfer.json"), (moved / "said.txt").read_text(encoding="utf-8")
    assert (r["seed"], r["source"], r["target"], r["stage2_samples"]) == (0, *LLMS, 8 * 8)
    assert [(row["name"], row["stage1"], row["stage2"]) for row in r["rows"]] == [
        (row.name, row.stage1, row.stage2) for row in ROWS]
    for row in r["rows"]:
        scores = [row["scores"][name] for name in ("vqa", "caption_f1", "pope_acc", "comp_vqa")]
        line = row["name"] + " +(yes|no) +(yes|no)" + "".join(f" +{score:.3f}" for score in scores)
        assert len(re.findall(f"{line}\n", said)) == 2  # when it was finished, and in the table
    assert {"vqa", "val"} <= {*r["majority"]} & {*r["chance"]} and "\nchance " in said
    assert "words llm_target lacks" in said and r["adapter_hash"]["after"] in said


def test_the_swap_leaves_every_trained_parameter_as_it_was(moved):
    """The one hash is of the end of the source's training, the other of the end of the row."""
    r = read_json(moved / "transfer.json")["adapter_hash"]
    assert r["before"] == r["after"] == fingerprint(load_adapter(moved / "langbridge_align"))
    tuned = read_json(moved / "transfer" / "transferred_langbridge" / "config.json")
    assert tuned["hash"] != r["after"]


def test_stage_2_tunes_the_llm_within_one_budget_and_zero_shot_rows_save_no_weights(moved):
    before = load_llm(moved / "llm_target")[0].embedding.weight
    for row in ROWS:
        folder = moved / "transfer" / row.name
        saved = {path.name for path in folder.glob("*.pt")}
        if not row.stage2:
            assert not saved
            continue
        assert saved == ({"llm.pt"} if row.name == "blind" else {"llm.pt", "adapter.pt"})
        assert row.name == "blind" or read_json(folder / "adapter.json").get("sampled", 0) == 0
        assert (folder / "log.csv").read_text(encoding="utf-8").splitlines()[-1].startswith("7,")
        assert not torch.equal(load_llm(folder)[0].embedding.weight, before)


def test_every_row_starts_from_the_adapter_that_it_names(moved, monkeypatch):
    """Fresh ones are untrained, all others are those of their stage; only shuffled words differ."""
    monkeypatch.setattr(transfer, "best_on_val", lambda vlms, *_: min(vlms))
    s, (source, target) = load_settings(moved), (load_llm(moved / llm) for llm in LLMS)
    for row in ROWS:
        start = load_adapter(moved / row.start) if row.start else None
        adapter = row.make(s, copy.deepcopy(start), source, target)
        assert isinstance(adapter, TopWords) == row.name.startswith("text_")
        adapter = getattr(adapter, "adapter", adapter)  # what is written as text
        if row.name.startswith("fresh_"):
            start = new_adapter(s, row.name.removeprefix("fresh_"), *target)
        if start:
            assert torch.equal(next(adapter.parameters()), next(start.parameters()))
        if isinstance(start, LangBridge):
            assert fingerprint(adapter) == fingerprint(start)
            assert (adapter.tokens == start.tokens) == ("shuffled" not in row.name)
            if "zero_shot" in row.name:
                made = read_json(moved / "transfer" / row.name / "config.json")
                assert made["hash"] == fingerprint(start)


def test_a_tuned_row_is_loaded_as_it_was_trained_and_answers(moved, picture):
    other, tuned = (load_vlm(moved, f"transfer/{name}")[1].adapter
                    for name in ("transferred_langbridge", "tuned_shuffled"))
    order = [other.tokens.index(t) for t in shuffled(other.tokens, seed=0)]
    assert torch.equal(tuned.E, other.E[order]) and not torch.equal(tuned.E, other.E)
    args = "evaluate.py", "--out", moved, "--image", picture, "--model"
    assert run_here(*args, "transfer/tuned_shuffled").returncode == 0
    assert_refused(run_here(*args, "transfer/zero_shot_langbridge"), "scores, but neither")


@pytest.mark.parametrize("args, name, made", [
    (["all"], "transfer", 0), (["blind", "--steps", 3], "transfer_steps3_rate1", 1),
    (["transferred_langbridge", "--reverse", "--rate", 2], "transfer_reverse_steps8_rate2", 1)])
def test_again_redoes_nothing_and_another_direction_or_budget_has_files_of_its_own(
        moved, args, name, made):
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("config.json")}
    done = run_here("transfer.py", "--out", moved, "--threads", 1, "--rows", *args)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    r, new = read_json(moved / f"{name}.json"), {*moved.rglob("config.json")} - {*before}
    assert len(new) == made and all(path.parts[-3] == name for path in new)
    for path in new:
        assert read_json(path)["settings"]["instruct_lr"] == 0.001 * (2 if "--rate" in args else 1)
    assert (r["source"], r["target"]) == (LLMS[::-1] if "--reverse" in args else LLMS)
    assert r["stage2_samples"] == (3 * 8 if "--steps" in args else 8 * 8)


# ---- mistakes ------------------------------------------------------------------------------------

@pytest.mark.parametrize("args, says", [
    (["--rows", "blind,stitched"], "expected headline, all, or some of zero_shot_langbridge"),
    (["--steps", "0"], "--steps: '0'"), (["--row", "all"], "did you mean --rows"),
    (["--device", "cuda:77"], "--device cpu"), (["--rate", "-1"], "expected 0 or more")])
def test_a_wrong_flag_is_answered_in_one_line(out, args, says):
    assert_refused(run_here("transfer.py", "--out", out, *args), says)


def test_before_train_or_with_changed_files_nothing_is_made(out, tmp_path):
    def refused(says):
        assert_refused(run_here("transfer.py", "--out", tmp_path, "--threads", 1), says)

    refused("python train.py --out")
    for name in ("settings.json", "vit", "llm_source", "llm_target"):
        (tmp_path / name).symlink_to(out / name)
    refused("langbridge_align")
    shutil.copytree(out / "langbridge_align", tmp_path / "langbridge_align")
    shutil.copy(out / "langbridge_instruct" / "adapter.pt", tmp_path / "langbridge_align")
    refused("not as its stage left it")
    assert not (tmp_path / "transfer").exists()
