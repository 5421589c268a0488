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
from data.files import COMMIT, Refused, Stage, read_json, read_tensors, write_json, write_tensors
from data.forecast import counted
from data.loop import Loop, Muon, compile_blocks, optimizers, orthogonal
from data.run import Job, lanes
from data.settings import PRESETS, Settings, load_settings
from evaluate import held_out, load_vlm, open_data, score_vlm
from model import VLM, load_llm
from train import (
    STAGES, new_adapter, on_paper, pad, parse_settings, picture_losses, words_of)
from vision import CLIP, ViTConfig

OF_A_SPLIT = {
    "vqa", "vqa_by_type", "caption_f1", "caption_exact", "pope_acc", "pope_yes_rate"}
SCORES = OF_A_SPLIT | {f"comp_{name}" for name in OF_A_SPLIT} | {"val"}


def smoke(*flags):
    return parse_settings(["--preset", "smoke", "--device", "cpu", "--threads", "2", *flags])


# ---- a stage's folder ----------------------------------------------------------------------------

def test_a_stage_is_finished_once_its_config_is_written(tmp_path):
    stage = Stage(tmp_path, "a_stage", {"lr": 0.1})
    stage.folder.mkdir()
    assert stage.config() is None
    stage.save_state(step=3)
    stage.finish(vqa=0.5)
    assert stage.config()["vqa"] == 0.5
    assert not list(stage.folder.glob("state*"))


def test_a_finished_stage_of_other_settings_is_refused_and_says_what_differs(tmp_path):
    stage = Stage(tmp_path, "a_stage", {"lr": 0.1, "steps": 3})
    stage.folder.mkdir()
    stage.finish()
    with pytest.raises(Refused, match="lr was 0.1, now 0.2"):
        Stage(tmp_path, "a_stage", {"lr": 0.2, "steps": 3}).config()
    with pytest.raises(Refused, match="steps was 3, now None"):
        Stage(tmp_path, "a_stage", {"lr": 0.1}).config()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    stage = Stage(tmp_path, "a_stage", {"lr": 0.1})
    stage.folder.mkdir()
    stage.save_state(step=3)
    with pytest.raises(Refused, match="lr was 0.1, now 0.2"):
        Stage(tmp_path, "a_stage", {"lr": 0.2}).load_state("cpu")


@pytest.mark.parametrize("name, read", [("x.json", read_json), ("x.pt", read_tensors)])
def test_a_damaged_file_is_named(tmp_path, name, read):
    (tmp_path / name).write_bytes(b"{half of it")
    with pytest.raises(Refused, match=f"cannot read .*{name}"):
        read(tmp_path / name)


def test_a_file_that_cannot_be_written_leaves_the_old_one_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    write_tensors(path, {"w": torch.ones(3)})

    def half(data, aside):
        aside.write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(Refused, match="weights.pt.*No space left on device.*to continue"):
        write_tensors(path, {"w": torch.zeros(3)})
    assert torch.equal(read_tensors(path)["w"], torch.ones(3))


# ---- the loop ------------------------------------------------------------------------------------

class Interrupted(Exception):
    pass


def tiny_loop(folder, until=None, steps=60, **measuring):
    """A small regression as a stage, ended by an exception after `until` steps."""
    torch.manual_seed(0)
    s, stage = replace(smoke(), save_every=0), Stage(folder, "tiny", {"steps": steps})
    model = nn.Linear(4, 4)
    adamw = torch.optim.AdamW([model.bias], 0.01)
    loop = Loop(s, stage, [model], [Muon([model.weight], 0.02), adamw], steps, **measuring)
    for step in loop:
        if step == until:
            raise Interrupted
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loop.update([(model(x) - x).square().mean()])
    return model, loop


def test_a_loop_that_was_interrupted_ends_as_if_it_had_not_been(tmp_path):
    whole, of_whole = tiny_loop(tmp_path / "whole")
    with pytest.raises(Interrupted):
        tiny_loop(tmp_path / "ended", until=23)
    again, of_again = tiny_loop(tmp_path / "ended")
    assert torch.equal(whole.weight, again.weight) and torch.equal(whole.bias, again.bias)
    assert of_whole.log == of_again.log
    logs = [(tmp_path / name / "tiny" / "log.csv").read_text() for name in ("whole", "ended")]
    assert logs[0] == logs[1] and logs[0].startswith("step,loss,smoothed,lr\n0,")


def test_a_loop_learns_and_its_rates_go_up_stay_and_go_down(tmp_path):
    _, loop = tiny_loop(tmp_path, steps=200)
    losses, rates = [row[1] for row in loop.log], [row[3] for row in loop.log]
    assert losses[-1] < 0.1 * losses[0]
    assert rates[0] < rates[5] == max(rates) == 0.01  # 50 steps of warmup, one row in ten steps
    assert rates[9] == 0.01 and rates[-1] < 0.001


def test_what_is_measured_on_the_way_is_noted(tmp_path):
    _, loop = tiny_loop(tmp_path, measure=lambda: "seen", measure_at={0, 7, 60})
    assert loop.measured == [[0, "seen"], [7, "seen"], [60, "seen"]]


# ---- the optimisers ------------------------------------------------------------------------------

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
    muon, adamw = optimizers(0.01, 0.001, *modules)
    of_muon, of_adamw = (o.param_groups[0]["params"] for o in (muon, adamw))
    parameters = [p for module in modules for p in module.parameters()]
    assert sorted(map(id, of_muon + of_adamw)) == sorted(map(id, parameters))
    assert of_muon and all(p.dim() == 2 for p in of_muon)


def test_all_hidden_matrices_of_an_llm_are_muons_and_no_embedding_is():
    llm, _ = make_llm("source", 32)
    names = {id(p): name for name, p in llm.named_parameters()}
    of_muon = {names[id(p)] for p in llm.hidden_matrices()}
    assert of_muon == {f"blocks.0.{name}.weight" for name in
                       ("attention.qkv", "attention.out", "mlp.up", "mlp.down")}


# ---- what the stages are made of -----------------------------------------------------------------

def test_rows_are_padded_with_zeros():
    padded = pad([[1, 2, 3], [4]], torch.long)
    assert padded.tolist() == [[1, 2, 3], [4, 0, 0]]


def test_the_loss_of_a_batch_does_not_depend_on_its_parts():
    llm, encoding = make_llm("source", 32)
    vlm, features = VLM(MLPAdapter(16, 32), llm, encoding), torch.randn(6, 36, 16)
    nn.init.normal_(llm.head.weight)
    texts = [smoke().data.conversation(i, random.Random(i), turns=1 + i % 3) for i in range(6)]
    losses = [sum(picture_losses(smoke("--parts", parts), vlm, features, range(6), texts)).item()
              for parts in ("1", "2", "6")]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-4)


def test_the_first_loss_about_pictures_is_that_of_guessing():
    llm, encoding = make_llm("source", 32)
    vlm, texts = VLM(MLPAdapter(16, 32), llm, encoding), [smoke().data.conversation(
        0, random.Random(0), turns=3)]
    loss = sum(picture_losses(smoke(), vlm, torch.randn(1, 36, 16), [0], texts))
    assert loss.item() == pytest.approx(math.log(encoding.n_vocab), abs=1e-3)


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


def test_all_adapters_meet_the_same_samples_in_the_same_order(out, tmp_path, monkeypatch):
    met, picture_losses = {}, train.picture_losses

    def note(s, vlm, features, pictures, texts):
        met.setdefault(type(vlm.adapter).__name__, []).append((pictures, texts))
        return picture_losses(s, vlm, features, pictures, texts)

    monkeypatch.setattr(train, "picture_losses", note)
    s = replace(load_settings(out), align_steps=3, instruct_steps=3)
    for make, kinds in ((train.align, ["mlp", "langbridge"]),
                        (train.instruct, ["mlp", "langbridge", "blind"])):
        met.clear()
        for kind in kinds:
            make(s, Stage(tmp_path, f"{kind}_{make.__name__}", {}), kind)
        first, *others = met.values()
        assert len(first) == 3 and first[0] != first[1]
        assert len(met) == len(kinds) and all(other == first for other in others)


def test_stage_2_trains_the_adapter_and_the_llm_and_samples_no_words(out):
    for kind in ("mlp", "langbridge"):
        before, after = (load_adapter(out / f"{kind}_{phase}") for phase in ("align", "instruct"))
        assert fingerprint(before) != fingerprint(after)
    assert before.drawn == 0.25 and after.drawn == 0.0
    llms = [load_llm(out / name) for name in ("llm_source", "langbridge_instruct")]
    (base, _), (tuned, _) = llms
    assert not torch.equal(base.head.weight, tuned.head.weight)


def test_tokens_outside_answers_weigh_what_the_setting_says(tmp_path):
    logs = []
    for weight in ("0.1", "0"):
        out = tmp_path / weight
        run_here("train.py", "--preset", "smoke", "--stages", "llm_source", "--out", out,
                 "--llm_source_steps", "2", "--llm_text_weight", weight, "--threads", "1")
        logs.append((out / "llm_source" / "log.csv").read_text(encoding="utf-8"))
    assert logs[0] != logs[1]


@pytest.mark.parametrize("name", STAGES)
def test_a_step_of_each_stage_runs_on_a_device_that_is_not_the_cpu(out, monkeypatch, name):
    """'meta' has shapes and no values. A tensor left behind on the CPU fails as on a GPU."""
    class Enough(Exception):
        pass

    def update(loop, losses):
        for loss in losses:
            assert loss.device.type == "meta"
            loss.backward()
        for optimizer in loop.optimizers:
            optimizer.step()
        raise Enough

    monkeypatch.setattr(Loop, "update", update)
    monkeypatch.setattr(train, "autocast", lambda s: contextlib.nullcontext())
    s, (make, arguments, _) = replace(load_settings(out), device="meta"), STAGES[name]
    without_study = {key: value for key, value in arguments.items() if key != "study"}
    with pytest.raises(Enough):
        make(s, train.open_stage(s, name), **without_study)


def test_a_tensor_left_on_the_cpu_is_noticed_there():
    clip = CLIP(ViTConfig(D=16, H=2, layers=1), 300).to("meta")
    pictures = torch.zeros(2, 48, 48, 3, dtype=torch.uint8)
    ids = torch.zeros(2, 3, dtype=torch.long)
    mask = torch.ones(2, 3, dtype=torch.bool)
    clip.loss(pictures.to("meta"), ids.to("meta"), mask.to("meta"))
    with pytest.raises(RuntimeError, match="device"):
        clip.loss(pictures.to("meta"), ids.to("meta"), mask)


# ---- stages side by side -------------------------------------------------------------------------

def write_pid(s, stage):
    """A stage that notes its process, and how many threads it has."""
    stage.folder.mkdir(parents=True)
    write_json(stage.folder / "pid.json", [os.getpid(), torch.get_num_threads()])
    stage.finish(seconds=0.0, scores={})


def write_times(s, stage, seconds):
    """A stage that notes when it began and when it ended."""
    began = time.time()
    time.sleep(seconds)
    stage.folder.mkdir(parents=True)
    stage.finish(seconds=seconds, scores={}, times=[began, time.time()])


def fail(s, stage):
    raise Refused(f"{stage.name} cannot work")


def jobs_of(make, s, folder, names):
    return [Job(make, s, Stage(folder, name, {})) for name in names]


def test_stages_side_by_side_have_a_process_and_one_thread_each(tmp_path):
    s = smoke()
    with lanes(s, most=3) as do:
        do(jobs_of(write_pid, s, tmp_path, ["a", "b", "c", "d"]))
    said = [read_json(tmp_path / name / "pid.json") for name in ("a", "b", "c", "d")]
    assert os.getpid() not in [pid for pid, _ in said]
    assert [threads for _, threads in said] == [1, 1, 1, 1]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stage_waits_for_those_it_needs_and_others_do_not(tmp_path, threads):
    s, said = smoke("--threads", str(threads)), []
    first, second, other = (Stage(tmp_path, name, {}) for name in ("first", "second", "other"))
    jobs = [Job(write_times, s, first, {"seconds": 0.5}),
            Job(write_times, s, second, {"seconds": 0.0}, [first]),
            Job(write_times, s, other, {"seconds": 0.0})]
    with lanes(s, most=2, say=lambda job: said.append(job.stage.name)) as do:
        do(jobs)
    times = {stage.name: stage.config()["times"] for stage in (first, second, other)}
    assert times["second"][0] >= times["first"][1]
    if threads == 2:
        assert times["other"][1] < times["first"][1]
        assert said == ["other", "first", "second"]
    else:
        assert said == ["first", "second", "other"]


def test_a_mistake_in_a_lane_is_told_as_anywhere(tmp_path):
    s = smoke()
    with pytest.raises(Refused, match="b cannot work"):
        with lanes(s, most=2) as do:
            do(jobs_of(fail, s, tmp_path, ["b"]))


def test_an_accelerator_or_one_thread_makes_one_stage_at_a_time(tmp_path):
    for name, s in (("a", smoke("--threads", "1")), ("b", replace(smoke(), device="cuda"))):
        with lanes(s, most=3) as do:
            do(jobs_of(write_pid, s, tmp_path, [name]))
        assert read_json(tmp_path / name / "pid.json")[0] == os.getpid()


# ---- python train.py -----------------------------------------------------------------------------

def test_the_results_have_every_field(out):
    r = read_json(out / "results.json")
    assert set(r["seconds"]) == {
        "data", "llm_source", "llm_target", "vit", "align", "instruct", "total"}
    reading = {"text_qa", "raster_qa", "raster_caption_f1", "text_qa_by_type", "raster_qa_by_type"}
    for llm in ("source", "target"):
        assert set(r["llm"][llm]) == reading | {"params", "vocab", "val"}
        assert set(r["llm"][llm]["val"]) == reading
    seeing = {"retrieval_top1", "probe_color", "probe_shape"}
    assert set(r["vit"]) == seeing | {"comp_probe_color", "comp_probe_shape", "params", "val"}
    assert set(r["vit"]["val"]) == seeing
    assert r["K"] >= r["shared_vocab"] > 20
    scores = [r["vlm"]["blind"], r["vlm"]["majority"], r["vlm"]["chance"]]
    for kind in ("mlp", "langbridge"):
        scores += [r["vlm"][kind]["align"], r["vlm"][kind]["instruct"]]
    assert all(set(S) == SCORES and set(S["val"]) == OF_A_SPLIT for S in scores)
    assert (out / "samples.png").exists()


def test_every_stage_keeps_the_settings_that_decide_it(out):
    of = {name: read_json(out / name / "config.json")["settings"] for name in STAGES}
    assert all("precision" in settings and "seed" in settings for settings in of.values())
    assert "vit_H" in of["vit"] and "vit_H" in of["mlp_align"] and "vit_H" not in of["llm_source"]
    assert "align_drawn" in of["langbridge_align"] and "align_drawn" not in of["vit"]
    assert "llm_source_C" in of["llm_source"] and "llm_target_C" not in of["llm_source"]


def test_running_again_redoes_nothing(out):
    def when():
        return {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}

    before, results = when(), read_json(out / "results.json")
    again = run_here("train.py", "--preset", "smoke", "--out", out, "--device", "cpu")
    assert again.returncode == 0, again.stderr
    assert len(before) > 10 and before == when()
    assert read_json(out / "results.json") == results


def test_lanes_end_when_the_command_is_killed(tmp_path):
    process = subprocess.Popen(
        command("train.py", "--preset", "smoke", "--llm_source_steps", "5000",
                "--llm_target_steps", "5000", "--out", tmp_path / "out", "--save_every", "0",
                "--threads", "2", "--device", "cpu"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
    while not list((tmp_path / "out" / "llm_source").glob("state-*.pt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=20)  # its output ends once the last process that writes it has


@pytest.mark.parametrize("flag, value, says", [
    ("--vit_steps", "21", "vit_steps was 20, now 21"),
    ("--vit_H", "8", "vit_H was 4, now 8"),
    ("--precision", "bf16", "precision was fp32, now bf16"),
    ("--pictures", "65", "pictures was 64, now 65"),
    ("--seed", "1", "seed was 0, now 1"),
])
def test_other_settings_in_the_same_folder_are_refused(out, flag, value, says):
    assert_refused(run_here("train.py", "--preset", "smoke", "--out", out, flag, value), says)


def test_the_recipe_runs_in_the_bfloat16_of_a_gpu(tmp_path):
    done = run_here(
        "train.py", "--preset", "smoke", "--precision", "bf16", "--llm_source_steps", "3",
        "--llm_target_steps", "3", "--vit_steps", "3", "--align_steps", "3", "--instruct_steps",
        "3", "--pictures", "24", "--test_pictures", "20", "--threads", "1", "--device", "cpu",
        "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "out" / "results.json")["vlm"]["mlp"]["instruct"]["vqa"] >= 0


@pytest.mark.parametrize("args, says", [
    (["--vit_stepz", "3"], "did you mean --vit_steps?"),
    (["--preset", "desktop"], "laptop"),
    (["--vit_steps", "many"], "invalid int value: 'many'"),
    (["--vit_steps", "0"], "--vit_steps 0: expected 1 to 1000000"),
    (["--llm_lr", "-1"], "--llm_lr -1.0: expected 0 or more"),
    (["--llm_lr", "nan"], "--llm_lr nan: expected 0 or more"),
    (["--llm_captions", "7"], "--llm_captions 7.0: expected a share"),
    (["--device", "meta"], "--device cpu"),
    (["--threads", "-2"], "--threads -2: expected 0 to 1024"),
    (["--test_pictures", "3"], "--test_pictures 3: expected 20 to 1000000"),
    (["--llm_source_V", "200"], "--llm_source_V 200: expected 300 to 1000000"),
    (["--align_coefficients", "sigmoid"], "softmax"),
    (["--align_coefficients", "relu"], "--align_drawn 0.25: expected 0"),
    (["--align_basis", "whitened"], "centered"),
    (["--device", "cuda:77"], "--device cpu"),
    (["--stages", "vision"], "llm_source"),
    (["--llm_H", "7"], "a multiple of twice the 7 heads"),
    (["--vit_size", "50"], "6 x 6"),
    (["--vit_patch", "12"], "6 x 6"),
])
def test_a_wrong_setting_is_answered_in_one_line(tmp_path, args, says):
    assert_refused(run_here("train.py", "--out", tmp_path / "new", *args), says)
    assert not (tmp_path / "new").exists()


def test_a_stage_without_those_before_it_says_what_makes_them(tmp_path):
    done = run_here("train.py", "--preset", "smoke", "--out", tmp_path / "new",
                    "--stages", "mlp_align")
    assert_refused(done, "python train.py --out")


def test_every_preset_passes_the_check():
    for preset in PRESETS:
        s = parse_settings(["--preset", preset, "--device", "cpu"])
        assert s.preset == preset and s.precision == "fp32"


def test_a_flag_beats_the_preset_and_the_preset_beats_the_default():
    s = smoke("--vit_steps", "7")
    assert (s.vit_steps, s.vit_D, s.vit_patch) == (7, PRESETS["smoke"]["vit_D"], Settings.vit_patch)


def test_help_explains_every_setting():
    said = run_here("train.py", "--help").stdout
    for f in fields(Settings):
        assert f"--{f.metadata['flag'] or f.name}" in said
        assert f.metadata["help"].split()[0] in said


def test_the_smallest_vocabularies_can_be_trained_and_examined(tmp_path):
    args = ["--out", tmp_path / "out", "--threads", "1", "--device", "cpu"]
    done = run_here("train.py", "--preset", "smoke", "--llm_source_steps", "2",
                    "--llm_target_steps", "2", "--vit_steps", "2", "--align_steps", "2",
                    "--instruct_steps", "2", "--test_pictures", "20", "--align_K", "3",
                    "--llm_source_V", "300", *args)
    assert done.returncode == 0, done.stderr
    said = done.stdout  # the first model comes first, and it is told how to ask it
    assert said.index("\nlangbridge_instruct: vqa") < said.index("the first model can be asked")
    assert said.index("the first model can be asked") < said.index("\nllm_target: text_qa")
    done = run_here("evaluate.py", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr


def test_a_loaded_model_scores_what_the_trained_one_scored(out):
    features, data = held_out(out), open_data(out)
    for name in ("langbridge_align", "langbridge_instruct", "mlp_instruct"):
        scores = json.loads((out / name / "config.json").read_text(encoding="utf-8"))["scores"]
        assert score_vlm(load_vlm(out, name)[1], features, data) == scores


def test_results_say_which_commit_of_the_code_made_them(out):
    assert read_json(out / "results.json")["commit"] == COMMIT
    assert read_json(out / "vit" / "config.json")["commit"] == COMMIT


# ---- what it would take, and compiling -----------------------------------------------------------

def test_a_dry_run_says_what_stages_hold_and_makes_nothing(tmp_path, out):
    done = run_here("train.py", "--preset", "smoke", "--out", tmp_path / "dry", "--dry-run")
    assert done.returncode == 0 and not (tmp_path / "dry").exists()
    said = {line.split()[0]: line for line in done.stdout.splitlines()[1:]}
    assert set(STAGES) <= set(said)
    for stage in ("llm_source", "llm_target", "langbridge_instruct"):
        params = json.loads((out / stage / "config.json").read_text(encoding="utf-8"))["params"]
        assert f"{params:,}" in said[stage]


@pytest.mark.parametrize("name", ["llm_source", "vit", "langbridge_align", "mlp_instruct"])
def test_shapes_alone_keep_what_real_tensors_keep(name):
    kept = []
    for device in ("meta", "cpu"):
        _, _, losses = on_paper(replace(smoke(), device=device, precision="fp32"), name)
        with counted() as storages:
            loss = next(iter(losses))  # held: its graph keeps what is counted
        kept.append(sum(storages.values()))
        del loss
    assert kept[1] <= kept[0] <= 1.6 * kept[1]  # attention on a CPU keeps less


def test_blocks_are_compiled_on_request(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile",
                        lambda self, **how: compiled.append(type(self).__name__))
    llm, _ = make_llm("source", 32)
    compile_blocks(smoke(), llm)
    assert not compiled
    compile_blocks(smoke("--compile"), llm)
    assert compiled == ["Block"] * llm.config.layers
