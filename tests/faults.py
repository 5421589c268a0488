"""What happens to runs that are killed, and to files that are damaged?

    python tests/faults.py --kills 20 --files 100       the tests take a few

Kills: `train.py --preset smoke` and then `transfer.py` are killed (kill -9) at random moments and
started again until they are done; then all weights must be those of a run that was left alone.
Files: one file of a finished run at a time is damaged in one of six ways, and a command that reads
it is run. It may refuse in one line, or say what it says about the whole run; a traceback, or
another answer, is a fault.
"""
import argparse
import collections
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from conftest import command, run_here

TRAIN = ("train.py", "--preset", "smoke", "--save_every", 0)
TRANSFER = ("transfer.py", "--rows", "zero_shot_langbridge,transferred_langbridge,native_mlp")
QUESTION = "what color is the circle?"
UNFINISHED = "blind_instruct"  # by the time that files are damaged


# ---- kills ---------------------------------------------------------------------------------------

def weights_of(out):
    """The hash of each file of weights in a finished run: {path in out: SHA-256}"""
    found = {}
    for path in sorted(out.rglob("config.json")):
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        found |= {str((path.parent / name).relative_to(out)): digest
                  for name, digest in files.items() if name.endswith(".pt")}
    return found


def survive(out, commands, kills, rng):
    """Start each command until it ends by itself; the first `kills` times it is killed before that.
    Returns how many kills there were."""
    done = 0
    for script, *flags in commands:
        while True:
            process = subprocess.Popen(command(script, "--out", out, *flags),
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            seconds = rng.uniform(2, 6)  # the first two are spent on imports
            try:
                _, said = process.communicate(timeout=seconds if done < kills else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()  # its output ends when its last lane has ended
                done += 1
                continue
            if process.returncode:
                raise RuntimeError(f"{script}, started again after a kill: {said}")
            break
    return done


def check_kills(folder, commands, expected, kills, rng):
    """Returns (runs, kills); raises if weights are not the expected ones."""
    runs = done = 0
    while done < kills:
        out = folder / f"killed{runs}"
        done += survive(out, commands, kills - done, rng)
        runs += 1
        found = weights_of(out)
        different = sorted({name for name, _ in expected.items() ^ found.items()})
        if different:
            raise RuntimeError(f"after {done} kills these weights differ: {different}")
        shutil.rmtree(out)
    return runs, done


# ---- files ---------------------------------------------------------------------------------------

def damage(raw, other, rng):
    """One of six kinds of damage: (its name, bytes). `other` is another file's bytes."""
    at = rng.randrange(max(1, len(raw)))
    kinds = {
        "a bit flipped": raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1:],
        "cut": raw[:at], "emptied": b"", "zeroed": bytes(len(raw)),
        "a block zeroed": raw[:at] + bytes(min(512, len(raw) - at)) + raw[at + 512:],
        "another one's": other}
    kind = rng.choice(list(kinds))
    return kind, kinds[kind]


@contextmanager
def changed(path, raw):
    """A file has other bytes for a while; then its folder's files are again what they were."""
    before = {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    path.write_bytes(raw)
    try:
        yield
    finally:
        for p in path.parent.iterdir():
            if p.is_file():
                p.unlink()
        for p, its in before.items():
            p.write_bytes(its)


def break_off(out, stage):
    """Make a finished stage unfinished: with a checkpoint, and without its result."""
    shutil.rmtree(out / stage)
    process = subprocess.Popen(command(*TRAIN, "--out", out, "--stages", stage, "--threads", "1"),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / stage / "state.pt").exists():
        if process.poll() is not None:
            raise RuntimeError(f"{stage} ended before its first checkpoint")
        time.sleep(0.001)
    process.kill()
    process.wait()


def use(path, out, picture):
    """Run a command that reads a file of a run. Returns its exit code, what it said or made, and
    its complaints."""
    if path == picture:
        script = ["evaluate.py", "--image", picture, "--ask", QUESTION]
    else:
        name = path.relative_to(out).parts[0]
        if name == UNFINISHED:
            script = [*TRAIN, "--stages", name]
        elif name in ("settings.json", "llm_target", "transfer", "on_llm_target"):
            script = [*TRANSFER]
        elif path.parent == out:
            script = [*TRAIN, "--stages", "llm_source"]
        else:
            script = ["evaluate.py", "--image", picture, "--ask", QUESTION]
            if name not in ("llm_source", "vit"):
                script += ["--model", name]
    if script[0] != "evaluate.py":
        script += ["--threads", "1"]  # in this process
    done = run_here(script[0], "--out", out, *script[1:])
    said = [line for line in done.stdout.splitlines() if " minutes" not in line]
    if path.name.startswith("state"):
        said = weights_of(path.parent)
    return done.returncode, said, done.stderr


def check_files(out, picture, files, rng):
    """Damage so many files, one at a time. Returns {(kind of damage, what came of it): times}."""
    run_here(*TRANSFER, "--out", out, "--threads", "1")
    break_off(out, UNFINISHED)
    paths = [path for path in sorted(out.rglob("*"))
             if path.is_file() and path.name != "lock" and path.suffix != ".new"]
    paths.append(picture)
    outcomes, usual = collections.Counter(), {}
    for _ in range(files):
        path = rng.choice(paths)
        raw = path.read_bytes()
        if path not in usual:
            with changed(path, raw):
                usual[path] = use(path, out, picture)[1]
        others = [p for p in paths if p.suffix == path.suffix and p != path] or [path]
        kind, damaged = damage(raw, rng.choice(others).read_bytes(), rng)
        with changed(path, damaged):
            try:
                code, said, complained = use(path, out, picture)
            except Exception as error:  # a traceback, if this were a process of its own
                outcomes[kind, f"FAULT: {path.name}: {error!r}"] += 1
                continue
        if code == 2 and complained.splitlines()[-1].startswith("error: "):
            outcomes[kind, "refused in one line"] += 1
        elif code == 0 and said == usual[path]:
            outcomes[kind, "the same answer"] += 1
        else:
            outcomes[kind, f"FAULT: {path.name}: {code} {said} {complained[-200:]}"] += 1
    return outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="(default: 5)")
    parser.add_argument("--files", type=int, default=50, help="(default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and damages (default: 0)")
    parser.add_argument("--out", type=Path, help="a folder for faults.json (default: none is made)")
    args = parser.parse_args()
    rng, began = random.Random(args.seed), time.time()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        out, picture = folder / "left-alone", folder / "picture.png"
        survive(out, (TRAIN, TRANSFER), 0, rng)
        runs, done = check_kills(folder, (TRAIN, TRANSFER), weights_of(out), args.kills, rng)
        print(f"{done} kills in {runs} runs: all weights are those of a run that was left alone "
              f"({time.time() - began:.0f} s)", flush=True)
        shutil.copy(Path(__file__).parent.parent / "results" / "picture.png", picture)
        outcomes = check_files(out, picture, args.files, rng)
    for (kind, what), times in sorted(outcomes.items()):
        print(f"{times:5} {kind}: {what}")
    faults = sum(times for (_, what), times in outcomes.items() if what.startswith("FAULT"))
    print(f"{args.files} damaged files, {faults} faults ({time.time() - began:.0f} s)")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        result = {"kills": done, "runs": runs, "files": args.files, "outcomes": [
            [kind, what, times] for (kind, what), times in sorted(outcomes.items())]}
        (args.out / "faults.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
