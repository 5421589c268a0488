"""results/bench.py: what it measures is what it says, and its rival is a fair one."""
import subprocess
import sys

import pytest
import torch
from conftest import assert_refused, make_llm, run_here

from data.corpus import PREFIX, encode
from data.files import read_json
from data.loop import size_of
from data.settings import load_settings
from results import bench
from results.bench import GPT2, RATES, ClippedAdamW, exact_match, new_llm, raster_questions
from train import Sample, parse_settings


def test_exact_match_is_what_greedy_generation_gets_right():
    s = parse_settings(["--preset", "smoke", "--device", "cpu"])
    llm, encoding = make_llm("source", 32)
    torch.manual_seed(0)
    torch.nn.init.normal_(llm.head.weight)
    rows, right, newline = [], 0, encoding.encode_single_token(b"\n")
    for i, document in enumerate(raster_questions(20)):
        asked, answer = encode(encoding, document[:-1])[0], encode(encoding, document[-1:])[0]
        (said,) = llm.generate(llm.embed(torch.tensor([asked])), [newline], max_tokens=4)
        if i % 2:  # let it be the truth
            answer = said
        right += said[:len(answer)] == answer
        rows.append(Sample(asked + answer, [0.0] * len(asked) + [1.0] * len(answer)))
    assert 10 <= right < 20
    assert exact_match(s, llm, rows) == pytest.approx(right / 20)


def test_its_questions_are_about_rasters_of_unread_scenes():
    for document in raster_questions(20):
        body = document[0][0].removeprefix(PREFIX)
        assert body.count("\n") == 6 and len(body.split()) == 36
        assert [weight for _, weight in document] == [0.0, 0.0, 1.0]


def test_the_rival_is_as_large_as_ours_and_clips_its_gradients(out):
    s = load_settings(out)
    ours, _, encoding = new_llm(s)
    rival, (optimizer,), _ = new_llm(s, RATES[0])
    assert isinstance(rival, GPT2) and isinstance(optimizer, ClippedAdamW)
    assert 0.5 < size_of(rival) / size_of(ours) < 1  # one matrix less: its head is its embedding
    rival.head.weight.grad = torch.full_like(rival.head.weight, 100.0)
    optimizer.step()
    assert rival.head.weight.grad.norm() == pytest.approx(1.0, rel=1e-3)


def test_the_benchmark_writes_ratios_and_a_figure(out, monkeypatch):
    really_run, ran = subprocess.run, {}

    def run_once(arguments, **kwargs):  # a second time would show nothing new
        if tuple(arguments) not in ran:
            ran[tuple(arguments)] = really_run(arguments, **kwargs)
        return ran[tuple(arguments)]

    monkeypatch.setattr(subprocess, "run", run_once)
    monkeypatch.setattr(bench, "RATES", RATES[:2])
    monkeypatch.setattr(sys, "argv", ["bench.py", "--out", str(out)])
    bench.main()
    torch.set_num_threads(2)
    r = read_json(out / "bench.json")
    for name in ("step", "generate", "ask"):
        assert r[name]["ratio"] > 0
    designs = r["skill"]["designs"]
    searched = ["ours", *(f"gpt2-{rate}-3x" for rate in RATES[:2])]
    assert list(designs)[:len(searched)] == searched
    assert [name.split("-")[2] for name in list(designs)[len(searched):]] == ["1x", "6x"]
    for of in designs.values():
        assert of["curve"][0][0] == 0 and all(0 <= right <= 1 for _, right in of["curve"])
    assert (out / "bench.png").exists()


def test_an_unknown_benchmark_names_the_known_ones(out):
    assert_refused(run_here("results/bench.py", "--out", out, "--only", "speed"), "step, skill")
