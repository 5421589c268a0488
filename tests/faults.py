"""What happens to runs that are killed, and to files that are damaged?

    python tests/faults.py --kills 20 --files 100       the tests take a few

Kills: `train.py --preset smoke` and then `transfer.py` are killed (kill -9) at random moments and
started again until they are done; then all weights must be those of a run that was left alone.
Files: one file of a finished run at a time is cut, emptied, zeroed (all or a block), replaced by
another one or gets a bit flipped, and a command that reads it is run. It may refuse in one line, or
say what it says about the whole run; a traceback, or another answer, is a fault.
"""
import collections
import functools
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from conftest import ROOT, command, run, run_here

from data.run import Parser

TRAIN = ("train.py", "--preset", "smoke", "--save_every", 0)
TRANSFER = ("transfer.py", "--rows", "zero_shot_langbridge,transferred_langbridge,native_mlp")
QUESTION = "what do you see?"


# ---- kills ---------------------------------------------------------------------------------------

def weights_of(out):
    """The hash of each file of weights in a finished run: {path in out: SHA-256}"""
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in out.rglob("*.pt")}


def check_kills(folder, commands, expected, kills, rng):
    """Make runs; as long as there are kills left, a command is killed before its end, and started
    again. Returns how many runs it took. Raises if weights are not the expected ones."""
    runs = 0
    while kills > 0:
        out, unfinished = folder / f"killed{runs}", [*commands]
        while unfinished:
            script, *flags = unfinished[0]
            seconds = rng.uniform(2, 6) if kills > 0 else None  # two are spent on imports
            try:
                subprocess.run(command(script, "--out", out, *flags), check=True, timeout=seconds,
                               stdout=subprocess.DEVNULL)
                unfinished.pop(0)
            except subprocess.TimeoutExpired:  # it has been killed
                kills -= 1
        different = sorted({name for name, _ in expected.items() ^ weights_of(out).items()})
        if different:
            raise RuntimeError(f"run {runs} was killed, and these weights differ: {different}")
        runs += 1
    return runs


# ---- files ---------------------------------------------------------------------------------------

def use(out, name):
    """Run a command that reads a file of a run: (its exit code, what it said, its complaints)"""
    stage = Path(name).parts[0]
    if stage in ("settings.json", "llm_target", "transfer", "on_llm_target"):
        script, *flags = *TRANSFER, "--threads", 1  # in this process
    elif stage == name != "picture.png":
        script, *flags = *TRAIN, "--stages", "llm_source", "--threads", 1
    else:
        script, *flags = "evaluate.py", "--image", out / "picture.png", "--ask", QUESTION
        if stage not in ("llm_source", "vit", name):
            flags += ["--model", stage]
    done = run_here(script, "--out", out, *flags)
    said = [line for line in done.stdout.splitlines() if " minutes" not in line]
    return done.returncode, said, done.stderr


def check_files(out, files, rng):
    """Damage so many files, each in a copy of a run. Returns {what came of it: times}."""
    run_here(*TRANSFER, "--out", out, "--threads", 1)
    shutil.copy(ROOT / "results" / "picture.png", out)
    names = [path.relative_to(out).as_posix() for path in sorted(out.rglob("*"))
             if path.is_file() and path.name != "lock"]
    outcomes, copy = collections.Counter(), out.with_name("damaged")

    @functools.cache
    def answer(name, raw):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(out, copy)
        (copy / name).write_bytes(raw)
        return use(copy, name)

    for name in rng.choices(names, k=files):
        alike = [other for other in names if Path(other).suffix == Path(name).suffix]
        whole, other = ((out / its).read_bytes() for its in (name, rng.choice(alike)))
        at = rng.randrange(len(whole))
        raw = rng.choice([whole[:at], b"", bytes(len(whole)), other,
                          whole[:at] + bytes(min(512, len(whole) - at)) + whole[at + 512:],
                          whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1:]])
        _, usual, _ = answer(name, whole)
        try:
            code, said, complained = answer(name, raw)
        except Exception as error:  # a traceback, if this were a process of its own
            code, said, complained = 1, [], repr(error)
        what = f"FAULT: {name}: {code} {said} {complained[-200:]}"
        if code == 2 and complained.splitlines()[-1].startswith("error: "):
            what = "refused in one line"
        elif code == 0 and said == usual:
            what = "the same answer"
        outcomes[what] += 1
    return outcomes


def main():
    parser = Parser(__doc__)
    parser.add_argument("--kills", type=int, default=5, help="(default: 5)")
    parser.add_argument("--files", type=int, default=50, help="(default: 50)")
    args, rng = parser.parse_args(), random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "left-alone"
        for script, *flags in (TRAIN, TRANSFER):
            run(script, "--out", out, *flags)
        runs = check_kills(Path(folder), (TRAIN, TRANSFER), weights_of(out), args.kills, rng)
        print(f"{args.kills} kills in {runs} runs: all weights are those of a run that was left "
              "alone", flush=True)
        outcomes = check_files(out, args.files, rng)
    for what, times in sorted(outcomes.items()):
        print(f"{times:5} {what}")
    faults = sum(times for what, times in outcomes.items() if what.startswith("FAULT"))
    print(f"{args.files} damaged files, {faults} faults")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
