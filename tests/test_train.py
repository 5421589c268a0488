"""The main job, on the smoke preset: it finishes, goes on after a kill, and answers a user's
mistakes in one line. Before that, the parts that all stages share."""
import contextlib
import json
import math
import os
import random
import subprocess
import time
from dataclasses import fields, replace

import pytest
import torch
import torch.nn as nn
from conftest import ROOT, WORDS, assert_refused, command, make_llm, run_here

import train
from adapter import LangBridge, MLPAdapter, fingerprint, load_adapter
from data.bpe import tokens_of
from data.files import COMMIT, Refused, Stage, read_json, write_json
from data.run import Job, make_stages
from evaluate import held_out, load_vlm, open_data, score_vlm
from model import VLM, load_llm
from train import (PRESETS, STAGES, Muon, Run, Sample, Settings, answer_loss, by_length, encode,
                   load_settings, new_adapter, optimizers_of, orthogonal, pad, parse_settings,
                   update, words_of)
from vision import CLIP, ViTConfig

OF_A_SPLIT = {
    "vqa", "vqa_by_type", "caption_f1", "caption_exact", "pope_acc", "pope_yes_rate"}
SCORES = OF_A_SPLIT | {f"comp_{name}" for name in OF_A_SPLIT} | {"val"}


def smoke(*flags):
    return parse_settings(["--preset", "smoke", "--device", "cpu", "--threads", "2", *flags])


# ---- the steps of a stage ------------------------------------------------------------------------

def tiny_run(folder, until=None, steps=60):
    """A small regression as a stage, ended by an exception after `until` steps."""
    torch.manual_seed(0)
    s, stage = replace(smoke(), save_every=0), Stage(folder, "tiny", {"steps": steps})
    model = nn.Linear(4, 4)
    optimizers = [Muon([model.weight], 0.02), torch.optim.AdamW([model.bias], 0.01)]
    run = Run(s, stage, [model], optimizers, steps)
    for batch in run:
        if batch == until:
            raise InterruptedError
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(batch))
        loss = (model(x) - x).square().mean()
        loss.backward()
        run.record(loss.item())
        update(optimizers)
    return model, run


def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(tmp_path):
    whole, of_whole = tiny_run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        tiny_run(tmp_path / "ended", until=23)
    again, of_again = tiny_run(tmp_path / "ended")
    assert torch.equal(whole.weight, again.weight) and torch.equal(whole.bias, again.bias)
    assert of_whole.log == of_again.log
    logs = [(tmp_path / name / "tiny" / "log.csv").read_text() for name in ("whole", "ended")]
    assert logs[0] == logs[1] and logs[0].startswith("step,loss,smoothed,lr\n0,")


def test_a_run_learns_and_its_rates_go_up_stay_and_go_down(tmp_path):
    _, run = tiny_run(tmp_path, steps=200)
    losses, rates = {row[0]: row[1] for row in run.log}, {row[0]: row[3] for row in run.log}
    assert losses[199] < 0.1 * losses[0]
    assert rates[0] < rates[30] < rates[50] == rates[90] == 0.01 and rates[199] < 0.001


@pytest.mark.parametrize("value, says", [(torch.nan, "the loss is nan"),
                                         (torch.inf, "the largest gradient (nan|inf)")])
def test_what_is_no_number_stops_before_it_reaches_a_weight(tmp_path, value, says):
    model, stage = nn.Linear(2, 2), Stage(tmp_path, "tiny", {})
    optimizers = [torch.optim.SGD(model.parameters(), 0.1)]
    run = Run(smoke(), stage, [model], optimizers, 9)
    with pytest.raises(Refused, match=f"tiny: at step 3 .seed 0. .*{says}.*lower learning rates"):
        for batch in run:
            loss = model(torch.full((2,), value if batch == 3 else 1.0)).square().sum()
            loss.backward()
            run.record(loss.item())
            update(optimizers)
    assert model.weight.isfinite().all()


def test_an_orthogonal_update_has_singular_values_near_one():
    for rows, columns in ((20, 50), (50, 20)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(3, rows, columns)))
        assert (values > 0.5).all() and (values < 1.5).all()


@pytest.mark.parametrize("make", [
    lambda: [make_llm("source", 32)[0]],
    lambda: [CLIP(ViTConfig(D=16, H=2, layers=1), 300)],
    lambda: [MLPAdapter(16, 32)],
    lambda: [LangBridge(16, WORDS, 24), make_llm("source", 32)[0]]])
def test_every_parameter_has_one_optimizer_and_muon_has_matrices_alone(make):
    modules = make()
    muon, adamw = optimizers_of(0.01, 0.001, *modules)
    of_muon, of_adamw = (o.param_groups[0]["params"] for o in (muon, adamw))
    parameters = [p for module in modules for p in module.parameters()]
    assert sorted(map(id, of_muon + of_adamw)) == sorted(map(id, parameters))
    assert of_muon and all(p.dim() == 2 for p in of_muon)


# ---- what is learned -----------------------------------------------------------------------------

def loss_of(vlm, features, texts):
    samples = [Sample(*encode(vlm.encoding, text), i) for i, text in enumerate(texts)]
    weight = sum(sum(sample.weights) for sample in samples)
    return [answer_loss(smoke(), vlm, part, features).item() / weight
            for part in (samples, *by_length(samples))]


def test_the_loss_covers_answers_only_and_does_not_depend_on_parts():
    llm, encoding = make_llm("source", 32)
    vlm, features = VLM(MLPAdapter(16, 32), llm, encoding), torch.randn(6, 36, 16)
    texts = [smoke().dataset.conversation(i, random.Random(i), turns=1 + i % 3) for i in range(6)]
    whole, short, long = loss_of(vlm, features, texts)
    assert whole == pytest.approx(math.log(encoding.n_vocab), abs=1e-3)  # that of guessing
    nn.init.normal_(llm.head.weight)
    whole, short, long = loss_of(vlm, features, texts)
    assert whole == pytest.approx(short + long, abs=1e-4)
    with torch.no_grad():  # what the head says of the questions does not matter
        asked = {i for text, weight in sum(texts, []) if not weight for i in encoding.encode(text)}
        answers = {i for text, weight in sum(texts, []) if weight for i in encoding.encode(text)}
        llm.head.weight[sorted(asked - answers)] -= 1e-3 * llm.head.weight[sorted(asked - answers)]
    assert loss_of(vlm, features, texts)[0] == pytest.approx(whole, abs=0.1)
    assert pad([[1, 2, 3], [4]], torch.long).tolist() == [[1, 2, 3], [4, 0, 0]]


def test_the_words_of_a_bridge_are_those_of_its_own_llm_and_the_most_used_come_first(out):
    s, encoding = load_settings(out), load_llm(out / "llm_source")[1]
    words = words_of(s, encoding)
    assert words[0] == b" ." and len(words) == len(set(words)) > 20
    assert set(words) <= set(encoding.token_byte_values())
    assert {b" red", b" circle", b" top"} <= set(words)
    assert words_of(replace(s, align_K=16), encoding) == words[:16]
    more = words_of(replace(s, align_K=1000), encoding)
    assert more[:len(words)] == words and set(more) == set(tokens_of(encoding))


def test_an_adapter_is_the_same_again_with_the_same_seed(out):
    s, (llm, encoding) = load_settings(out), make_llm("source", 32)
    for kind in ("mlp", "langbridge"):
        a, b = (new_adapter(s, kind, llm, encoding).state_dict() for _ in range(2))
        assert all(torch.equal(a[name], b[name]) for name in a)
        other = new_adapter(replace(s, seed=1), kind, llm, encoding).state_dict()
        assert not all(torch.equal(a[name], other[name]) for name in a)
    plain = new_adapter(replace(s, align_whiten=False), "langbridge", llm, encoding)
    assert torch.equal(plain.scale, torch.eye(s.vit_D))


def test_all_adapters_meet_the_same_samples_in_the_same_order(out, tmp_path, monkeypatch):
    met = {}

    def note(s, vlm, part, features):
        met.setdefault(type(vlm.adapter).__name__, []).append(part)
        return answer_loss(s, vlm, part, features)

    monkeypatch.setattr(train, "answer_loss", note)
    monkeypatch.setattr(train, "score_vlm", lambda vlm, features, data: {})
    s = replace(load_settings(out), align_steps=3, instruct_steps=3)
    for phase, kinds in (("align", ["mlp", "langbridge"]),
                         ("instruct", ["mlp", "langbridge", "blind"])):
        met.clear()
        for kind in kinds:
            train.train_vlm(s, Stage(tmp_path, f"{kind}_{phase}", {}), kind, phase)
        first, *others = met.values()
        assert len(first) == 6 and first[0] != first[2]
        assert len(met) == len(kinds) and all(other == first for other in others)


def test_stage_1_trains_the_adapter_alone_and_stage_2_the_llm_too_and_samples_no_words(out):
    for kind in ("mlp", "langbridge"):
        before, after = (load_adapter(out / f"{kind}_{phase}") for phase in ("align", "instruct"))
        assert fingerprint(before) != fingerprint(after)
        assert not (out / f"{kind}_align" / "llm.pt").exists()
    assert before.sampled == 0.25 and after.sampled == 0.0
    (base, _), (tuned, _) = [load_llm(out / name) for name in ("llm_source", "langbridge_instruct")]
    assert not torch.equal(base.head.weight, tuned.head.weight)


@pytest.mark.parametrize("name", STAGES)
def test_a_step_of_each_stage_runs_on_a_device_that_is_not_the_cpu(out, monkeypatch, name):
    """'meta' has shapes and no values. A tensor left behind on the CPU fails as on a GPU."""
    class Enough(Exception):
        pass

    def enough(optimizers):
        for optimizer in optimizers:
            optimizer.step()
        raise Enough

    monkeypatch.setattr(torch.Tensor, "item", lambda x: 1.0)  # 'meta' has none
    monkeypatch.setattr(train, "update", enough)
    monkeypatch.setattr(train, "autocast", lambda s: contextlib.nullcontext())
    s, (make, arguments, _) = replace(load_settings(out), device="meta"), STAGES[name]
    arguments = {key: value for key, value in arguments.items() if key != "study"}
    with pytest.raises(Enough):
        make(s, train.open_stage(s, name), **arguments)


# ---- stages side by side -------------------------------------------------------------------------

def note(s, stage, seconds=0.0):
    """A stage that notes its process, its threads, and when it began and ended."""
    began = time.time()
    time.sleep(seconds)
    stage.finish(process=[os.getpid(), torch.get_num_threads()], times=[began, time.time()])


def fail(s, stage):
    raise Refused(f"{stage.name} cannot work")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stage_waits_for_those_it_needs_and_others_do_not(tmp_path, threads):
    s, told = smoke("--threads", str(threads)), []
    first, second, other = (Stage(tmp_path, name, {}) for name in ("first", "second", "other"))
    make_stages(s, [Job(note, first, {"seconds": 1.0}), Job(note, second, {}, ["first"]),
                    Job(note, other)], lambda stage: told.append(stage.name))
    times = {stage.name: stage.config()["times"] for stage in (first, second, other)}
    assert times["second"][0] >= times["first"][1]
    pids = {stage.config()["process"][0] for stage in (first, second, other)}
    if threads == 2:  # each in a process with a thread of its own
        assert times["other"][1] < times["first"][1]
        assert told == ["other", "first", "second"]
        assert os.getpid() not in pids and first.config()["process"][1] == 1
    else:
        assert told == ["first", "second", "other"] and pids == {os.getpid()}


def test_a_mistake_in_a_lane_is_told_as_anywhere(tmp_path):
    with pytest.raises(Refused, match="b cannot work"):
        make_stages(smoke(), [Job(fail, Stage(tmp_path, "b", {}))], print)


# ---- python train.py -----------------------------------------------------------------------------

def test_the_results_have_every_field(out):
    r = read_json(out / "results.json")
    assert set(r["seconds"]) == {*STAGES, "total"}
    reading = {"text_qa", "raster_qa", "raster_caption_f1", "text_qa_by_type", "raster_qa_by_type"}
    for llm in ("source", "target"):
        assert set(r["llm"][llm]) == reading | {"params", "vocab", "val"}
        assert set(r["llm"][llm]["val"]) == reading
    seeing = {"retrieval_top1", "probe_color", "probe_shape"}
    assert set(r["vit"]) == seeing | {"comp_probe_color", "comp_probe_shape", "params", "val"}
    assert r["K"] >= r["shared_vocab"] > 20
    scores = [r["vlm"]["blind"], r["vlm"]["majority"], r["vlm"]["chance"]]
    for kind in ("mlp", "langbridge"):
        scores += [r["vlm"][kind]["align"], r["vlm"][kind]["instruct"]]
    assert all(set(S) == SCORES and set(S["val"]) == OF_A_SPLIT for S in scores)
    assert r["commit"] == COMMIT == read_json(out / "vit" / "config.json")["commit"]
    assert (out / "samples.png").exists()


def test_every_stage_keeps_the_settings_that_decide_it(out):
    of = {name: read_json(out / name / "config.json")["settings"] for name in STAGES}
    assert all("precision" in settings and "seed" in settings for settings in of.values())
    assert "vit_H" in of["vit"] and "vit_H" in of["mlp_align"] and "vit_H" not in of["llm_source"]
    assert "align_sampled" in of["langbridge_align"] and "align_sampled" not in of["vit"]
    assert "llm_source_C" in of["llm_source"] and "llm_target_C" not in of["llm_source"]


def test_running_again_redoes_nothing(out):
    def when():
        return {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}

    before, results = when(), read_json(out / "results.json")
    again = run_here("train.py", "--preset", "smoke", "--out", f"{out}/", "--device", "cpu")
    assert again.returncode == 0, again.stderr
    assert len(before) > 10 and before == when()
    for r in (found := [results, read_json(out / "results.json")]):
        del r["seconds"]["total"]
    assert found[0] == found[1]


def test_lanes_end_when_the_command_is_killed(tmp_path):
    process = subprocess.Popen(
        command("train.py", "--preset", "smoke", "--llm_source_steps", "5000",
                "--llm_target_steps", "5000", "--out", tmp_path / "out", "--save_every", "0",
                "--threads", "2", "--device", "cpu"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
    while not (tmp_path / "out" / "llm_source" / "state.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=20)  # its output ends once the last process that writes it has


@pytest.mark.parametrize("flag, value, says", [
    ("--vit_steps", "21", "vit_steps was 20, now 21"),
    ("--precision", "bf16", "precision was fp32, now bf16"),
    ("--seed", "1", "seed was 0, now 1"),
])
def test_other_settings_in_the_same_folder_are_refused(out, flag, value, says):
    assert_refused(run_here("train.py", "--preset", "smoke", "--out", out, flag, value), says)


def test_the_smallest_run_works_in_the_bfloat16_of_a_gpu_and_tells_the_first_model_first(tmp_path):
    few = [flag for stage in ("llm_source", "llm_target", "vit", "align", "instruct")
           for flag in (f"--{stage}_steps", "3")]
    done = run_here("train.py", "--preset", "smoke", "--precision", "bf16", *few, "--pictures",
                    "24", "--test_pictures", "20", "--align_K", "3", "--llm_source_V", "300",
                    "--threads", "1", "--device", "cpu", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "out" / "results.json")["vlm"]["mlp"]["instruct"]["vqa"] >= 0
    told = done.stdout
    assert told.index("\nlangbridge_instruct: vqa") < told.index("query the first model")
    assert told.index("query the first model") < told.index("\nllm_target: text_qa")
    done = run_here("evaluate.py", "--out", tmp_path / "out", "--model", "mlp_align")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("args, says", [
    (["--vit_stepz", "3"], "did you mean --vit_steps?"),
    (["--preset", "desktop"], "laptop"),
    (["--vit_steps", "many"], "invalid int value: 'many'"),
    (["--vit_steps", "0"], "--vit_steps 0: expected 1 to 1000000"),
    (["--llm_lr", "-1"], "--llm_lr -1.0: expected 0 or more"),
    (["--llm_lr", "nan"], "--llm_lr nan: expected 0 or more"),
    (["--llm_captions", "7"], "--llm_captions 7.0: expected a share"),
    (["--device", "cuda:77"], "--device cpu"),
    (["--threads", "-2"], "--threads -2: expected 0 to 1024"),
    (["--test_pictures", "3"], "--test_pictures 3: expected 20 to 1000000"),
    (["--llm_source_V", "200"], "--llm_source_V 200: expected 300 to 1000000"),
    (["--align_coefficients", "sigmoid"], "softmax"),
    (["--align_coefficients", "linear"], "--align_sampled 0.25: expected 0"),
    (["--llm_source_tokenizer", "gpt5"], "cl100k_base"),
    (["--stages", "vision"], "llm_source"),
    (["--llm_H", "7"], "a multiple of twice the 7 heads"),
    (["--vit_size", "50"], "6 x 6"),
    (["--vit_size", "306", "--vit_patch", "6"], "3, 6, .. or 15 patches"),
    (["--data", "x.json"], "--data FILE and --images DIR go together"),
    (["--val", "x.json"], "--data FILE and --images DIR go together"),
])
def test_a_wrong_setting_is_answered_in_one_line(tmp_path, args, says):
    assert_refused(run_here("train.py", "--out", tmp_path / "new", *args), says)
    assert not (tmp_path / "new").exists()


def test_a_stage_without_those_before_it_says_what_makes_them(tmp_path):
    done = run_here("train.py", "--preset", "smoke", "--out", tmp_path / "new",
                    "--stages", "mlp_align")
    assert_refused(done, "python train.py --out")


def test_a_flag_beats_the_preset_and_the_preset_beats_the_default():
    s = smoke("--vit_steps", "7", "--no-align_whiten")
    assert (s.vit_steps, s.vit_D, s.vit_patch) == (7, PRESETS["smoke"]["vit_D"], Settings.vit_patch)
    assert not s.align_whiten and Settings.align_whiten and s.precision == "fp32"


def test_help_explains_every_setting():
    told = run_here("train.py", "--help").stdout
    for f in fields(Settings):
        assert f"--{f.name}" in told and f.metadata["help"].split()[0] in told


def test_a_loaded_model_scores_what_the_trained_one_scored(out):
    features, data = held_out(out), open_data(out)
    for name in ("langbridge_align", "langbridge_instruct", "mlp_instruct"):
        scores = json.loads((out / name / "config.json").read_text(encoding="utf-8"))["scores"]
        assert score_vlm(load_vlm(out, name)[1], features, data) == scores
