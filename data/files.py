"""Files: every stage is a folder, and this is how its files are written and read.

    config.json   settings, scores, the hash of every other file and one of itself; written last,
                  so that a stage that has one is finished
    state-*.pt    where an unfinished stage can go on; step and hash are in the name
    log.csv       the loss over the steps
    the rest      what the stage has made: weights, tokenizer, features

Whatever is read from a finished stage is compared with its hash first.
"""
import functools
import hashlib
import json
import os
import pickle
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # Windows, where folders are not locked
    fcntl = None


class Refused(Exception):
    """A user's mistake, or something a user can fix: the command prints it in one line."""


# Under torchrun, several processes compute the same stages. The first one, rank 0, writes.
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def write_aside(path, save):
    """Let save() write a file next to path, then rename it: nobody ever sees half a file, and a
    power cut leaves the old one or the new one."""
    if RANK > 0:
        return
    aside = path.with_name(path.name + ".new")
    try:
        save(aside)
        with open(aside, "rb") as file:
            os.fsync(file.fileno())  # on the disk before it gets its name
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        aside.unlink(missing_ok=True)
        why = str(error).splitlines()[0]
        raise Refused(f"cannot write {str(path)!r}: {why}; free some space or check the folder, "
                      "then run the same command again to continue") from error
    os.replace(aside, path)


def write_text(path, text):
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path, data):
    write_text(path, json.dumps(data, indent=1))


def write_summed(path, data):
    """Write a dict as JSON, with a hash of itself and of its name: it can't pass for another."""
    data = json.loads(json.dumps(data))  # as it will be read
    write_json(path, data | {"sum": sum_of(path.name, data)})


def write_tensors(path, data):
    """Write a dict of tensors, such as a module's state_dict()."""
    write_aside(path, lambda aside: torch.save(data, aside))


# ---- reading ------------------------------------------------------------------------------------

def damaged(path, why):
    """What a user is told about a file that cannot be used."""
    what = "it"
    if (path.parent / "config.json").exists():
        what = f"the folder {str(path.parent)!r}"
    return Refused(f"cannot read {str(path)!r}: {why}; delete {what} and run the command that made "
                   "it again: what else is finished is kept")


def hash_of(path):
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2 ** 20):
            digest.update(block)
    return digest.hexdigest()


def sum_of(name, data):
    return hashlib.sha256(json.dumps([name, data], sort_keys=True).encode()).hexdigest()


def there(path):
    """The path. Raises Refused if its file is missing."""
    if not path.exists():
        if (path.parent / "config.json").exists():
            raise damaged(path, "it is missing")
        raise Refused(f"there is no {str(path)!r}; run 'python train.py --out FOLDER' first")
    return path


def checked(path):
    """The path. Raises Refused if its file is missing or, in the folder of a finished stage, not as
    the stage left it."""
    there(path)
    if (path.parent / "config.json").exists():
        check_once(path, path.stat().st_mtime_ns)
    return path


@functools.cache
def check_once(path, changed):
    """`changed` is when the file was written last: another file is checked anew."""
    if read_config(path.with_name("config.json"))["files"].get(path.name) != hash_of(path):
        raise damaged(path, "it is not as its stage left it (damaged, or of another stage)")


def read_config(path):
    """A finished stage's config.json."""
    config = read_summed(path)
    if not path.parent.resolve().as_posix().endswith(config["stage"]):
        raise damaged(path, f"it is that of another stage, {config['stage']}")
    return config


def read_summed(path):
    """What write_summed wrote."""
    data = parse_json(there(path))
    if not isinstance(data, dict) or "sum" not in data:
        raise damaged(path, "it is damaged, or of another version of this project")
    if data.pop("sum") != sum_of(path.name, data):
        raise damaged(path, "it was changed after it was written, or is another file")
    return data


def read_tensors(path, device="cpu", mmap=False):
    """What write_tensors wrote. Only tensors and plain values are read: no file can run code."""
    try:
        return torch.load(checked(path), map_location=device, mmap=mmap, weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise damaged(path, "it is damaged") from error


def load_weights(make, path):
    """make(), a module, with the weights in a file. It is made as shapes alone, so that no more
    memory is taken than the file fills. Raises Refused if these are the shapes of another one."""
    try:
        with torch.device("meta"):
            module = make()
        module.load_state_dict(read_tensors(path), assign=True)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise damaged(path, "it does not go with the configuration beside it, or is of another "
                      "version of this project") from error
    return module


def parse_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise damaged(path, f"it is damaged ({error})") from error


def read_json(path):
    """What write_json wrote. Raises Refused if it is missing."""
    return read_config(path) if path.name == "config.json" else parse_json(checked(path))


# ---- folders ------------------------------------------------------------------------------------

ours = set()  # folders that this command has locked


@contextmanager
def locked(out):
    """Only one command at a time changes a folder. Raises Refused if another one does. The system
    takes the lock away when the process ends, however it ends."""
    out = Path(out)
    if not fcntl or RANK > 0 or out.resolve() in ours:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Refused(f"{str(out)!r} is in use by {file.read() or 'another command'}; wait "
                          "until it has ended, or use another --out")
        except OSError:
            pass  # some network file systems have no locks
        file.truncate(0)
        print(f"process {os.getpid()} (python {' '.join(sys.argv)})", end="", file=file, flush=True)
        ours.add(out.resolve())
        try:
            yield
        finally:
            ours.remove(out.resolve())


def move_aside(out):
    """out -> out-old1, or the first such name that is free; nothing is deleted."""
    n = 1
    while (aside := Path(f"{out}-old{n}")).exists():
        n += 1
    os.rename(out, aside)
    return aside


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
        config = read_config(path)
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
        if RANK == 0:
            self.close(facts)
        if RANKS > 1:
            torch.distributed.barrier()  # the others wait until they can read it

    def close(self, facts):
        """Write the config, which makes checkpoints needless."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = {path.name: hash_of(path) for path in sorted(self.folder.iterdir())
                 if path.is_file() and not path.name.startswith(("config.json", "state"))
                 and path.suffix != ".new"}  # what a kill has left half written
        write_summed(self.folder / "config.json", {
            "stage": self.name, "settings": self.settings, "commit": COMMIT,
            "torch": torch.__version__, **facts, "files": files})
        for path in self.folder.glob("state*"):
            path.unlink()

    def states(self):
        """The checkpoints, the last one first: [(step, path), ..]"""
        paths = self.folder.glob("state-*-*.pt")
        return sorted(((int(path.stem.split("-")[1]), path) for path in paths), reverse=True)

    def load_state(self, device):
        """What save_state saved last and is whole, or None. Raises Refused if it was made with
        other settings."""
        for _, path in self.states():
            if path.stem.endswith(hash_of(path)):
                state = read_tensors(path, device)
                self.compare(state["settings"])
                return state
            print(f"{self.name}: {str(path)!r} is damaged and is passed over", flush=True)
        return None

    def save_state(self, step, **state):
        """Keep a checkpoint and the one before it."""
        if RANK > 0:
            return
        before = [path for its_step, path in self.states() if its_step < step][:1]
        path = self.folder / "state.pt"
        write_tensors(path, state | {"step": step, "settings": self.settings})
        named = path.rename(path.with_name(f"state-{step}-{hash_of(path)}.pt"))
        for _, old in self.states():
            if old not in (named, *before):
                old.unlink()
