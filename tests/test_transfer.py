"""python transfer.py: an adapter moves to another LLM, and nothing of it changes but its basis."""
import json

import pytest
import torch
from conftest import run, run_here

from adapter import LangBridge, MLPAdapter, fingerprint
from data.corpus import train_tokenizer
from model import GPT, GPTConfig
from results.tries import Tried
from transfer import ROWS, samples_to, shuffle_basis, stitch


def make_llm(dialect, C):
    torch.manual_seed(C)
    encoding = train_tokenizer(dialect, 512, 0, documents=400)
    return GPT(GPTConfig(encoding.n_vocab, C, 4, 1)), encoding


def test_a_stitched_mlp_is_exact_where_the_target_is_a_linear_map_of_the_source():
    source, target = make_llm("source", 32), make_llm("source", 48)
    M = torch.randn(32, 48)
    target[0].embed = lambda ids: source[0].embed(ids) @ M
    mlp, x = MLPAdapter(16, 32), torch.randn(1, 36, 16)
    assert torch.allclose(stitch(mlp, source, target)(x), mlp(x) @ M, atol=1e-3)


def test_a_shuffled_basis_has_the_same_words_in_other_places():
    adapter = LangBridge(16, [b" .", b" red", b" blue", b" circle", b" square", b" top"], 24).set_basis(*make_llm("source", 32))
    before, hash = adapter.E.clone(), fingerprint(adapter)
    shuffle_basis(adapter, seed=0)
    assert not torch.equal(adapter.E, before) and fingerprint(adapter) == hash
    assert torch.equal(adapter.E.sum(1).sort().values, before.sum(1).sort().values)


def test_a_fingerprint_sees_every_parameter_but_not_the_basis():
    adapter = LangBridge(16, [b" .", b" red", b" top"], 24)
    hash = fingerprint(adapter)
    for dialect, C in (("source", 32), ("target", 48)):
        assert fingerprint(adapter.set_basis(*make_llm(dialect, C))) == hash
    for p in adapter.parameters():
        with torch.no_grad():
            p.view(-1)[0] += 1e-3
        assert fingerprint(adapter) != hash
        hash = fingerprint(adapter)


def test_samples_to_a_goal():
    curve = [[0, 0.5], [100, 0.7], [200, 0.9]]
    assert samples_to(curve, 0.8) == pytest.approx(150) and samples_to(curve, 0.4) == 0 and samples_to(curve, 0.95) is None


@pytest.fixture(scope="module")
def moved(out):
    """The out folder after transfer.py with one seed that is not train.py's."""
    done = run("transfer.py", "--out", out, "--seeds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_transfer_json_has_every_row_and_equal_hashes(moved):
    r = json.loads((moved / "transfer.json").read_text(encoding="utf-8"))
    assert r["seeds"] == [1] and [row["name"] for row in r["rows"]] == [row.name for row in ROWS]
    for row in r["rows"]:
        assert set(row["scores"]) == {"vqa", "caption_f1", "pope_acc", "comp_vqa"} and all(len(v["values"]) == 1 for v in row["scores"].values())
        assert bool(row["curve"]) == row["stage2"] and (row["samples"] > 0) == (row["stage1"] or row["stage2"])
    assert {"transferred_vs_native_mlp", "transferred_vs_native_langbridge", "zero_shot_vs_stage1_native_langbridge"} <= set(r["relative"])
    assert r["adapter_hash"]["before"] == r["adapter_hash"]["after"]
    assert (moved / "transfer.png").exists() and "| transferred_langbridge |" in (moved / "transfer.md").read_text(encoding="utf-8")


def test_every_stage_2_has_the_same_budget(moved):
    r = json.loads((moved / "transfer.json").read_text(encoding="utf-8"))
    assert len({row["curve"][-1][0] for row in r["rows"] if row["stage2"]}) == 1


def test_transferring_again_redoes_nothing(moved):
    before = {p: p.stat().st_mtime_ns for p in (moved / "transfer").rglob("*.pt")}
    again = run("transfer.py", "--out", moved, "--seeds", "1")
    assert again.returncode == 0 and len(before) > 10 and before == {p: p.stat().st_mtime_ns for p in (moved / "transfer").rglob("*.pt")}


def test_an_adapter_also_moves_from_the_target_to_the_source(moved):
    done = run("transfer.py", "--out", moved, "--seeds", "1", "--reverse", "--rows", "headline")
    assert done.returncode == 0, done.stdout + done.stderr
    r = json.loads((moved / "transfer_reverse.json").read_text(encoding="utf-8"))
    assert (r["source"], r["target"]) == ("llm_target", "llm_source") and r["adapter_hash"]["before"] == r["adapter_hash"]["after"]


def test_the_moved_model_answers_questions(moved, tmp_path):
    from PIL import Image
    Image.new("RGB", (48, 48), "red").save(tmp_path / "picture.png")
    done = run_here("evaluate.py", "--out", moved, "--model", "transfer/llm_target/seed1/from_llm_source/transferred_langbridge", "--image", tmp_path / "picture.png")
    assert done.returncode == 0 and done.stderr == ""


def test_what_was_tried_is_a_langbridge_with_one_thing_changed():
    llm, x = make_llm("source", 32), torch.randn(2, 36, 16)
    make = lambda kind: (torch.manual_seed(0), kind(16, [b" .", b" red", b" blue", b" circle", b" square", b" top"], 24))[1]
    usual, tried = make(LangBridge).set_basis(*llm), make(Tried)
    assert torch.equal(tried.set_basis(*llm)(x), usual(x))  # everything is switched off
    tried.top = 2
    assert ((tried.weights(x) > 0).sum(-1) == 2).all() and torch.allclose(tried.weights(x).sum(-1), torch.ones(2, 36))
    tried.top, tried.whitened = 0, True
    tried.set_basis(*llm)
    assert torch.allclose(tried.E @ tried.E.T, usual.E[0].square().sum() * torch.eye(6), atol=1e-3)


def test_entropy_in_the_loss_makes_weights_say_less_at_once():
    tried, x = Tried(16, [b" .", b" red", b" blue", b" circle", b" square", b" top"], 24).set_basis(*make_llm("source", 32)), torch.randn(2, 36, 16)
    H = lambda beta: -(beta * beta.log()).sum(-1).mean()
    wanted = torch.autograd.grad(0.5 * H(LangBridge.weights(tried, x)), list(tried.parameters()))
    tried.entropy = 0.5
    got = torch.autograd.grad(0.0 * tried.train()(x).sum(), list(tried.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, wanted))


def test_the_tries_write_a_table(out):
    done = run("results/tries.py", "--out", out, "--seeds", "0", "--only", "none,varying", "--threads", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    r = json.loads((out / "tries.json").read_text(encoding="utf-8"))
    assert [t["name"] for t in r["tries"]] == ["none", "varying"] and r["tries"][1]["K"] < r["tries"][0]["K"]
    assert all(len(t[llm][split]["vqa"]) == 1 for t in r["tries"] for llm in ("source", "target") for split in ("val", "test"))
    refused = run_here("results/tries.py", "--out", out, "--only", "two-sources")
    assert refused.returncode == 2 and "--full-seeds" in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.parametrize("args, says", [
    (["--seeds", "a"], "as in 0,1,2"),
    (["--steps", "-1"], "--steps -1"),
    (["--corpus", "none"], "sentences"),
    (["--source", "nowhere"], "there is no LLM in"),
])
def test_a_wrong_flag_is_answered_in_one_line(out, args, says):
    refused = run_here("transfer.py", "--out", out, *args)
    assert refused.returncode == 2 and says in refused.stderr and refused.stderr.count("\n") == 1


def test_transfer_before_train_says_what_to_run_first(tmp_path):
    refused = run_here("transfer.py", "--out", tmp_path / "nowhere")
    assert refused.returncode == 2 and "python train.py --out" in refused.stderr and refused.stderr.count("\n") == 1
