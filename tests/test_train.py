"""The main job, on the smoke preset: it finishes, goes on after a kill, and answers a user's mistakes in one line."""
import json
import os
import signal
import subprocess
import time

import pytest
import torch
from PIL import Image

from conftest import ROOT, command, run, run_here

SCORES = {"vqa", "vqa_by_type", "caption_f1", "caption_exact", "pope_acc", "pope_yes_rate", "comp_vqa", "comp_caption_f1"}


def test_the_results_have_every_field(out):
    r = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert set(r["seconds"]) == {"data", "llm_source", "llm_target", "vit", "align", "instruct", "total"}
    for llm in ("source", "target"):
        assert set(r["llm"][llm]) == {"params", "vocab", "text_qa", "raster_qa", "raster_caption_f1", "text_qa_by_type", "raster_qa_by_type"}
    assert set(r["vit"]) == {"params", "retrieval_top1", "probe_color", "probe_shape"} and r["shared_vocab"] > 20
    for scores in (r["vlm"]["blind"], r["vlm"]["chance"], *(r["vlm"][k][stage] for k in ("mlp", "langbridge") for stage in ("align", "instruct"))):
        assert set(scores) == SCORES
    assert (out / "samples.png").exists()


def test_running_again_redoes_nothing(out):
    before, results = {p: p.stat().st_mtime_ns for p in out.rglob("*.pt")}, (out / "results.json").read_text(encoding="utf-8")
    again = run("train.py", "--preset", "smoke", "--out", out)
    assert again.returncode == 0 and before == {p: p.stat().st_mtime_ns for p in out.rglob("*.pt")}
    assert (out / "results.json").read_text(encoding="utf-8") == results


def test_a_run_killed_anywhere_ends_bit_for_bit_like_one_that_was_not(out, tmp_path):
    args = ["--preset", "smoke", "--out", tmp_path / "out", "--save_every", "0"]
    for stage in ("llm_source", "vit", "langbridge_instruct"):  # killed in the middle of each of these
        process = subprocess.Popen(command("train.py", *args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT,
                                   start_new_session=True)
        while not (tmp_path / "out" / stage / "state.pt").exists():
            assert process.poll() is None, f"it ended before {stage}"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    end = run("train.py", *args)
    assert end.returncode == 0 and "going on from step" in end.stdout, end.stderr
    names = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.pt"))
    assert len(names) > 10
    for name in names:
        a, b = torch.load(out / name, weights_only=True), torch.load(tmp_path / "out" / name, weights_only=True)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name


def test_other_settings_in_the_same_folder_are_refused(out):
    refused = run_here("train.py", "--preset", "smoke", "--out", out, "--vit_steps", "21")
    assert refused.returncode == 2 and "vit_steps was 20, now 21" in refused.stderr and "Traceback" not in refused.stderr


def test_bf16_autocast_runs_where_the_gpu_preset_will_use_it(tmp_path):
    """The GPU preset's code path, at tiny size on the CPU: the rich world, larger pictures, bf16."""
    done = run("train.py", "--preset", "smoke", "--precision", "bf16", "--max_objects", "5", "--rich", "--vit_size", "96", "--vit_patch", "16",
               "--llm_source_steps", "3", "--llm_target_steps", "3", "--vit_steps", "3", "--align_steps", "3", "--instruct_steps", "3",
               "--pictures", "24", "--test_pictures", "20", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("args, says", [
    (["--vit_stepz", "3"], "did you mean --vit_steps?"),
    (["--preset", "desktop"], "laptop"),
    (["--vit_steps", "many"], "invalid int value: 'many'"),
    (["--align_coefficients", "sigmoid"], "softplus, softmax, relu, linear"),
    (["--align_basis", "whitened"], "words, centered"),
    (["--device", "cuda:77"], "--device cpu"),
    (["--stages", "vision"], "llm_source"),
    (["--vit_size", "50"], "6 x 6"),
    (["--vit_patch", "12"], "6 x 6"),
])
def test_a_wrong_setting_is_answered_in_one_line(tmp_path, args, says):
    refused = run_here("train.py", "--out", tmp_path / "new", *args)
    assert refused.returncode == 2 and says in refused.stderr and refused.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_stage_without_those_before_it_says_what_makes_them(tmp_path):
    refused = run_here("train.py", "--preset", "smoke", "--out", tmp_path / "new", "--stages", "mlp_align")
    assert refused.returncode == 2 and "python train.py --out" in refused.stderr and refused.stderr.count("\n") == 1


def test_every_preset_passes_the_check():
    from train import PRESETS, parse_settings
    for preset in PRESETS:
        assert parse_settings(["--preset", preset, "--device", "cpu"]).preset == preset


def test_help_explains_every_setting():
    said = run_here("train.py", "--help").stdout
    from dataclasses import fields
    from train import Settings, field_help
    assert set(field_help()) == {f.name for f in fields(Settings)}
    assert all(f"--{f.name}" in said for f in fields(Settings))


def test_a_loaded_model_scores_what_the_trained_one_scored(out):
    from data.world import World
    from evaluate import load_vlm, score_vlm
    features = torch.load(out / "vit" / "features.pt", weights_only=True)
    for name in ("langbridge_align", "langbridge_instruct", "mlp_instruct"):
        vit, vlm = load_vlm(out, name)
        scores = json.loads((out / name / "config.json").read_text(encoding="utf-8"))["scores"]
        assert score_vlm(vlm, {k: features[k].float() for k in ("test", "comp")}, World()) == scores


# ---- python evaluate.py --image ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode, suffix", [("RGB", "png"), ("RGBA", "png"), ("L", "png"), ("P", "png"), ("1", "png"), ("LA", "png"),
                                          ("I;16", "png"), ("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg")])
def test_any_picture_can_be_read(tmp_path, mode, suffix):
    from evaluate import read_picture
    path = tmp_path / f"picture.{suffix}"
    Image.new(mode, (317, 55)).save(path)
    assert read_picture(path, 48).shape == (1, 48, 48, 3)


def test_a_question_about_a_file_is_answered(out, tmp_path):
    Image.new("RGB", (100, 80), "red").save(tmp_path / "picture.png")
    for args in (["--ask", "what color is the circle?"], []):
        done = run_here("evaluate.py", "--out", out, "--image", tmp_path / "picture.png", *args)
        assert done.returncode == 0 and done.stderr == ""


def test_a_wrong_question_is_answered_in_one_line(out, tmp_path):
    Image.new("RGB", (100, 80), "red").save(tmp_path / "picture.png")
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    good = ["--out", out, "--image", tmp_path / "picture.png"]
    for args, says in [(["--out", out, "--image", tmp_path / "none.png"], "there is no picture"),
                       (["--out", out, "--image", tmp_path / "text.png"], "cannot read"),
                       (["--out", out, "--image", tmp_path], "cannot read"),
                       ([*good, "--ask", "  "], "the question is empty"),
                       (["--out", tmp_path / "nowhere", "--image", tmp_path / "picture.png"], "python train.py --out"),
                       ([*good, "--model", "other"], "python train.py --out")]:
        refused = run_here("evaluate.py", *args)
        assert refused.returncode == 2 and says in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
