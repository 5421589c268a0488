"""Commands: errors in one line, signals that save first, and stages side by side."""
import multiprocessing
import os
import signal
import sys
import threading
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, RawDescriptionHelpFormatter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Callable, NamedTuple

import torch
from tqdm import tqdm

from data.files import Refused

LANES = 4  # stages side by side, at most


class Parser(ArgumentParser):
    """argparse with a flag for each field of a dataclass; its errors are one line."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False, usage=SUPPRESS,
                         formatter_class=RawDescriptionHelpFormatter)

    def add_fields(self, settings):
        """A flag per field of a dataclass, with help from its metadata; parse_args then returns
        only the flags that were given."""
        for f in fields(settings):
            about = {"help": f"{f.metadata['help']} (default: {f.default})", "default": SUPPRESS}
            if f.type is bool:
                about["action"] = BooleanOptionalAction
            elif f.metadata["choices"]:
                about["choices"] = f.metadata["choices"]
            else:
                about |= {"type": f.metadata["type"], "metavar": f.type.__name__.upper()}
            self.add_argument(f"--{f.name}", **about)


def number(low, high=10 ** 6, kind=int):
    """A type for flags: a number in this range, whole by default"""
    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise ValueError
        return value

    parse.__name__ = f"number from {low} to {high}"  # argparse tells it: "invalid number from .."
    return parse


def replace_unknown():
    """From now on, what a terminal or a log cannot hold is printed as a question mark, and bytes
    that are no text are read as one."""
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def say(text):
    """Print a line; on a terminal, in place of a progress bar that may stand there."""
    print(("\r\033[K" if sys.stdout.isatty() else "") + text, flush=True)


# ---- one command --------------------------------------------------------------------------------

class Stopped(SystemExit):
    """Ctrl-C or SIGTERM has ended the work."""


class Signals:
    asked = None  # the signal that asks this process to stop
    in_step = False  # within a step of training: it is finished and saved first


def on_signal(number, frame):
    """Stop now, or after this step; a second signal does not wait."""
    if Signals.asked:
        os._exit(128 + number)
    Signals.asked = number
    if not Signals.in_step:
        raise Stopped(128 + number)


@contextmanager
def command():
    """Around a command: what a user can fix is told in one line."""
    replace_unknown()
    Signals.asked, Signals.in_step = None, False
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    except Stopped as stopped:
        name = signal.Signals(stopped.code - 128).name
        print(f"stopped by {name}; run the same command again to continue", file=sys.stderr)
        raise
    except (Refused, OSError, MemoryError, RuntimeError) as error:
        first, *_ = str(error).splitlines() or ["out of memory"]
        if isinstance(error, BrokenProcessPool):
            first = "a process was killed (out of memory?); run the same command again to continue"
        elif isinstance(error, RuntimeError) and "memory" not in first:  # as torch reports it
            raise
        print(f"error: {first}", file=sys.stderr)
        sys.exit(2)


# ---- stages side by side ------------------------------------------------------------------------

class Job(NamedTuple):
    """A stage to be made, make(stage), when those in `after` are finished."""
    make: Callable
    stage: Any
    after: tuple = ()  # names of stages


def make_stages(s, jobs, finished):
    """Make all stages that are not yet made; finished(stage) is called after each.

    On a CPU, two stages on one thread each finish sooner than one after the other on two threads,
    so each is made in a process of its own, a lane; of those that could begin, the first in the
    list does. A lane keeps its number of threads even when others are idle: sums would round
    differently, and a resumed run would not match bit for bit.
    """
    jobs = [job for job in jobs if job.stage.config() is None]
    lanes = min(s.threads, LANES) if s.device == "cpu" else 1
    if lanes == 1 or not jobs:
        for job in jobs:
            job.make(job.stage)
            finished(job.stage)
        return
    # otherwise glibc returns large blocks to the system and refetches them at every step
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2 ** 25))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2 ** 30))
    running, spawn = {}, multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(lanes, spawn, begin_lane, (s.threads // lanes,)) as pool:
        try:
            while jobs or running:
                unfinished = {job.stage.name for job in [*jobs, *running.values()]}
                ready = [job for job in jobs if not unfinished & {*job.after}]
                for job in ready[:lanes - len(running)]:
                    jobs.remove(job)
                    running[pool.submit(job.make, job.stage)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    future.result()  # raises what the stage raised
                    finished(job.stage)
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()  # it saves, and ends
            raise


def begin_lane(threads):
    """In each process, before its first stage."""
    replace_unknown()
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    signal.signal(signal.SIGTERM, on_signal)
    tqdm.set_lock(threading.RLock())  # one per process: a shared semaphore would outlive them
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def lane():
    """The number of this process, from 0: the line of its progress bar."""
    _, _, number = multiprocessing.current_process().name.rpartition("-")  # SpawnProcess-1
    return int(number) - 1 if number.isdigit() else 0
