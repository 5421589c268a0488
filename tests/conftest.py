import contextlib
import io
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(2)


def command(script, *args):
    return [sys.executable, str(ROOT / script), *map(str, args)]


def run(script, *args):
    return subprocess.run(command(script, *args), capture_output=True, text=True, cwd=ROOT)


def run_here(script, *args):
    """The same in this process, which saves seconds of imports: for commands that are refused or answer at once."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", [script, *map(str, args)]), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def out(tmp_path_factory):
    """A finished smoke run."""
    out = tmp_path_factory.mktemp("smoke") / "out"
    done = run("train.py", "--preset", "smoke", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out
