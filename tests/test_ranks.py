"""torchrun: processes that compute each batch in parts learn what one learns that computes all."""
import subprocess
import sys

import pytest
from conftest import ROOT, losses_of, run_here

STAGES = ["llm_source", "vit", "langbridge_align", "langbridge_instruct", "mlp_align"]


def test_two_processes_have_the_losses_of_one(out, tmp_path):
    many = tmp_path / "out"
    flags = ["--preset", "smoke", "--out", many, "--device", "cpu", "--stages", ",".join(STAGES)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2]
    done = subprocess.run([*map(str, torchrun), str(ROOT / "train.py"), *map(str, flags)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nanoLangBridge: ") == 1  # one of them speaks
    for stage in STAGES:
        losses = losses_of(many, stage)
        assert len(losses) >= 3 and losses == pytest.approx(losses_of(out, stage), rel=1e-5)
    assert run_here("train.py", *flags, "--threads", "1").returncode == 0  # it is finished
