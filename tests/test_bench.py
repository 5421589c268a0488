"""results/bench.py: what it measures is what it says, and its rival is a fair one."""
import math
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_llm, run_here

from data.files import read_json
from model import GPT, GPTConfig
from results import bench
from train import load_settings, size_of


def test_the_rival_is_a_language_model_as_large_as_ours():
    torch.manual_seed(0)
    rival, ids = bench.GPT2(GPTConfig(V=512)), torch.randint(512, (4, 50))
    logits = rival.head(rival.hidden(rival.embed(ids)))  # (4, 50, 512)
    loss = F.cross_entropy(logits[:, :-1].mT, ids[:, 1:]).item()
    assert loss == pytest.approx(math.log(512), abs=0.1)
    assert 0.85 < size_of(rival) / size_of(GPT(GPTConfig(V=512))) < 1  # head and embedding are one
    sooner = rival.head(rival.hidden(rival.embed(ids[:, :20])))  # (4, 20, 512)
    assert torch.allclose(logits[:, :20], sooner, atol=1e-5)  # no token sees a later one


def test_exact_match_is_what_greedy_generation_gets_right():
    llm, encoding = make_llm("source", 32)
    torch.nn.init.normal_(llm.head.weight)
    samples = bench.raster_questions(encoding, 20)
    for sample in samples[::2]:  # let the LLM be right about these
        start = sample.weights.index(1.0)
        prompt = llm.embed(torch.tensor([sample.ids[:start]]))  # (1, T, C)
        (sample.ids[start:],) = llm.generate(prompt, [], len(sample.ids) - start)
    assert bench.exact_match(llm, samples) == pytest.approx(0.5)


def test_ratios_are_of_seconds(out, tmp_path, monkeypatch):
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(bench, "TIMES", 1)
        patch.setattr(bench.subprocess, "run", lambda command, **_: asked.append(command))
        assert [*bench.bench_generate(load_settings(out))] == ["uncached", "cached", "ratio"]
        assert [*bench.bench_ask(load_settings(out))] == ["ask", "import_torch", "ratio"]
    run_here("evaluate.py", *asked[0][2:]).check_returncode()
    shutil.copy(out / "settings.json", tmp_path)
    run_here("results/bench.py", "--out", tmp_path, "--only", "step").check_returncode()
    step = read_json(tmp_path / "bench.json")["step"]
    assert step["ratio"] == pytest.approx(step["ours"] / step["gpt2"])


def test_skill_resumes(out, tmp_path, monkeypatch, capsys):
    s = replace(load_settings(out), out=tmp_path, threads=1, save_every=0, llm_source_steps=5)
    monkeypatch.setattr(bench, "RATES", [0.001])
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        documents = iter([bench.documents_of(s, bench.new_llm(s)[2], i) for i in range(3)])
        patch.setattr(bench, "documents_of", lambda *_: next(documents))
        bench.bench_skill(s)
    designs = bench.bench_skill(s)["designs"]
    assert "bench/ours: resuming from step 3" in capsys.readouterr().out
    assert [len(of["curve"]) for of in designs.values()] == [6, 16]
    assert {*designs["ours"]} == {"params", "steps", "seconds", "seconds_to_goal", "curve"}
