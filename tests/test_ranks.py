"""torchrun: processes with batches of their own learn as one that averages their gradients."""
import subprocess
import sys

from conftest import ROOT, losses_of, run_here

STAGES = ["llm_source", "vit", "langbridge_align", "langbridge_instruct"]


def test_two_processes_train_on_batches_of_their_own_and_stay_together(out, tmp_path):
    many = tmp_path / "out"
    flags = ["--preset", "smoke", "--out", many, "--device", "cpu", "--stages", ",".join(STAGES)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2]
    done = subprocess.run([*map(str, torchrun), str(ROOT / "train.py"), *map(str, flags)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nanoLangBridge: ") == 1  # one of them speaks
    for stage in STAGES:
        one, two = losses_of(out, stage), losses_of(many, stage)
        assert len(one) == len(two) and one != two
    # one process that reads both batches at once: the first step's loss is the mean of the two
    double = tmp_path / "double"
    args = ["--preset", "smoke", "--out", double, "--threads", "1", "--stages", "llm_source"]
    assert run_here("train.py", *args, "--llm_batch", "8").returncode == 0
    assert abs(losses_of(double, "llm_source")[0] - losses_of(many, "llm_source")[0]) < 1e-4
    assert run_here("train.py", *flags, "--threads", "1").returncode == 0  # it is finished
