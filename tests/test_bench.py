"""results/bench.py: what it measures is what it says, and its rival is a fair one."""
import math
from dataclasses import replace

import pytest
import torch
from conftest import run_here

from model import GPT, GPTConfig
from results import bench
from train import load_settings, size_of


def test_the_rival_is_a_language_model_as_large_as_ours():
    rival, ids = bench.GPT2(GPTConfig(V=512)), torch.randint(512, (4, 50))
    logits = rival.head(rival.hidden(rival.embed(ids)))[:, :-1]  # (4, 49, 512)
    loss = torch.nn.functional.cross_entropy(logits.mT, ids[:, 1:])  # that of the next tokens
    assert loss.item() == pytest.approx(math.log(512), abs=0.1)
    assert 0.85 < size_of(rival) / size_of(GPT(GPTConfig(V=512))) < 1  # head and embedding are one


def test_two_things_and_their_ratio(out, monkeypatch):
    s, asked = load_settings(out), []
    with monkeypatch.context() as patch:
        patch.setattr(bench, "TIMES", 1)
        patch.setattr(bench.subprocess, "run", lambda command, **_: asked.append(command))
        for name, things in {"step": ["ours", "gpt2"], "generate": ["uncached", "cached"],
                             "ask": ["ask", "import_torch"]}.items():
            assert [*bench.BENCHES[name](s)] == [*things, "ratio"]
    run_here("evaluate.py", *asked[0][2:]).check_returncode()


def test_skill_resumes(out, tmp_path, monkeypatch, capsys):
    s = replace(load_settings(out), out=tmp_path, threads=1, save_every=0, llm_source_steps=5)
    monkeypatch.setattr(bench, "RATES", [0.001])
    with monkeypatch.context() as patch, pytest.raises(StopIteration):  # "killed" in step 3
        documents = iter([bench.documents_of(s, bench.new_llm(s)[2], i) for i in range(3)])
        patch.setattr(bench, "documents_of", lambda *_: next(documents))
        bench.bench_skill(s)
    designs = bench.bench_skill(s)["designs"]
    assert "bench/ours: resuming from step 3" in capsys.readouterr().out
    assert [len(design["curve"]) for design in designs.values()] == [6, 16]
    assert {*designs["ours"]} == {"params", "steps", "seconds", "seconds_to_goal", "curve"}
