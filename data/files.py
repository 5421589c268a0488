"""Files: every stage is a folder, and this is how its files are written and read.

    config.json   settings and scores; written last, so that a stage that has one is finished
    state.pt      where an unfinished stage can go on
    log.csv       the loss over the steps
    the rest      what the stage has made: weights, tokenizer, features
"""
import json
import os
import pickle
import subprocess
from pathlib import Path

import torch


class Refused(Exception):
    """A user's mistake, or something a user can fix: the command prints it in one line."""


def write_aside(path, save):
    """Let save() write a file next to path, then rename it: nobody ever sees half a file."""
    aside = path.with_name(path.name + ".new")
    try:
        save(aside)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        why = str(error).splitlines()[0]
        raise Refused(f"cannot write {str(path)!r}: {why}; free some space or check the folder, "
                      "then run the same command again to continue") from error
    os.replace(aside, path)


def write_text(path, text):
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path, data):
    write_text(path, json.dumps(data, indent=1))


def write_tensors(path, data):
    """Write a dict of tensors, such as a module's state_dict()."""
    write_aside(path, lambda aside: torch.save(data, aside))


def read_tensors(path, device="cpu", mmap=False):
    """What write_tensors wrote. Only tensors and plain values are read: no file can run code."""
    try:
        return torch.load(path, map_location=device, mmap=mmap, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise Refused(f"cannot read {str(path)!r}: it is damaged; delete its folder and run the "
                      "command that made it again") from error


def read_json(path):
    """What write_json wrote. Raises Refused if it is missing."""
    if not path.exists():
        raise Refused(f"there is no {str(path)!r}; run 'python train.py --out FOLDER' first")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refused(f"cannot read {str(path)!r} ({error}); delete it and run the command that "
                      "made it again") from error


def find_commit():
    """The commit of this code, with a + if files were changed since; "" where git knows none."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty=+", "--exclude=*"],
                              cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git
        return ""
    return done.stdout.strip()


COMMIT = find_commit()  # when the code was loaded


class Stage:
    """One stage's folder in --out, and the settings that decide what it holds."""

    def __init__(self, out, name, settings):
        self.name = name
        self.folder = Path(out) / name
        self.settings = settings

    def config(self):
        """The config of the finished stage, or None. Raises Refused if other settings made it."""
        path = self.folder / "config.json"
        if not path.exists():
            return None
        config = read_json(path)
        self.compare(config.get("settings", {}))
        return config

    def compare(self, found):
        """Raise Refused, naming the differences, if the settings are not this stage's."""
        differ = []
        for name in sorted({*found, *self.settings}):
            old, new = found.get(name), self.settings.get(name)
            if old != new:
                differ.append(f"{name} was {old}, now {new}")
        if differ:
            raise Refused(f"{str(self.folder)!r} holds a stage made with other settings "
                          f"({'; '.join(differ[:4])}); use another --out, or delete it")

    def finish(self, **facts):
        """Declare the stage finished. `facts` are what later stages and the tables read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "config.json", {
            "stage": self.name, "settings": self.settings, "commit": COMMIT,
            "torch": torch.__version__, **facts})
        (self.folder / "state.pt").unlink(missing_ok=True)

    def load_state(self, device):
        """What save_state saved, or None. Raises Refused if it was made with other settings."""
        path = self.folder / "state.pt"
        if not path.exists():
            return None
        state = read_tensors(path, device)
        self.compare(state["settings"])
        return state

    def save_state(self, **state):
        state["settings"] = self.settings
        write_tensors(self.folder / "state.pt", state)
