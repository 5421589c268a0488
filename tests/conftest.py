import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(2)


def command(script, *args):
    return [sys.executable, str(ROOT / script), *map(str, args)]


def run(script, *args):
    return subprocess.run(command(script, *args), capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="session")
def out(tmp_path_factory):
    """A finished smoke run."""
    out = tmp_path_factory.mktemp("smoke") / "out"
    done = run("train.py", "--preset", "smoke", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out
