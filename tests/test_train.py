"""The main job, on the smoke preset: it finishes, goes on after a kill, and answers a user's
mistakes in one line. Before that, the parts that all stages share."""
import io
import math
import os
import random
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn as nn
from conftest import WORDS, assert_refused, make_llm, run_here

import train
from adapter import LangBridge, MLPAdapter, fingerprint, load_adapter
from data.files import COMMIT, Refused, Stage, read_json
from data.run import Job, make_stages, replace_unknown
from evaluate import held_out, load_vlm, open_data, score_line, score_vlm
from model import VLM, load_llm
from train import (STAGES, Muon, Run, Sample, answer_loss, by_length, encode, load_settings,
                   new_adapter, open_stage, optimizers_of, parse_settings, update, word_loss,
                   words_of)
from vision import CLIP, ViTConfig


def smoke(*flags):
    return parse_settings(["--preset", "smoke", "--device", "cpu", "--threads", "2", *flags])


# ---- the steps of a stage ------------------------------------------------------------------------

def tiny_run(folder, at=None, happens=None):
    """A small regression as a stage; in one step something happens to its loss."""
    torch.manual_seed(0)
    s, stage, model = replace(smoke(), save_every=0), Stage(folder, "tiny", {}), nn.Linear(4, 4)
    optimizers = [Muon([model.weight], 0.02), torch.optim.AdamW([model.bias], 0.01)]
    run = Run(s, stage, [model], optimizers, 200)
    for step in run:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x).square().mean()
        if step == at:
            loss = happens(loss)
        loss.backward()
        run.record(loss.item())
        update(optimizers)
    return nn.utils.parameters_to_vector(model.parameters()).tolist(), run.log


@pytest.mark.parametrize("happens, says", [
    (lambda loss: loss + torch.inf, "the loss is inf, the largest gradient 0."),
    (lambda loss: (0 * loss).sqrt(), "the loss is 0.0, the largest gradient nan")])
def test_a_run_stops_at_what_is_no_number_and_resumes_bit_for_bit(tmp_path, capsys, happens, says):
    whole = tiny_run(tmp_path / "whole")
    with pytest.raises(Refused, match=f"tiny: at step 23 .seed 0. {says}.*lower learning rates"):
        tiny_run(tmp_path / "stopped", 23, happens)
    assert tiny_run(tmp_path / "stopped") == whole
    assert "tiny: resuming from step 23\ntiny: step 24 of 200, loss " in capsys.readouterr().out


def test_a_run_learns_and_its_rates_go_up_stay_and_go_down(tmp_path):
    rows = [[float(cell) for cell in row.split(",")] for row in tiny_run(tmp_path)[1]]
    _, losses, _, rates = zip(*(row for row in rows if row[0] in (0, 50, 100, 150, 199)))
    assert losses[-1] < 0.1 * losses[0]
    assert rates == pytest.approx([0.0002, 0.01, 0.01, 0.005, 0.0001])


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_muon_is_that_of_torch(shape):
    ours, theirs = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
    optimizers = Muon([ours], 0.1), torch.optim.Muon([theirs], 0.1, weight_decay=0.0)
    for _ in range(3):
        ours.grad = theirs.grad = torch.randn(shape)
        update(optimizers)
    assert (ours - theirs).norm() < 0.02 * theirs.norm()  # theirs computes in bfloat16


def test_every_parameter_has_one_optimizer_and_muon_has_matrices_of_blocks_alone():
    modules = [make_llm("source", 32)[0], CLIP(ViTConfig(D=16, H=2, layers=1), 300),
               MLPAdapter(16, 32), LangBridge(16, WORDS, 24)]
    muon, adamw = (o.param_groups[0]["params"] for o in optimizers_of(0.01, 0.001, *modules))
    parameters = [p for module in modules for p in module.parameters()]
    assert sorted(map(id, muon + adamw)) == sorted(map(id, parameters))
    assert len(muon) == 4 + 8 and all(p.dim() == 2 and len(p) < 300 for p in muon)


# ---- what is learned -----------------------------------------------------------------------------

def test_the_loss_covers_answers_only_and_does_not_depend_on_parts():
    s, (llm, encoding) = smoke(), make_llm("source", 32)
    vlm, features = VLM(MLPAdapter(16, 32), llm, encoding), torch.randn(6, 36, 16)
    texts = [s.dataset.conversation(i, random.Random(i), turns=1 + i % 3) for i in range(6)]
    samples = [Sample(*encode(encoding, text), i) for i, text in enumerate(texts)]
    guessing = sum(sum(sample.weights) for sample in samples) * math.log(encoding.n_vocab)
    assert answer_loss(s, vlm, samples, features).item() == pytest.approx(guessing, rel=1e-4)
    nn.init.normal_(llm.head.weight)
    expected = 0
    for ids, weights, i in samples:
        logits = llm.head(vlm(features[[i]], torch.tensor([ids]))[0])
        losses = nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="none")
        expected += losses[torch.tensor(weights) == 1].sum().item()
    whole, short, long = (answer_loss(s, vlm, part, features).item()
                          for part in (samples, *by_length(samples)))
    assert [whole, short + long] == pytest.approx([expected, expected], rel=1e-4)


def test_the_word_loss_is_0_for_a_bridge_that_says_the_caption_and_large_for_one_that_does_not():
    llm, encoding = make_llm("source", 32)
    adapter = LangBridge(8, WORDS, 8).set_basis(llm, encoding)
    s, vlm, features = smoke(), VLM(adapter, llm, encoding), torch.zeros(1, 36, 8)
    part = [Sample(*encode(encoding, [("red", 0.0), (" a blue circle.\n", 1.0)], 99), 0)]

    def loss(*words):
        nn.init.zeros_(adapter.W[-1].bias)
        adapter.W[-1].bias.data[[WORDS.index(word) for word in words]] = 50.0
        return word_loss(s, vlm, part, features).item()

    true = b" blue", b" circle"
    assert loss(*true) == pytest.approx(math.log(37 / 36), abs=0.01)
    assert loss(*true, b" red", b" top") == pytest.approx(math.log(74 / 36), abs=0.01)
    assert loss(b" red") > 20


def test_the_words_of_a_bridge_are_those_of_its_own_llm_and_the_most_used_come_first(out):
    s, encoding = load_settings(out), load_llm(out / "llm_source")[1]
    words = words_of(s, encoding)
    assert words[0] == b" ." and len(words) == len({*words} & {*encoding.token_byte_values()}) > 20
    assert words.index(b" the") < words.index(b" circle") < words.index(b" zero")
    assert words_of(replace(s, align_K=16), encoding) == words[:16]


@pytest.mark.parametrize("whiten", [True, False])
def test_a_bridge_reads_whitened_features_unless_told_otherwise(out, whiten):
    s = replace(load_settings(out), align_whiten=whiten)
    scale = new_adapter(s, "langbridge", *make_llm("source", 32)).scale
    assert torch.equal(scale, torch.eye(s.vit_D)) != whiten


def test_all_adapters_meet_the_same_samples_in_the_same_order(out, tmp_path, monkeypatch):
    s, met = replace(load_settings(out), align_steps=3, instruct_steps=3), {}

    def note(s, vlm, part, features):
        met.setdefault(name, []).append(part)
        return answer_loss(s, vlm, part, features)

    monkeypatch.setattr(train, "answer_loss", note)
    monkeypatch.setattr(train, "score_vlm", lambda vlm, features, data: {})
    for name, (make, arguments, _) in STAGES.items():
        if make is train.train_vlm:
            make(s, Stage(tmp_path, name, {}), **arguments)
    for phase, kinds in (("align", 2), ("instruct", 3)):
        first, *others = [parts for name, parts in met.items() if name.endswith(phase)]
        assert others == [first] * (kinds - 1) and first[0] != first[2]


def test_stage_1_trains_the_adapter_alone_and_stage_2_the_llm_too(out):
    untuned = load_llm(out / "llm_source")[0].head.weight
    for kind in ("mlp", "langbridge"):
        before, after = (out / f"{kind}_{phase}" for phase in ("align", "instruct"))
        assert fingerprint(load_adapter(before)) != fingerprint(load_adapter(after))
        assert not (before / "llm.pt").exists()
        assert not torch.equal(load_llm(after)[0].head.weight, untuned)


@pytest.mark.parametrize("name", STAGES)
def test_a_step_of_each_stage_runs_on_a_device_that_is_not_the_cpu(out, monkeypatch, name):
    """'meta' has shapes and no values. A tensor left behind on the CPU fails as on a GPU."""
    def enough(optimizers):
        for optimizer in optimizers:
            optimizer.step()
        raise InterruptedError

    monkeypatch.setattr(torch.Tensor, "item", lambda x: 1.0)  # 'meta' has none
    monkeypatch.setattr(train, "subspace", lambda vlm, features, data: {})
    monkeypatch.setattr(train, "update", enough)
    monkeypatch.setattr(train, "autocast", lambda s: nullcontext())  # nor has it bfloat16
    s = replace(load_settings(out), device="meta")
    make, arguments, _ = STAGES[name]
    with pytest.raises(InterruptedError):
        make(s, open_stage(s, name), **arguments)


# ---- stages side by side -------------------------------------------------------------------------

def note(stage, seconds=0.0):
    """A stage that notes its process, its threads, and when it began and ended."""
    began = time.time()
    time.sleep(seconds)
    stage.finish(noted=[began, time.time(), os.getpid(), torch.get_num_threads()])


def fail(stage):
    raise Refused(f"{stage.name} cannot work")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stage_waits_for_those_it_needs_and_others_do_not(tmp_path, threads):
    stages = [Stage(tmp_path, name, {}) for name in ("first", "second", "other", "bad")]
    first, second, other, bad = stages
    jobs, told = [Job(partial(note, seconds=1.0), first), Job(note, second, ["first"]),
                  Job(note, other), Job(fail, bad, ["second"])], []
    with pytest.raises(Refused, match="bad cannot work"):  # told as if there were no lanes
        make_stages(smoke("--threads", str(threads)), jobs, lambda stage: told.append(stage.name))
    began, ended, pids, used = zip(*(stage.config()["noted"] for stage in stages[:3]))
    assert began[1] >= ended[0]
    if threads == 2:  # each in a process with a thread of its own
        assert ended[2] < ended[0] and told == ["other", "first", "second"]
        assert os.getpid() not in pids and {*used} == {1}
    else:
        assert told == ["first", "second", "other"] and {*pids} == {os.getpid()}


# ---- python train.py -----------------------------------------------------------------------------

def test_the_results_have_every_field(out):
    r = read_json(out / "results.json")
    assert {*r["seconds"]} == {*STAGES, "total"} and r["K"] > 20
    for scores in r["llm"].values():
        assert {"text_qa", "raster_qa", "raster_caption_f1", "params", "val"} <= {*scores}
    assert {"retrieval_top1", "probe_color", "comp_probe_shape", "params", "val"} <= {*r["vit"]}
    vlm = r["vlm"]
    assert {*vlm} == {"mlp", "langbridge", "blind", "majority", "chance"}
    for scores in (*vlm["mlp"].values(), *vlm["langbridge"].values(), vlm["blind"]):
        assert {*scores} == {*vlm["chance"]} >= {*open_data(out).SCORES}
    assert r["commit"] == COMMIT == read_json(out / "vit" / "config.json")["commit"]


@pytest.mark.parametrize("name, groups", [
    ("llm_source", "llm"), ("vit", "vit"), ("mlp_align", "llm vit align"),
    ("blind_instruct", "llm vit align instruct"), ("transfer/blind", "llm vit align instruct")])
def test_every_stage_keeps_the_settings_that_decide_it(name, groups):
    kept, always = open_stage(smoke(), name).settings, "H seed precision pictures test"
    assert {setting.split("_")[0] for setting in kept} == {*groups.split(), *always.split()}
    assert ("llm_target_C" in kept) == ("/" in name)  # only transfer.py builds on both LLMs


def test_running_again_redoes_nothing_and_tells_the_results(out):
    def made():
        results = read_json(out / "results.json")
        del results["seconds"]["total"]
        return results, {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}

    before = made()
    again = run_here("train.py", "--preset", "smoke", "--out", f"{out}/", "--device", "cpu")
    assert again.returncode == 0 and made() == before, again.stderr
    assert score_line("blind ", open_data(out), before[0]["vlm"]["blind"]) in again.stdout


def test_other_settings_in_the_same_folder_are_refused_before_they_are_written(out):
    before = (out / "settings.json").read_bytes()
    done = run_here("train.py", "--preset", "smoke", "--out", out, "--vit_steps", 21)
    assert_refused(done, "vit_steps was 20, now 21")
    assert (out / "settings.json").read_bytes() == before


@pytest.mark.parametrize("args, says", [
    (["--vit_stepz", "3"], "unrecognized arguments: --vit_stepz"),
    (["--preset", "desktop"], "laptop"),
    (["--vit_steps", "many"], "--vit_steps: invalid number from 1 to 1000000 value: 'many'"),
    (["--vit_steps", "0"], "--vit_steps: invalid number from 1 to 1000000 value: '0'"),
    (["--llm_captions", "7"], "--llm_captions: invalid number from 0 to 1 value: '7'"),
    (["--device", "cuda:77"], "--device cpu"),
    (["--stages", "vision"], "llm_source"),
    (["--align_word_loss", "0.5", "--align_coefficients", "linear"], "expected 0 with linear"),
    (["--H", "7"], "--llm_source_C 32: expected a multiple of twice the 7"),
    (["--vit_size", "50"], "6 is best"),
    (["--vit_size", "54", "--vit_patch", "3"], "3, 6, .. or 15 times --vit_patch 3"),
    (["--data", "x.json"], "--data FILE and --images DIR go together"),
    (["--val", "x.json"], "--data FILE and --images DIR go together"),
])
def test_a_wrong_setting_is_answered_in_one_line(tmp_path, args, says):
    new = tmp_path / "new"
    assert_refused(run_here("train.py", "--preset", "smoke", "--out", new, *args), says)
    assert not new.exists()


def test_a_folder_s_name_may_be_no_text_and_a_log_may_lack_letters(tmp_path, monkeypatch):
    log = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.setattr("sys.stdout", log)
    replace_unknown()
    print("赤い caf\udce9", flush=True)
    assert log.buffer.getvalue() == b"?? caf?\n"
    out = tmp_path / os.fsdecode(b"caf\xe9 \xe2\x98\x95")
    done = run_here("train.py", "--preset", "smoke", "--threads", "1", "--out", out, "--stages",
                    "llm_source,vit,mlp_align")
    assert done.returncode == 0 == run_here("evaluate.py", "--out", out).returncode


def test_a_loaded_model_scores_what_the_trained_one_scored(out):
    features, data = held_out(out), open_data(out)
    for name in ("langbridge_align", "langbridge_instruct", "mlp_instruct"):
        scores = read_json(out / name / "config.json")["scores"]
        assert score_vlm(load_vlm(out, name)[1], features, data) == scores
