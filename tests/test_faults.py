"""Runs and files that survive: kills, signals, damaged files, full disks, two commands at once."""
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib

import faults
import pytest
import torch
from conftest import ROOT, assert_refused, command, run_here
from PIL import Image

import train
from adapter import MLPAdapter, load_adapter, save_adapter
from data.files import Refused, Stage, lock, read_json, read_tensors, write_json, write_tensors
from data.pictures import read_picture
from data.run import run_command
from train import STAGES


def assert_refused_all(folder, says):
    """Neither file of this finished stage is read."""
    for name, read in (("weights.pt", read_tensors), ("words.json", read_json)):
        with pytest.raises(Refused, match=says):
            read(folder / name)


@pytest.fixture
def stage(tmp_path):
    """A finished stage with a file of each kind."""
    stage = Stage(tmp_path, "a_stage", {"lr": 0.1})
    stage.folder.mkdir()
    write_tensors(stage.folder / "weights.pt", {"w": torch.arange(300.0)})
    write_json(stage.folder / "words.json", {"words": ["red", "blue"]})
    stage.finish(vqa=0.5)
    return stage


# ---- files ---------------------------------------------------------------------------------------

def test_a_finished_stage_is_read_as_it_was_left(stage):
    assert torch.equal(read_tensors(stage.folder / "weights.pt")["w"], torch.arange(300.0))
    assert read_json(stage.folder / "words.json") == {"words": ["red", "blue"]}
    assert read_json(stage.folder / "config.json")["vqa"] == stage.config()["vqa"] == 0.5


@pytest.mark.parametrize("name", ["weights.pt", "words.json"])
def test_a_changed_file_is_named_with_what_to_do(stage, name):
    path = stage.folder / name
    read_json(stage.folder / "words.json")  # it has been checked before
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Refused, match=f"{name}.*not as its stage left it.*delete the folder"):
        (read_json if name.endswith("json") else read_tensors)(path)


def test_a_file_of_another_stage_is_refused(stage, tmp_path):
    other = Stage(tmp_path, "b_stage", {})
    other.folder.mkdir()
    write_tensors(other.folder / "weights.pt", {"w": torch.zeros(300)})
    other.finish()
    shutil.copy(other.folder / "weights.pt", stage.folder)
    with pytest.raises(Refused, match="not as its stage left it"):
        read_tensors(stage.folder / "weights.pt")
    shutil.copy(other.folder / "config.json", stage.folder)
    assert_refused_all(stage.folder, "that of another stage, b_stage")


def test_a_missing_file_says_to_make_its_stage_again(stage):
    (stage.folder / "weights.pt").unlink()
    with pytest.raises(Refused, match="weights.pt.*it is missing; delete the folder"):
        read_tensors(stage.folder / "weights.pt")


def test_a_score_that_was_edited_is_refused(stage):
    path = stage.folder / "config.json"
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(Refused, match="config.json.*changed after it was written"):
        stage.config()
    assert_refused_all(stage.folder, "changed after it was written")


def test_a_config_without_hashes_is_refused(stage):
    text = json.dumps({"stage": "a_stage", "settings": {"lr": 0.1}})
    (stage.folder / "config.json").write_text(text)
    assert_refused_all(stage.folder, "another version of this project")


def test_a_checkpoint_from_a_stranger_executes_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"w": Bomb()}, tmp_path / "weights.pt")
    with pytest.raises(Refused, match="weights.pt.*damaged"):
        read_tensors(tmp_path / "weights.pt")
    assert not (tmp_path / "executed").exists()


def test_a_configuration_that_lies_about_sizes_is_refused_before_they_are_allocated(tmp_path):
    save_adapter(MLPAdapter(D=8, C=8, hidden=8), tmp_path)
    config = read_json(tmp_path / "adapter.json")
    write_json(tmp_path / "adapter.json", config | {"hidden": 10 ** 11})  # 6 terabytes
    with pytest.raises(Refused, match="adapter.pt.*does not go with the configuration"):
        load_adapter(tmp_path)
    write_json(tmp_path / "adapter.json", config | {"kind": "newer"})
    with pytest.raises(Refused, match="another version of this project"):
        load_adapter(tmp_path)


def test_damaged_files_are_refused_or_make_no_difference(out, tmp_path, picture):
    """A dozen; python tests/faults.py --files 100 has more."""
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    outcomes = faults.check_files(copy, picture, 12, random.Random(1))
    assert not [what for _, what in outcomes if what.startswith("FAULT")], outcomes
    assert outcomes.total() == 12
    assert any(what == "refused in one line" for _, what in outcomes)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_picture_of_an_insane_size_is_refused_before_it_is_read(tmp_path, side):
    path = tmp_path / "picture.png"
    Image.new("RGB", (30, 20)).save(path)
    raw = bytearray(path.read_bytes())
    raw[16:24] = struct.pack(">II", side, side)  # width and height in the header,
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))  # and its checksum
    path.write_bytes(raw)
    with pytest.raises(Refused, match="picture.png.*more than 90,000,000 pixels"):
        read_picture(path, 48)


def test_a_long_strip_is_read_scaled_down(tmp_path):
    Image.new("RGB", (30_000, 2), "red").save(tmp_path / "strip.png")
    assert read_picture(tmp_path / "strip.png", 48).shape == (1, 48, 48, 3)


def test_a_finished_stage_of_other_settings_is_refused_and_says_what_differs(tmp_path):
    stage = Stage(tmp_path, "a_stage", {"lr": 0.1, "steps": 3})
    assert stage.config() is None
    stage.finish()
    with pytest.raises(Refused, match="lr was 0.1, now 0.2"):
        Stage(tmp_path, "a_stage", {"lr": 0.2, "steps": 3}).config()
    with pytest.raises(Refused, match="steps was 3, now None"):
        Stage(tmp_path, "a_stage", {"lr": 0.1}).config()


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


# ---- checkpoints ---------------------------------------------------------------------------------

def test_a_damaged_checkpoint_starts_its_stage_again_and_says_so(tmp_path, capsys):
    stage = Stage(tmp_path, "a_stage", {"lr": 0.1})
    stage.folder.mkdir()
    for step in (10, 20):
        stage.save_state(step=step)
    assert stage.load_state("cpu")["step"] == 20
    with pytest.raises(Refused, match="lr was 0.1, now 0.2"):
        Stage(tmp_path, "a_stage", {"lr": 0.2}).load_state("cpu")
    path = stage.folder / "state.pt"
    path.write_bytes(path.read_bytes()[:-20])
    assert stage.load_state("cpu") is None
    assert "state.pt' is damaged; this stage starts again" in capsys.readouterr().out
    stage.finish()
    assert not path.exists()


# ---- kills and signals ---------------------------------------------------------------------------

def test_a_run_that_is_killed_ends_bit_for_bit_like_one_that_was_not(out, tmp_path):
    """Two kills; python tests/faults.py --kills 20 has more."""
    expected = {name: digest for name, digest in faults.weights_of(out).items()
                if "transfer" not in name}
    runs, kills = faults.check_kills(tmp_path, [faults.TRAIN], expected, 2, random.Random(0))
    assert runs >= 1 and kills == 2


def test_a_signal_in_each_stage_saves_its_step_and_the_run_goes_on(out, tmp_path, monkeypatch):
    folder, record, sent = tmp_path / "out", train.Run.record, set()

    def signalled(run, loss):
        if run.step == 7 and run.stage.name not in sent:
            sent.add(run.stage.name)
            os.kill(os.getpid(), number)
        record(run, loss)

    def here(*args):  # run_here makes a module of its own: the stages are those of `train`
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, args)])
        try:
            return run_command(train.main)
        except SystemExit as end:
            return end.code

    monkeypatch.setattr(train.Run, "record", signalled)
    args = ["--preset", "smoke", "--out", folder, "--device", "cpu", "--threads", "1"]
    for number in [signal.SIGTERM, signal.SIGINT] * 4:  # one for each stage
        assert here(*args) == 128 + number
        (state,) = folder.rglob("state.pt")
    assert sent == {*STAGES}
    assert here(*args) is None
    weights = faults.weights_of(folder)
    assert weights.items() <= faults.weights_of(out).items() and len(weights) > 10


def test_a_signal_ends_lanes_too(tmp_path):
    process = subprocess.Popen(
        command("train.py", "--preset", "smoke", "--out", tmp_path / "out", "--threads", "2",
                "--device", "cpu", "--llm_source_steps", "5000", "--vit_steps", "5000"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while not all((tmp_path / "out" / name).exists() for name in ("llm_source", "vit")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143 and "Traceback" not in said, said
    for name in ("llm_source", "vit"):
        assert (tmp_path / "out" / name / "state.pt").exists(), name


# ---- folders -------------------------------------------------------------------------------------

def test_a_second_command_is_refused(tmp_path):
    out = tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1])\n"
         "from data.files import lock\n"
         "lock(sys.argv[2]); print('locked', flush=True); sys.stdin.read()", ROOT, out],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    done = run_here("train.py", "--preset", "smoke", "--out", out)
    assert_refused(done, f"{str(out)!r} is in use by another command")
    holder.kill()
    holder.wait()
    lock(out)  # that of a dead process is nobody's


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    assert_refused(run_here("train.py", "--preset", "smoke", "--out", out), str(tmp_path / "file"))


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    done = run_here("train.py", "--preset", "smoke", "--out", tmp_path / "out")
    assert_refused(done, "Permission denied")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 600 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk],
                             capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(small_disk):
    args = ["--preset", "smoke", "--out", small_disk / "out", "--threads", "1", "--stages",
            "llm_source", "--save_every", "0"]
    done = run_here("train.py", *args)
    assert_refused(done, "free some space")
    assert not list(small_disk.rglob("*.new"))
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    done = run_here("train.py", *args)
    assert done.returncode == 0, done.stderr
    assert json.loads((small_disk / "out" / "llm_source" / "config.json").read_text())["files"]
