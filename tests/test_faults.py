"""Runs and files that survive: kills, signals, damaged files, full disks, two commands at once."""
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import faults
import pytest
import torch
from conftest import ROOT, assert_refused, command, run_here

import train
from data.files import LOCK, Refused, Stage, lock, read_json, read_tensors, write_tensors
from data.pictures import read_picture
from data.run import command as told
from train import STAGES


@pytest.fixture
def folder(tmp_path):
    """A finished stage with a file of each kind; b_stage, beside it, is another one."""
    for name in ("b_stage", "a_stage"):
        stage = Stage(tmp_path, name, {"lr": 0.1})
        stage.folder.mkdir()
        write_tensors(stage.folder / "weights.pt", {"w": torch.full((300,), ord(name[0]))})
        stage.finish(vqa=0.5, of=name)
    return stage.folder


# ---- files ---------------------------------------------------------------------------------------

def changed(old, new):
    return lambda path: path.write_bytes(re.sub(old, new, path.read_bytes(), flags=re.DOTALL))


def of_another_stage(path):
    shutil.copy(path.parent.with_name("b_stage") / path.name, path)


@pytest.mark.parametrize("name, spoil, says", [
    ("weights.pt", changed(b"data", b"date"), "not as its stage left it.*delete the folder"),
    ("weights.pt", of_another_stage, "not as its stage left it"),
    ("weights.pt", Path.unlink, "it is missing; delete the folder"),
    ("config.json", of_another_stage, "not as its stage left it"),
    ("config.json", changed(b"0.5", b"0.9"), "not as its stage left it"),
    ("SHA256SUMS", of_another_stage, "not as its stage left it")])
def test_a_file_is_read_as_its_stage_left_it_or_named_with_what_to_do(folder, name, spoil, says):
    assert torch.equal(read_tensors(folder / "weights.pt")["w"], torch.full((300,), ord("a")))
    assert read_json(folder / "config.json")["vqa"] == 0.5
    spoil(folder / name)  # after it has been checked
    for file, read in (("weights.pt", read_tensors), ("config.json", read_json)):
        if name in (file, "SHA256SUMS"):
            with pytest.raises(Refused, match=f"{file}.*{says}"):
                read(folder / file)


def test_a_checkpoint_from_a_stranger_executes_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"w": Bomb()}, tmp_path / "weights.pt")
    with pytest.raises(Refused, match="weights.pt.*damaged"):
        read_tensors(tmp_path / "weights.pt")
    assert not (tmp_path / "executed").exists()


def test_damaged_files_are_refused_or_make_no_difference(out, tmp_path):
    """A dozen; python tests/faults.py --files 100 has more."""
    shutil.copytree(out, tmp_path / "out")
    outcomes = faults.check_files(tmp_path / "out", 12, random.Random(1))
    assert not [what for what in outcomes if what.startswith("FAULT")], outcomes
    assert outcomes.total() == 12 and outcomes["refused in one line"] > 0


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_picture_of_an_insane_size_is_refused_before_it_is_read(tmp_path, side):
    (tmp_path / "picture.ppm").write_text(f"P6 {side} {side} 255\n")  # only the head
    with pytest.raises(Refused, match="picture.ppm.*more than 90,000,000 pixels"):
        read_picture(tmp_path / "picture.ppm", 48)


@contextmanager
def full_disk():
    """No file can grow beyond 50 KB, as on a disk with little room."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path):
    args = ("train.py", "--preset", "smoke", "--out", tmp_path / "out", "--threads", 1, "--stages",
            "llm_source", "--save_every", 0)
    with full_disk():
        assert_refused(run_here(*args), "free some space")
    assert not list(tmp_path.rglob("*.new"))
    assert run_here(*args).returncode == 0
    assert (tmp_path / "out/llm_source/SHA256SUMS").exists()


# ---- checkpoints ---------------------------------------------------------------------------------

def test_a_damaged_checkpoint_is_named_and_a_finished_stage_keeps_none(tmp_path):
    stage = Stage(tmp_path, "a_stage", {"lr": 0.1})
    stage.folder.mkdir()
    stage.save_state(step=10)
    stage.save_state(step=20)
    assert stage.load_state()["step"] == 20
    with pytest.raises(Refused, match="lr was 0.1, now 0.2"):
        Stage(tmp_path, "a_stage", {"lr": 0.2}).load_state()
    path = stage.folder / "state.pt"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(Refused, match="state.pt': it is damaged; delete it and run"):
        stage.load_state()
    stage.finish()
    assert not path.exists()


# ---- kills and signals ---------------------------------------------------------------------------

def test_a_run_that_is_killed_ends_bit_for_bit_like_one_that_was_not(out, tmp_path):
    """Two kills; python tests/faults.py --kills 20 has more."""
    expected = {name: digest for name, digest in faults.weights_of(out).items()
                if "transfer" not in name}
    assert faults.check_kills(tmp_path, [faults.TRAIN], expected, 2, random.Random(0)) >= 1


def test_a_signal_in_each_stage_saves_its_step_and_the_run_goes_on(out, tmp_path, monkeypatch):
    folder, record, sent = tmp_path / "out", train.Run.record, set()

    def signalled(run, loss):
        if run.step == 7 and run.stage.name not in sent:
            sent.add(run.stage.name)
            os.kill(os.getpid(), number)
        record(run, loss)

    # not by run_here, whose module would be another than the `train` that is changed
    monkeypatch.setattr(train.Run, "record", signalled)
    monkeypatch.setattr(sys, "argv", ["train.py", "--preset", "smoke", "--out", str(folder),
                                      "--device", "cpu", "--threads", "1"])
    for number in [signal.SIGTERM, signal.SIGINT] * 4:  # one for each stage
        with pytest.raises(SystemExit, match=str(128 + number)):
            with told():
                train.main()
        (state,) = folder.rglob("state.pt")
    assert sent == {*STAGES}
    with told():
        train.main()
    weights = faults.weights_of(folder)
    assert weights.items() <= faults.weights_of(out).items() and len(weights) > 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_lanes_too(tmp_path, number):
    process = subprocess.Popen(
        command("train.py", "--preset", "smoke", "--out", tmp_path, "--threads", "2", "--device",
                "cpu", "--llm_source_steps", "5000", "--vit_steps", "5000"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    stages = [tmp_path / "llm_source", tmp_path / "vit"]
    while not all(stage.exists() for stage in stages):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)  # ends once the last process that can write has
    if number == signal.SIGTERM:
        assert process.returncode == 143 and "Traceback" not in said, said
        assert all((stage / "state.pt").exists() for stage in stages)


# ---- folders -------------------------------------------------------------------------------------

def test_a_second_command_is_refused(tmp_path):
    lock(tmp_path)
    holder = LOCK.pop()  # as if another process held it
    done = run_here("train.py", "--preset", "smoke", "--out", tmp_path)
    assert_refused(done, f"{str(tmp_path)!r} is in use by another command")
    holder.close()  # as when a process ends, however that ends
    lock(tmp_path)
