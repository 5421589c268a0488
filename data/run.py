"""Plumbing: the command line, and stages side by side."""
import argparse
import difflib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Callable, NamedTuple

import torch
from tqdm import tqdm

from data.files import RANK, RANKS, Refused, Stage, locked, read_summed, write_summed


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and which suggests the nearest flag."""

    def __init__(self, description):
        self.flags = []
        super().__init__(description=description, allow_abbrev=False, usage=argparse.SUPPRESS,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def add_argument(self, *flags, **kwargs):
        self.flags += flags
        return super().add_argument(*flags, **kwargs)

    def add_fields(self, settings):
        """A flag per field of a dataclass, with help from its metadata (--no-x for a bool).
        parse_args then returns only the flags that were given."""
        for f in fields(settings):
            flag = f"--{f.metadata['flag'] or f.name}"
            default = f"(default: {f.default})" if f.default not in ("", ()) else ""
            about = {"help": f"{f.metadata['help']} {default}", "default": argparse.SUPPRESS,
                     "dest": f.name}
            if f.metadata["choices"]:
                self.add_argument(flag, choices=f.metadata["choices"], **about)
            elif f.type is bool:
                self.add_argument(flag, action=argparse.BooleanOptionalAction, **about)
            elif f.type is tuple:
                self.add_argument(flag, nargs="+", metavar="FILE", **about)
            else:
                self.add_argument(flag, type=f.type, metavar=f.type.__name__.upper(), **about)

    def parse_args(self, argv=None):
        args, unknown = self.parse_known_args(argv)
        if unknown:
            near = difflib.get_close_matches(unknown[0].split("=")[0], self.flags, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.error(f"unknown setting {unknown[0]!r}{hint}")
        return args

    def error(self, message):
        raise Refused(f"{message}; see python {self.prog} --help")


def number(low, high=10 ** 6):
    """A type for flags: a whole number in this range"""
    def parse(text):
        if not (re.fullmatch(r"\d{1,9}", text) and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {low} to {high}")
        return int(text)
    return parse


def seed_list(text):
    """A type for flags: '0,1,2' -> [0, 1, 2]"""
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers of at most nine digits "
                                         "with commas, as in 0,1,2")
    return list(dict.fromkeys(int(seed) for seed in text.split(",")))


NO_MEMORY = "out of memory|allocate memory|not enough memory"  # as torch reports it


class Stopped(KeyboardInterrupt):
    """A signal has ended the work; what a checkpoint should hold is saved."""


class Stop:
    """What signals have asked for. Within a step of training, the step is finished and saved first;
    otherwise a process ends at once."""
    in_step = False
    signal = None  # the first

    @classmethod
    def command(cls, number, frame):
        """A command is stopped; a second signal does not wait, and the last checkpoint is good."""
        if cls.signal:
            os._exit(128 + number)
        cls.signal = signal.Signals(number)
        if not cls.in_step:
            raise Stopped(cls.signal)

    @classmethod
    def lane(cls, number, frame):
        """A lane is stopped, by its command."""
        cls.signal = signal.Signals(number)
        if not cls.in_step:
            os._exit(128 + number)


def run_command(main):
    """Run a command; errors that a user can fix are one line."""
    Stop.in_step, Stop.signal = False, None
    signal.signal(signal.SIGTERM, Stop.command)
    signal.signal(signal.SIGINT, Stop.command)
    try:
        if RANKS > 1:
            join_ranks()
        main()
    except Stopped:
        print(f"stopped by {Stop.signal.name}; run the same command again to continue",
              file=sys.stderr)
        sys.exit(128 + Stop.signal)
    except BrokenProcessPool:
        sys.exit("a process was killed (out of memory?); run the same command again to continue")
    except (Refused, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(NO_MEMORY, str(error)):
            raise
        print("error: out of memory; try a smaller batch or model (see --help), another --out, and "
              "fewer programs at a time", file=sys.stderr)
        sys.exit(2)


def join_ranks():
    """Under torchrun, meet the other processes. Each has a GPU of its own, if there are any."""
    gpus, own = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if gpus:
        if own >= gpus:
            raise Refused(f"torchrun --nproc_per_node: expected at most {gpus}, a GPU for each")
        torch.cuda.set_device(own)
    torch.distributed.init_process_group()  # NCCL between GPUs, gloo between CPUs
    if RANK > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # the first process speaks


# ---- stages side by side ------------------------------------------------------------------------

class Job(NamedTuple):
    """A stage to be made, make(s, stage, **arguments), when those in `after` are finished."""
    make: Callable
    s: Any  # settings
    stage: Stage
    arguments: dict = {}
    after: tuple = ()  # stages


def work(job):
    """Make a stage, unless it is there already."""
    if job.stage.config() is None:
        job.make(job.s, job.stage, **job.arguments)


def say_scores(job):
    """A line about a stage that is finished. Scores on val, for these may guide a choice."""
    config = job.stage.config()
    scores = config["scores"].get("val", config["scores"])
    said = [f"{name} {value:.3f}" for name, value in scores.items() if isinstance(value, float)]
    print(f"{job.stage.name}: {', '.join(said)}  ({config['seconds']:.0f} s)", flush=True)


@contextmanager
def lanes(s, most, say=say_scores):
    """Lock --out and yield run(jobs): at most `most` stages at a time, each in a process of its
    own. Of the jobs that could begin, the first in the list does. say(job) is called when one is
    finished.

    On a CPU, two stages on one thread each finish sooner than one after the other on two threads. A
    lane keeps its thread count even when others idle: sums would round differently, and a resumed
    run would not match bit for bit. An accelerator makes one stage at a time.
    """
    count = min(s.threads, most) if s.device == "cpu" and RANKS == 1 else 1
    if count == 1:
        with locked(s.out):
            yield lambda jobs: one_by_one(jobs, say)
        return
    # otherwise glibc returns large blocks to the system and refetches them at every step
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2 ** 25))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2 ** 30))
    context = multiprocessing.get_context("spawn")
    with (locked(s.out),
          ProcessPoolExecutor(count, context, begin_lane, (s.threads // count,)) as pool):
        try:
            yield lambda jobs: side_by_side(pool, count, jobs, say)
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def one_by_one(jobs, say):
    """Each job comes after those it needs."""
    for job in jobs:
        work(job)
        say(job)


def side_by_side(pool, count, jobs, say):
    """The same, `count` at a time."""
    waiting, running = list(jobs), {}
    while waiting or running:
        unfinished = {job.stage.folder for job in [*waiting, *running.values()]}
        ready = [job for job in waiting
                 if not any(stage.folder in unfinished for stage in job.after)]
        for job in ready[:count - len(running)]:
            waiting.remove(job)
            running[pool.submit(work, job)] = job
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            future.result()  # raises what the stage raised
            say(job)


def begin_lane(threads):
    """In each process of `lanes`, before its first stage."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop,
    signal.signal(signal.SIGTERM, Stop.lane)  # and says so
    tqdm.set_lock(threading.RLock())  # one per process: a shared semaphore would outlive them
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def lane():
    """The number of this process, from 0 in a command's first lanes: the line of its bar."""
    _, _, number = multiprocessing.current_process().name.rpartition("-")  # SpawnProcess-1
    return int(number) - 1 if number.isdigit() else 0


@contextmanager
def stopwatch(path):
    """Add the block's seconds to those in a file, even if the block fails."""
    began, before = time.perf_counter(), seconds_in(path)
    try:
        yield
    finally:
        write_summed(path, {"seconds": before + time.perf_counter() - began})


def seconds_in(path):
    return read_summed(path)["seconds"] if path.exists() else 0.0
