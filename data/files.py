"""Stages as folders: how the files of a run are written, checked and read.

    config.json   settings and scores
    state.pt      the checkpoint of an unfinished stage
    log.csv       the loss over the steps
    the rest      what the stage has made: weights, tokenizer, features
    SHA256SUMS    the hashes of all other files, in the format of the command sha256sum; it is
                  written last, so a stage that has one is finished

A file of a finished stage is compared with its hash before it is used.
"""
import functools
import hashlib
import json
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

SUMS = "SHA256SUMS"


class Refused(Exception):
    """A user's mistake, or something a user can fix: the command prints it in one line."""


# ---- writing ------------------------------------------------------------------------------------

def write_aside(path, save):
    """Let save(aside) write a file beside path, then rename it: nobody ever sees half a file."""
    aside = path.with_name(path.name + ".new")
    try:
        save(aside)
        aside.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        aside.unlink(missing_ok=True)
        why = str(error).splitlines()[0]
        raise Refused(f"cannot write {str(path)!r}: {why}; free some space or check the folder, "
                      "then run the same command again to continue") from error


def write_text(path, text):
    """Write a text; names of files that are no UTF-8 may stand in it."""
    write_aside(path, lambda aside: aside.write_text(text, "utf-8", "surrogatepass"))


def write_json(path, data):
    write_text(path, json.dumps(data, ensure_ascii=False, indent=1))


def write_tensors(path, tensors):
    """Write a dict of tensors, such as a module's state_dict()."""
    write_aside(path, lambda aside: torch.save(tensors, aside))


def save_module(module, config, path):
    """Write path.pt, a module's weights, and path.json, the dict from which it is made again."""
    write_tensors(path.with_suffix(".pt"), module.state_dict())
    write_json(path.with_suffix(".json"), config)


# ---- reading ------------------------------------------------------------------------------------

def damaged(path, why):
    """What a user is told about a file that cannot be used."""
    what = f"the folder {str(path.parent)!r}" if path.with_name(SUMS).exists() else "it"
    return Refused(f"cannot read {str(path)!r}: {why}; delete {what} and run the command that made "
                   "it again: what else is finished is kept")


@functools.cache
def hash_of(path, changed=0):
    """The SHA-256 of a file; `changed`, when it was last written, tells the cache of a new one."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sum_of(path):
    """A file's line in SHA256SUMS."""
    return f"{hash_of(path, path.stat().st_mtime_ns)}  {path.name}"


def checked(path):
    """The path. Raises Refused if its file is missing or, in a finished stage, not as it was
    left."""
    sums = path.with_name(SUMS)
    if not path.exists() and not sums.exists():
        raise Refused(f"there is no {str(path)!r}; run 'python train.py --out FOLDER' first")
    if not path.exists():
        raise damaged(path, "it is missing")
    if sums.exists() and sum_of(path).encode() not in sums.read_bytes().splitlines():
        raise damaged(path, "it is not as its stage left it (damaged, or of another stage)")
    return path


def read_json(path):
    """What write_json wrote."""
    try:
        return json.loads(checked(path).read_text("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, "it is damaged") from error


def read_tensors(path, mmap=False):
    """What write_tensors wrote. Only tensors and plain values are read: no file can run code."""
    path = checked(path)
    try:
        mmap = mmap and str(path).isprintable()  # a name that is no UTF-8 is not mapped
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except Exception as error:  # a broken file can make pickle raise nearly anything
        raise damaged(path, "it is damaged") from error


def load_module(make, path):
    """The module that save_module wrote, made by make(config)."""
    try:
        module = make(read_json(path.with_suffix(".json")))
        module.load_state_dict(read_tensors(path.with_suffix(".pt")))
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise damaged(path.with_suffix(".pt"), "it does not go with the configuration beside it, "
                      "or is of another version of this project") from error
    return module


# ---- folders ------------------------------------------------------------------------------------

LOCK = []  # the file that this command has locked, open as long as it runs


def lock(out):
    """One command at a time writes into a folder; the lock ends with the process, however that
    ends. (Windows has no such locks, nor have some network file systems.)"""
    LOCK.clear()
    Path(out).mkdir(parents=True, exist_ok=True)
    LOCK.append(open(Path(out) / "lock", "w", encoding="utf-8"))
    try:
        import fcntl
        fcntl.flock(LOCK[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refused(f"{str(out)!r} is in use by another command; wait until it has ended, or "
                      "use another --out")
    except (ImportError, OSError):
        pass


COMMIT = ""  # of this code, when it was loaded, with a + if files were changed since
with suppress(OSError):  # there may be no git
    describe = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    COMMIT = subprocess.run(describe, capture_output=True, text=True,
                            cwd=Path(__file__).parent).stdout.strip()


class Stage:
    """One stage's folder in --out, and the settings that decide what it holds."""

    def __init__(self, out, name, settings):
        self.name, self.settings = name, settings
        self.folder = Path(out) / name

    def config(self):
        """The config of the finished stage, or None. Raises Refused if other settings made it."""
        if not (self.folder / SUMS).exists():
            return None
        config = read_json(self.folder / "config.json")
        self.compare(config["settings"])
        return config

    def compare(self, found):
        """Raise Refused, naming the differences, if the settings are not this stage's."""
        names = [name for name in sorted({*found, *self.settings})
                 if found.get(name) != self.settings.get(name)]
        differ = [f"{name} was {found.get(name)}, now {self.settings.get(name)}" for name in names]
        if differ:
            raise Refused(f"{str(self.folder)!r} holds a stage made with other settings "
                          f"({'; '.join(differ[:4])}); use another --out, or delete it")

    def finish(self, **facts):
        """Declare the stage finished. `facts` are what later stages and the tables read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state.pt").unlink(missing_ok=True)
        files = sorted({path.name for path in self.folder.iterdir() if path.is_file()
                        and path.suffix != ".new"} - {"config.json", SUMS})  # .new: left by a kill
        write_json(self.folder / "config.json", {
            "settings": self.settings, "commit": COMMIT, "torch": torch.__version__, **facts,
            "files": files})
        lines = [sum_of(self.folder / name) for name in [*files, "config.json"]]
        write_text(self.folder / SUMS, "\n".join(lines) + "\n")

    def save_state(self, **state):
        write_tensors(self.folder / "state.pt", state | {"settings": self.settings})

    def load_state(self):
        """The last checkpoint, or None. Raises Refused if it is damaged, or of other settings."""
        path = self.folder / "state.pt"
        if not path.exists():
            return None
        state = read_tensors(path)
        self.compare(state["settings"])
        return state
