"""python transfer.py: another LLM gets the adapter, and nothing of it changes but its basis."""
import copy
import pickle
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import WORDS, assert_refused, make_llm, run_here

import transfer
from adapter import EMPTY, LangBridge, MLPAdapter, fingerprint, load_adapter, token
from data.files import Refused, read_json
from data.world import make_scene, patches_of
from evaluate import load_vlm
from model import GPT, load_llm
from train import load_settings, new_adapter
from transfer import (RATES, Probe, TopWords, all_rows, from_places, in_places, linear_map,
                      shuffle_words, swap_own_mark)

LLMS = "llm_source", "llm_target"
ROWS = all_rows(*LLMS)


# ---- baselines and controls ----------------------------------------------------------------------

def test_a_linear_map_is_exact_where_the_target_is_a_linear_map_of_the_source():
    mlp, x, M = MLPAdapter(16, 32), torch.randn(1, 36, 16), torch.randn(32, 48)
    v, e = mlp(x).detach(), torch.randn(100, 32) + 1
    mapped = linear_map(mlp, v[0], e, e @ M + 2, strength=1e-6)(x) - (e @ M + 2).mean(0)
    expected, words = (v - e.mean(0)) @ M, (e - e.mean(0)) @ M
    scale = words.norm(dim=1).mean() / expected.norm(dim=-1).mean()  # to the size of words
    assert torch.allclose(mapped, scale * expected, atol=1e-2)


def test_in_places_gathers_the_patches_of_each_and_there_is_a_way_back():
    assert in_places(torch.arange(36)[None])[0].tolist() == [patches_of(k, 6) for k in range(9)]
    x = torch.randn(2, 144, 5)
    assert torch.equal(from_places(in_places(x)), x)


def test_as_text_a_place_is_its_two_top_words_in_both_rows_or_four_times_the_empty_word():
    empty, red, circle = map(WORDS.index, (EMPTY, b" red", b" circle"))
    beta = torch.zeros(1, 9, 4, 6)  # (B, places, 4, K)
    beta[..., empty] = 0.5
    beta[0, 4, :, red] = torch.tensor([1.0, 0.0, 0.0, 1.2])  # more than all four for the empty word
    beta[0, 5, :2, red] = 0.9  # less
    beta[0, 4:6, 1, circle] = 1.9
    text = TopWords(Mock(tokens=WORDS, E=torch.randn(6, 32), weights=lambda x: x))
    words = text.weights(from_places(beta)).argmax(-1)  # (B, N)
    assert in_places(words)[0, 4].tolist() == [red, circle, red, circle]
    assert (words == empty).sum() == 32 and torch.equal(text(from_places(beta)), text.E[words])


def test_a_probe_is_taught_what_each_place_shows_and_omits_what_an_llm_lacks(out, monkeypatch):
    taught = Mock(wraps=Probe)
    monkeypatch.setattr(transfer, "Probe", taught)
    probe = transfer.probe(load_settings(out), None, None, load_llm(out / "llm_target"))
    tokens, x, words = taught.call_args.args  # words (pictures, places, K)
    for i, its in enumerate(words):
        shown = {o.place: {token(o.color), token(o.shape)} for o in make_scene("train", 0, i)}
        for place, shows in enumerate(its):
            assert {tokens[k] for k in shows.nonzero()} == shown.get(place, {EMPTY})
    found = in_places(probe.weights(x))[:, :, 0].argmax(-1, keepdim=True)  # (pictures, places, 1)
    assert words.gather(2, found).mean() > 0.6  # a smoke run's features tell little
    probe.present[0] = False
    assert not (probe.weights(x).argmax(-1) == 0).any()


def test_shuffled_words_are_the_same_words_in_an_order_of_the_seed():
    orders = [shuffle_words(SimpleNamespace(seed=seed), LangBridge(16, WORDS), None,
                            make_llm("source", 32)).tokens for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and WORDS not in orders
    for order in orders:
        assert sorted(order) == sorted(WORDS) and order.index(EMPTY) == WORDS.index(EMPTY)


def test_the_targets_own_mark_takes_the_place_of_the_empty_word():
    target = make_llm("mark", 32)
    for dialect, mark in (("mark", b" -"), ("target", EMPTY)):
        s, adapter = SimpleNamespace(llm_target_dialect=dialect), LangBridge(16, WORDS)
        assert swap_own_mark(s, adapter, None, target).tokens == [mark, *WORDS[1:]]
        assert torch.equal(adapter.E[0], transfer.embed(*target, [mark])[0])


# ---- rows ----------------------------------------------------------------------------------------

def test_rows_have_names_of_their_own_and_can_be_sent_to_other_processes(out):
    assert len({row.name for row in pickle.loads(pickle.dumps(ROWS))}) == len(ROWS) == 31
    assert [row.headline for row in ROWS] == [True] * 13 + [False] * 18
    s = replace(load_settings(out), vit_patch=16)
    assert sum(not transfer.can_be_made(row, s) for row in ROWS) == 3  # those of text


@pytest.fixture(scope="module")
def moved(out, tmp_path_factory):
    """A copy of the finished run, in which all rows were made; said.txt is what that printed."""
    moved = tmp_path_factory.mktemp("moved") / "out"
    shutil.copytree(out, moved)
    with pytest.MonkeyPatch.context() as patch:  # short answers: these models only babble
        patch.setattr(GPT.generate.__wrapped__, "__defaults__", (2, None))
        done = run_here("transfer.py", "--out", moved, "--rows", "all", "--threads", 1)
    (moved / "said.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    return moved


def test_rows_are_in_the_table_and_in_json_and_a_swap_leaves_all_trained_parameters(moved):
    r, said = read_json(moved / "transfer.json"), (moved / "said.txt").read_text(encoding="utf-8")
    assert (r["seed"], r["source"], r["target"], r["stage2_samples"]) == (0, *LLMS, 10 * 8)
    assert [(row["name"], row["stage1"], row["stage2"]) for row in r["rows"]] == [
        (row.name, row.stage1, row.stage2) for row in ROWS]
    for row in r["rows"]:
        scores = [row["scores"][name] for name in ("vqa", "caption_f1", "pope_acc", "comp_vqa")]
        assert re.search(f"\n{row['name']} [ 12+]*" + (" +{:.3f}" * 4).format(*scores), said)
    assert {"vqa", "val"} <= {*r["majority"]} & {*r["chance"]} and "\nchance " in said
    hash_before = fingerprint(load_adapter(moved / "langbridge_align"))  # when it was trained
    assert r["adapter_hash"] == {"before": hash_before, "after": hash_before}


def test_stage_2_tunes_the_llm_within_one_budget_and_zero_shot_rows_save_no_weights(moved):
    before = load_llm(moved / "llm_target")[0].embedding.weight
    for row in ROWS:
        folder = moved / "transfer" / row.name
        assert [(folder / name).exists() for name in ("llm.pt", "adapter.pt")] == [
            row.stage2, row.stage2 and row.name != "blind"]
        if row.stage2:
            assert (folder / "log.csv").read_text(encoding="utf-8").splitlines()[-1][:2] == "9,"
            assert not torch.equal(load_llm(folder)[0].embedding.weight, before)


def test_every_row_starts_from_the_adapter_that_it_names(moved, monkeypatch):
    """Fresh ones are untrained, all others are those of their stage; only shuffled words differ."""
    monkeypatch.setattr(transfer, "best_adapter", lambda adapters, *_: adapters[0])
    s, (source, target) = load_settings(moved), (load_llm(moved / llm) for llm in LLMS)
    for row in ROWS:
        start = load_adapter(moved / row.start) if row.start else None
        adapter = row.make(s, copy.deepcopy(start), source, target)
        if row.name.startswith("fresh_"):
            start = new_adapter(s, row.make.keywords["kind"], *target)
        if start:  # the first of its parameters: an MLP's last layer takes in a map, or words
            assert torch.equal(next(adapter.parameters()), next(start.parameters()))
        if isinstance(start, LangBridge):
            assert (adapter.tokens == start.tokens) == ("shuffled" not in row.name)


def test_a_tuned_row_is_loaded_as_it_was_trained_and_others_hold_no_model(moved):
    other, tuned = (load_vlm(moved, f"transfer/{name}")[1].adapter
                    for name in ("transferred_langbridge", "tuned_shuffled"))
    order = [other.tokens.index(t) for t in tuned.tokens]
    assert torch.equal(tuned.E, other.E[order]) and order != sorted(order)
    with pytest.raises(Refused, match="holds no VLM"):
        load_vlm(moved, "transfer/zero_shot_langbridge")


@pytest.mark.parametrize("args, name, rates", [  # the rates of what is made
    (["all"], "transfer", []),
    (["blind", "--steps", 3], "transfer_steps3", [1e-3 * RATES.get("blind", 1)]),
    (["transferred_after_instruct", "--reverse", "--rate", 2], "transfer_reverse_steps10_rate2",
     [1e-3, 2e-3])])  # of the adapter that this row needs, and of its own stage 2
def test_again_redoes_nothing_and_another_budget_has_files_of_its_own(moved, args, name, rates):
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("config.json")}
    run_here("transfer.py", "--out", moved, "--threads", 1, "--rows", *args)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    r, new = read_json(moved / f"{name}.json"), sorted({*moved.rglob("config.json")} - {*before})
    assert [read_json(path)["settings"]["instruct_lr"] for path in new] == rates
    assert (r["source"] == "llm_target") == ("--reverse" in args)
    assert r["stage2_samples"] == (3 * 8 if "--steps" in args else 10 * 8)


# ---- mistakes ------------------------------------------------------------------------------------

@pytest.mark.parametrize("args, says", [
    ("--rows blind,deaf", "expected headline, all, or some of zero_shot_langbridge"),
    ("--device cuda:77", "--device cpu"), ("--rate -1", "0 to 100"), ("--row all", ": --row")])
def test_a_wrong_flag_is_answered_in_one_line(out, args, says):
    assert_refused(run_here("transfer.py", "--out", out, *args.split()), says)


def test_before_train_or_with_changed_files_nothing_is_made(out, tmp_path):
    command = "transfer.py", "--out", tmp_path, "--threads", 1
    for name in ("settings.json", "vit", "llm_source", "llm_target", "langbridge_align"):
        assert_refused(run_here(*command), "python train.py --out")
        copy_of = shutil.copytree if (out / name).is_dir() else shutil.copy
        copy_of(out / name, tmp_path / name)
    shutil.copy(out / "langbridge_instruct" / "adapter.pt", tmp_path / "langbridge_align")
    assert_refused(run_here(*command), "not as its stage left it")
    assert not (tmp_path / "transfer").exists()
