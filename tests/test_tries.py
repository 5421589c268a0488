"""results/tries.py: a LangBridge with one thing changed, and a table of what that did."""
import pytest
import torch
from conftest import WORDS, assert_refused, make_llm, run_here

from adapter import LangBridge
from data.files import read_json
from results.tries import TRIES, Tried, job_of, varying
from train import load_settings


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


def test_a_whitened_basis_is_of_orthogonal_words_of_one_length(llm):
    E = make(Tried, whitened=True).set_basis(*llm).E
    assert torch.allclose(E @ E.T, 32 * torch.eye(6), atol=1e-3)  # an embedding has length sqrt(C)


def test_visual_tokens_of_one_size_are_as_long_as_words(llm, x):
    lengths = make(Tried, same_size=True).set_basis(*llm)(x).norm(dim=-1)
    assert torch.allclose(lengths, torch.full((2, 36), 32 ** 0.5), atol=1e-3)


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


def test_words_that_all_captions_have_are_left_out(out, llm):
    s = load_settings(out)
    chosen = varying([b" .", b" a", b" red", b" circle"], llm[1], s.data)
    assert {b" .", b" red", b" circle"} <= set(chosen) and b" a" not in chosen


def test_every_try_changes_what_it_says(out):
    s, seen = load_settings(out), []
    for name in TRIES:
        job = job_of(s, name, 0)
        seen.append(job.stage.settings)
        assert seen.count(job.stage.settings) == 1, name


def test_the_tries_write_a_table(out):
    args = ["results/tries.py", "--out", out, "--seeds", "0", "--only", "none,varying",
            "--threads", "1"]
    done = run_here(*args)
    assert done.returncode == 0, done.stderr
    r = read_json(out / "tries.json")
    assert [row["name"] for row in r["tries"]] == ["none", "varying"]
    assert r["tries"][1]["K"] < r["tries"][0]["K"]
    for row in r["tries"]:
        for llm in ("source", "target"):
            for split in ("val", "test"):
                assert len(row[llm][split]["vqa"]) == 1
    assert "| nothing is done |" in done.stdout


@pytest.mark.parametrize("names, says", [("two-sources", "--full-seeds"), ("nothing", "centered")])
def test_a_try_that_cannot_be_made_is_answered_in_one_line(out, names, says):
    assert_refused(run_here("results/tries.py", "--out", out, "--only", names), says)
