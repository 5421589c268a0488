"""What is not the subject: the command line, and stages made side by side."""
import argparse
import difflib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Callable, NamedTuple

import torch
from tqdm import tqdm

from data.files import Refused, Stage, read_json, write_json


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and which knows the nearest flag."""

    def __init__(self, description):
        self.flags = []
        super().__init__(description=description, allow_abbrev=False, usage=argparse.SUPPRESS,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def add_argument(self, *flags, **kwargs):
        self.flags += flags
        return super().add_argument(*flags, **kwargs)

    def add_fields(self, settings):
        """A flag for each field of a dataclass whose metadata has its help; --no-x for a bool."""
        for f in fields(settings):
            help, choices = f"{f.metadata['help']} (default: {f.default})", f.metadata["choices"]
            kind = {"type": f.type, "metavar": f.type.__name__.upper()}
            if choices:
                kind = {"choices": choices}
            elif f.type is bool:
                kind = {"action": argparse.BooleanOptionalAction}
            self.add_argument(f"--{f.name}", default=argparse.SUPPRESS, help=help, **kind)

    def parse_args(self, argv=None):
        args, unknown = self.parse_known_args(argv)
        if unknown:
            near = difflib.get_close_matches(unknown[0].split("=")[0], self.flags, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.error(f"unknown setting {unknown[0]!r}{hint}")
        return args

    def error(self, message):
        raise Refused(f"{message}; see python {self.prog} --help")


def seed_list(text):
    """A type for flags: '0,1,2' -> [0, 1, 2]"""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas, as in 0,1,2")
    return list(dict.fromkeys(int(seed) for seed in text.split(",")))


def run_command(main):
    """Run a command; what a user can mend is told in one line."""
    def stop(*_):
        sys.exit("stopped; run the same command again to go on")

    signal.signal(signal.SIGTERM, stop)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to go on")
    except BrokenProcessPool:
        sys.exit("a process was ended from outside (is the memory full?); run the same command "
                 "again to go on")
    except (Refused, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


# ---- stages side by side ------------------------------------------------------------------------

class Job(NamedTuple):
    """A stage to be made: make(s, stage, **arguments)"""
    make: Callable
    s: Any  # settings
    stage: Stage
    arguments: dict = {}


def work(job):
    """Make a stage, unless it is there already."""
    if job.stage.config() is not None:
        print(f"{job.stage.name}: already there", flush=True)
        return
    job.make(job.s, job.stage, **job.arguments)
    config = job.stage.config()
    scores = config.get("scores", config)
    said = [f"{k} {v:.3f}" for k, v in scores.items() if isinstance(v, float) and "second" not in k]
    print(f"{job.stage.name}: {', '.join(said)}  ({config['seconds']:.0f} s)", flush=True)


@contextmanager
def lanes(s, most):
    """Yields run(jobs): at most `most` stages at a time, each in a process of its own.

    On a CPU, two stages on one thread each end sooner than one after the other on two. A lane keeps
    its number of threads when others are idle: with another number, sums are rounded otherwise, and
    a resumed run would not end bit for bit the same. An accelerator makes one stage at a time.
    """
    count = min(s.threads, most) if s.device == "cpu" else 1
    if count == 1:
        yield one_by_one
        return
    # glibc would give large blocks back to the system and fetch them again at every step
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2 ** 25))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2 ** 30))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, begin_lane, (s.threads // count,)) as pool:
        def run(jobs):
            for done in as_completed([pool.submit(work, job) for job in jobs]):
                done.result()

        try:
            yield run
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def one_by_one(jobs):
    for job in jobs:
        work(job)


def begin_lane(threads):
    """In each process of `lanes`, before its first stage."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells when to stop
    tqdm.set_lock(threading.RLock())  # of its own: one shared by processes would outlive them
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def lane():
    """The number of this process's lane, from 0: the line of its progress bar."""
    _, _, number = multiprocessing.current_process().name.rpartition("-")  # SpawnProcess-1
    return int(number) - 1 if number.isdigit() else 0


@contextmanager
def stopwatch(path):
    """Add the seconds of the block to those in a file, however the block ends."""
    began, before = time.perf_counter(), seconds_in(path)
    try:
        yield
    finally:
        write_json(path, before + time.perf_counter() - began)


def seconds_in(path):
    return read_json(path) if path.exists() else 0.0
