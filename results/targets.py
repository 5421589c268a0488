"""What must a target LLM have in common with the source? Other targets, one change at a time.

    python results/targets.py     after train.py: 10 minutes for each target, into targets.json

A target for each of OTHERS is trained in a folder of its own, and the adapter is moved to it.
Interrupted? Run the same command again.
"""
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project, one folder up

from data.corpus import DIALECTS
from data.files import write_json
from data.run import Job, Parser, command, make_stages
from results.budgets import copy_whole, transfer
from train import load_settings, open_stage, pretrain_llm, say_scores

OTHERS = {"pieces": dict(llm_target_V=380)}  # a target's changes: 27 words are several tokens;
OTHERS |= {name: dict(llm_target_dialect=name) for name in [*DIALECTS][2:]}  # other texts
ROWS = ["zero_shot_langbridge", "zero_shot_own_mark", "text_langbridge", "text_probe",
        "transferred_langbridge", "aligned_langbridge", "native_langbridge"]
COPIED = ["llm_source", "vit", "langbridge_align"]


def prepare(s, target):
    """The settings of a run with another target; the rest is copied."""
    its = replace(s, out=f"{s.out}/targets/{target}", **OTHERS[target])
    for name in COPIED:
        copy_whole(Path(s.out, name), Path(its.out, name))
    write_json(Path(its.out, "settings.json"), asdict(its))
    return its


def measure(s):
    """The scores of ROWS on every other target."""
    runs = {target: prepare(s, target) for target in OTHERS}
    jobs = [Job(partial(pretrain_llm, its), open_stage(its, "llm_target")) for its in runs.values()]
    make_stages(s, jobs, say_scores)
    return [{"name": target, **transfer(its, ROWS)} for target, its in runs.items()]


def main():
    parser = Parser(__doc__)
    parser.add_argument("--out", default="out", help="the folder of train.py (default: out)")
    s = load_settings(parser.parse_args().out)
    path = Path(s.out) / "targets.json"
    write_json(path, {"seed": s.seed, "rows": measure(s)})
    print(f"\nScores: {path}. As a table: python results/report.py {s.out}")


if __name__ == "__main__":
    with command():
        main()
