"""results/tries.py: a LangBridge with one thing changed, and a table of what that did."""
import pytest
import torch
from conftest import WORDS, assert_refused, make_llm, run_here

from adapter import LangBridge, MLPAdapter
from data.files import read_json
from data.settings import load_settings
from model import load_llm
from results.tries import TRIES, Tried, TriedMLP, job_of, tried_adapter
from train import new_adapter


@pytest.fixture(scope="module")
def llm():
    return make_llm("source", 32)


@pytest.fixture
def x():
    torch.manual_seed(3)
    return torch.randn(2, 36, 16)


def make(kind, **tried):
    torch.manual_seed(0)
    return kind(16, WORDS, 24, **tried)


def test_with_nothing_changed_it_is_a_langbridge(llm, x):
    usual, tried = make(LangBridge).set_basis(*llm), make(Tried).set_basis(*llm)
    assert torch.equal(tried(x), usual(x))


def test_only_the_heaviest_words_are_said(llm, x):
    weights = make(Tried, top=2).set_basis(*llm).weights(x)
    assert ((weights > 0).sum(-1) == 2).all()
    assert torch.allclose(weights.sum(-1), torch.ones(2, 36))


def test_an_mlp_with_nothing_changed_is_an_mlp(x):
    torch.manual_seed(0)
    usual = MLPAdapter(16, 32)
    torch.manual_seed(0)
    assert torch.equal(TriedMLP(16, 32)(x), usual(x))


def test_tokens_of_a_normed_mlp_have_the_size_of_words(llm, x):
    tried = TriedMLP(16, 32, normed=True)
    words = llm[0].embed(torch.arange(10)).norm(dim=-1)
    assert torch.allclose(tried(x).norm(dim=-1), words.mean().expand(2, 36), atol=1e-2)


@pytest.mark.parametrize("name, whitened", [
    ("drawn", True), ("plain", False), ("mlp", False), ("mlp-whitened", True)])
def test_only_what_should_be_is_whitened(out, name, whitened):
    s, llm = load_settings(out), load_llm(out / "llm_source")
    adapter = tried_adapter(s, TRIES[name], *llm)
    bridge = new_adapter(s, "langbridge", *llm)
    assert torch.equal(adapter.scale, bridge.scale) == whitened
    assert torch.equal(adapter.scale, torch.eye(s.vit_D)) != whitened


def test_noise_is_there_in_training_alone(llm, x):
    tried, usual = make(Tried, noise=0.5).set_basis(*llm), make(LangBridge).set_basis(*llm)
    assert not torch.allclose(tried.train()(x), usual(x))
    assert torch.equal(tried.eval()(x), usual(x))


def test_the_entropy_in_the_loss_has_the_gradient_of_the_entropy(llm, x):
    tried = make(Tried, entropy=0.5).set_basis(*llm).train()
    beta = LangBridge.weights(tried, x)
    entropy = -(beta * beta.log()).sum(-1).mean()
    wanted = torch.autograd.grad(0.5 * entropy, list(tried.parameters()))
    tried(x)
    got = torch.autograd.grad(tried.penalty, list(tried.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, wanted))


def test_every_try_changes_what_it_says(out):
    s, seen = load_settings(out), []
    for name in TRIES:
        job = job_of(s, name, 0)
        seen.append(job.stage.settings)
        assert seen.count(job.stage.settings) == 1, name


def test_the_tries_write_a_table(out):
    args = ["results/tries.py", "--out", out, "--seeds", "0", "--only", "none,mlp",
            "--threads", "1"]
    done = run_here(*args)
    assert done.returncode == 0, done.stderr
    r = read_json(out / "tries.json")
    assert [row["name"] for row in r["tries"]] == ["none", "mlp"]
    for row in r["tries"]:
        assert ("target" in row) == (row["name"] == "none")
        for llm in {"source", "target"} & set(row):
            for split in ("val", "test"):
                assert len(row[llm][split]["vqa"]) == 1
    assert "| nothing is drawn |" in done.stdout


def test_both_adapters_are_tuned_in_as_many_ways():
    kinds = [tried.kind for tried in TRIES.values()]
    assert kinds.count("mlp") == kinds.count("langbridge")


def test_an_unknown_try_is_answered_in_one_line(out):
    assert_refused(run_here("results/tries.py", "--out", out, "--only", "nothing"), "mlp-normed")
