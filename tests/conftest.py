"""What several tests need: commands, run as users run them; a finished run; tiny LLMs."""
import contextlib
import functools
import io
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data.corpus import texts_of, train_tokenizer
from data.files import LOCK
from model import GPT, GPTConfig

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all tests run on a CPU, whatever the machine has

WORDS = [b" .", b" red", b" blue", b" circle", b" square", b" top"]


def pytest_configure():
    torch.set_num_threads(1)


# ---- commands ------------------------------------------------------------------------------------

def command(script, *args):
    return [sys.executable, str(ROOT / script), *map(str, args)]


def run(script, *args):
    """A command that must succeed, in a process of its own."""
    done = subprocess.run(command(script, *args), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def run_here(script, *args):
    """A command in this process, which saves seconds of imports. Returns what it said and its code.

    With --threads 1 stages are made in this process, too, instead of in lanes.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (mock.patch.object(sys, "argv", [script, *map(str, args)]),
          contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        finally:
            LOCK.clear()  # as if the process had ended
            torch.set_num_threads(1)
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def run_flags(script, **flags):
    """The same for a command that must succeed, its flags given by name."""
    done = run_here(script, *(f"--{name}={value}" for name, value in flags.items()))
    assert done.returncode == 0, done.stdout + done.stderr


def assert_refused(done, says):
    """A user's mistake is answered in one line, which says this."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


# ---- what they are run on ------------------------------------------------------------------------

@pytest.fixture(scope="session")
def out(tmp_path_factory):
    """A finished smoke run."""
    out = tmp_path_factory.mktemp("smoke") / "out"
    run("train.py", "--preset", "smoke", "--out", out)
    return out


@pytest.fixture
def picture(tmp_path):
    """The path of a red picture."""
    path = tmp_path / "picture.png"
    Image.new("RGB", (100, 80), "red").save(path)
    return path


@functools.cache
def tokenizer(dialect):
    return train_tokenizer(dialect, texts_of(dialect, 0, documents=400), 512, 0)


def make_llm(dialect, C):
    """An untrained LLM with one block, and its tokenizer; the same again for the same arguments."""
    torch.manual_seed(C)
    encoding = tokenizer(dialect)
    return GPT(GPTConfig(encoding.n_vocab, C, H=4, layers=1)), encoding
