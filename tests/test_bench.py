"""results/bench.py: what it measures is what it says, and its rival is a fair one."""
import math
from dataclasses import replace

import pytest
import torch

from model import GPT, GPTConfig
from results import bench
from train import load_settings, size_of


def test_the_rival_is_a_language_model_as_large_as_ours():
    rival, ids = bench.GPT2(GPTConfig(V=512)), torch.randint(512, (4, 50))
    logits = rival.head(rival.hidden(rival.embed(ids)))[:, :-1]  # (4, 49, 512)
    loss = torch.nn.functional.cross_entropy(logits.mT, ids[:, 1:])  # that of the next tokens
    assert loss.item() == pytest.approx(math.log(512), abs=0.1)
    assert 0.85 < size_of(rival) / size_of(GPT(GPTConfig(V=512))) < 1  # head and embedding are one


def test_both_are_examined_on_the_way_the_rival_three_times_as_long(out, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RATES", [0.001])
    s = replace(load_settings(out), out=tmp_path, threads=1, llm_source_steps=5)
    assert [len(design["curve"]) for design in bench.bench(s).values()] == [6, 16]
