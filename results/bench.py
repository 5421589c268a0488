"""How long things take, each beside what it is compared with, in one run, on a CPU.

    python results/bench.py               after train.py: all of it, into bench.json and bench.png
    python results/bench.py --only ask    some of: step, skill, generate, ask, memory

    step      one training step of the source LLM, beside one of a GPT-2 of the same size, built as
              nanoGPT does and trained with AdamW, on the same documents
    skill     seconds of training until an LLM reads rasters: ours by its recipe, and that GPT-2 at
              several learning rates with three times as many steps, and at the best of these with
              as many and with six times as many: whatever reaches the goal first counts
    generate  text with the cache, beside the same without
    ask       a cold `python evaluate.py --image .. --ask ..`, beside a cold `import torch`
    memory    a long training of the source LLM, at its end beside near its start; and the most that
              the whole `python train.py` takes, lanes included (on Linux)

Seconds depend on the machine and on the hour; only ratios within a run mean anything. In `skill`,
two models are trained side by side, a thread each. Finished ones are kept in --out, so a killed run
goes on.
"""
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project, one folder up

import train
from data.bpe import BOS
from data.corpus import PREFIX, encode, prompt, raster, turn
from data.files import Refused, Stage, read_json, write_json
from data.loop import Loop, optimizers, size_of
from data.run import Job, Parser, lanes, run_command
from data.settings import load_settings
from data.world import ask_any, make_scene
from model import load_llm
from results.collect import samples_to
from results.figures import Line, line_plot
from train import Sample, check, documents_of, open_stage, padded, targets, text_losses

ROOT = Path(__file__).parent.parent
RATES = [0.000125, 0.00025, 0.0005, 0.001, 0.002, 0.004]  # of AdamW, for the rival
TIMES = [1, 6]  # its steps, as a multiple of ours, at the best rate; 3 at all of them
GOAL = 0.9  # share of questions about rasters that are answered exactly


# ---- the rival: a GPT-2 as nanoGPT builds and trains it ------------------------------------------

class GPT2Block(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.H = H
        self.norm1, self.norm2 = nn.LayerNorm(C, bias=False), nn.LayerNorm(C, bias=False)
        self.qkv, self.out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.up, self.down = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.H, C // self.H).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, C/H)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT2(nn.Module):
    """Learned positions, LayerNorm, GELU, one matrix for embedding and head."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.V, config.C)
        self.position = nn.Embedding(config.context, config.C)
        self.blocks = nn.ModuleList(GPT2Block(config.C, config.H) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.C, bias=False)
        self.head = nn.Linear(config.C, config.V, bias=False)
        self.head.weight = self.embedding.weight
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
        for block in self.blocks:
            for matrix in (block.out.weight, block.down.weight):
                nn.init.normal_(matrix, std=0.02 / (2 * config.layers) ** 0.5)

    def embed(self, ids):
        return self.embedding(ids)

    def hidden(self, x):
        """x (B, T, C) -> what the head reads (B, T, C)"""
        x = x + self.position.weight[:x.size(1)]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class ClippedAdamW(torch.optim.AdamW):
    """AdamW as nanoGPT uses it: gradients clipped to norm 1, weight decay for matrices only."""

    def __init__(self, model, lr):
        matrices = [p for p in model.parameters() if p.dim() == 2]
        others = [p for p in model.parameters() if p.dim() != 2]
        super().__init__([{"params": matrices, "weight_decay": 0.1},
                          {"params": others, "weight_decay": 0.0}], lr, betas=(0.9, 0.95))

    def step(self):
        nn.utils.clip_grad_norm_([p for g in self.param_groups for p in g["params"]], 1.0)
        super().step()


def new_llm(s, rate=None):
    """(model, its optimisers, encoding): ours, or the rival with this learning rate."""
    llm, encoding, _ = train.new_llm(s, "llm_source")
    if rate is None:
        return llm, optimizers(s.llm_matrix_lr, s.llm_lr, llm), encoding
    torch.manual_seed(s.seed)
    llm = GPT2(llm.config)
    return llm, [ClippedAdamW(llm, rate)], encoding


# ---- the benchmarks ------------------------------------------------------------------------------

def bench_step(s):
    """Median seconds of a training step, ours and the rival's in turn."""
    made = {"ours": new_llm(s), "gpt2": new_llm(s, RATES[0])}
    took = {design: [] for design in made}
    for step in range(40):
        documents = documents_of(s, "source", step)
        for design, (llm, its_optimizers, encoding) in made.items():
            began = time.perf_counter()
            for loss in text_losses(s, llm, encoding, documents):
                loss.backward()
            for optimizer in its_optimizers:
                optimizer.step()
                optimizer.zero_grad()
            took[design].append(time.perf_counter() - began)
    ours, rival = (statistics.median(seconds) for seconds in took.values())
    return {"ours": ours, "gpt2": rival, "ratio": ours / rival}


def raster_questions(n):
    """A raster of an unread scene and a question about it, as documents."""
    rng, documents = random.Random("bench"), []
    for i in range(n):
        scene = make_scene("text:test", 0, i)
        body, qa = raster(scene, rng), ask_any(scene, rng)
        documents.append([(PREFIX + body, 0.0)] + turn(qa.question, qa.answer))
    return documents


@torch.no_grad()
def exact_match(s, llm, samples):
    """The share of answers of which every token is the likeliest after the true ones before it:
    these are the ones that greedy generation gets right."""
    ids, weights = padded(samples)  # 2 x (B, T)
    wanted, answers, _ = targets(ids[:, 1:], weights[:, 1:], s.device)  # 2 x (n,)
    hidden = llm.hidden(llm.embed(ids[:, :-1].to(s.device)))  # (B, T - 1, C)
    likeliest = llm.head(hidden.flatten(0, 1)[wanted]).argmax(-1)  # (n,)
    wrong = (wanted // (ids.size(1) - 1))[likeliest != answers]  # the rows of wrong tokens
    return 1 - len(wrong.unique()) / len(samples)


def learn_to_read(s, stage, rate, steps):
    """Train on the source LLM's documents, and note [seconds, exact match] on the way."""
    llm, its_optimizers, encoding = new_llm(s, rate)
    questions = min(500, 5 * s.test_pictures)  # a smoke run asks fewer
    exam = [Sample(*encode(encoding, document)) for document in raster_questions(questions)]

    def measure():
        llm.eval()
        return [loop.seconds, exact_match(s, llm, exam)]

    every = max(1, s.llm_source_steps // 25)
    loop = Loop(s, stage, [llm], its_optimizers, steps, measure, {*range(0, steps, every), steps})
    for step in loop:
        loop.update(text_losses(s, llm, encoding, documents_of(s, "source", step)))
    curve = [point for _, point in loop.measured]
    stage.finish(seconds=loop.seconds, params=size_of(llm), steps=steps, curve=curve,
                 seconds_to_goal=samples_to(curve, GOAL), scores={"exact match": curve[-1][1]})


def skill_job(s, rate, times):
    """A model to be trained: ours, or the rival with a rate, for so many times our steps."""
    name = "ours" if rate is None else f"gpt2-{rate}-{times}x"
    steps = times * s.llm_source_steps
    settings = open_stage(s, "llm_source").settings | {"rate": rate, "steps": steps}
    stage = Stage(s.out, f"bench/{name}", settings)
    return Job(learn_to_read, s, stage, {"rate": rate, "steps": steps})


def bench_skill(s):
    """Seconds of training until GOAL, of ours and of the rival in all its runs."""
    jobs = [skill_job(s, None, 1)] + [skill_job(s, rate, 3) for rate in RATES]
    with lanes(s, most=2) as run:
        run(jobs)

        def how_good(job):
            config = job.stage.config()
            return -(config["seconds_to_goal"] or math.inf), config["curve"][-1][1]

        best = max(jobs[1:], key=how_good)
        more = [skill_job(s, best.arguments["rate"], times) for times in TIMES]
        run(more)
    kept = ("params", "steps", "seconds", "seconds_to_goal", "curve")
    designs = {}
    for job in jobs + more:
        config = job.stage.config()
        designs[job.stage.name.removeprefix("bench/")] = {key: config[key] for key in kept}
    ours, *reached = [designs[name]["seconds_to_goal"] for name in designs]
    reached = [seconds for seconds in reached if seconds is not None]
    ratio = min(reached) / ours if reached and ours else None  # None: one of them never did
    return {"goal": GOAL, "designs": designs, "ratio": ratio}


@torch.no_grad()
def bench_generate(s):
    """Median seconds of 40 more tokens for 20 texts, with the cache and without, in turn."""
    llm, encoding = load_llm(Path(s.out) / "llm_source")
    scene, rng = make_scene("text:test", 0, 0), random.Random(0)
    text = PREFIX + raster(scene, rng) + prompt("describe the scene.")
    ids = torch.tensor([encoding.encode(text, allowed_special={BOS})] * 20)
    took = {"cached": [], "uncached": []}
    for _ in range(5):
        began = time.perf_counter()
        llm.generate(llm.embed(ids), stops=[], max_tokens=40)
        took["cached"].append(time.perf_counter() - began)
        began, longer = time.perf_counter(), ids
        for _ in range(40):
            hidden = llm.hidden(llm.embed(longer))[:, -1]  # (20, C)
            following = llm.head(hidden).argmax(-1)  # (20,)
            longer = torch.cat([longer, following[:, None]], dim=1)
        took["uncached"].append(time.perf_counter() - began)
    cached, uncached = (statistics.median(seconds) for seconds in took.values())
    return {"cached": cached, "uncached": uncached, "ratio": uncached / cached}


def bench_ask(s):
    """Median seconds of a cold question, and of importing torch, in turn."""
    commands = {"ask": ["evaluate.py", "--out", s.out, "--image", "results/picture.png",
                        "--ask", "what color is the circle?"],
                "import_torch": ["-c", "import torch"]}
    took = {name: [] for name in commands}
    for _ in range(5):
        for name, arguments in commands.items():
            began = time.perf_counter()
            done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True)
            if done.returncode:
                raise Refused(done.stderr.decode().strip())
            took[name].append(time.perf_counter() - began)
    ask, bare = (statistics.median(seconds) for seconds in took.values())
    return {"ask": ask, "import_torch": bare, "ratio": ask / bare}


def memory_of(pid):
    """The megabytes of a process and all that it has started; what they share is counted once."""
    proc, kilobytes = Path("/proc") / str(pid), 0
    try:
        for line in (proc / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                kilobytes = int(line.split()[1])
        children = [pid for thread in (proc / "task").iterdir()
                    for pid in (thread / "children").read_text().split()]
    except OSError:  # it has ended
        return 0.0
    return kilobytes / 1000 + sum(memory_of(child) for child in children)


def watch(s, *flags):
    """The megabytes that train.py takes, every half second."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["train.py", "--preset", s.preset, "--out", folder, "--device", "cpu", *flags]
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        taken = []
        while process.poll() is None:
            taken.append(memory_of(process.pid))
            time.sleep(0.5)
    if process.returncode:
        raise Refused(f"python {' '.join(arguments)} has failed")
    return taken


def bench_memory(s):
    """Megabytes: the peak of the whole run; a long training's last tenth and second tenth."""
    steps = 5000 if s.preset == "laptop" else 100
    taken = watch(s, "--stages", "llm_source", "--llm_source_steps", str(steps), "--threads", "2")
    tenth = len(taken) // 10
    early, late = statistics.mean(taken[tenth:2 * tenth]), statistics.mean(taken[-tenth - 1:-1])
    return {"steps": steps, "early": early, "late": late, "ratio": late / early,
            "peak": max(watch(s))}


# ---- python results/bench.py ---------------------------------------------------------------------

BENCHES = {"step": bench_step, "skill": bench_skill, "generate": bench_generate, "ask": bench_ask,
           "memory": bench_memory}


def plot_skill(skill, path):
    lines = {}
    for design, of in skill["designs"].items():
        name = "ours"
        if design != "ours":
            _, rate, times = design.split("-")
            name = f"nanoGPT's design, {times} steps, AdamW {rate}"
        lines[name] = Line(*zip(*of["curve"]))
    line_plot(path, "Learning to read a grid of words", [("exact match on unread rasters", lines)],
              "seconds of training (log)", "One run, two models at a time, a thread each.",
              log=True)


def main():
    parser = Parser(__doc__)
    parser.add_argument("--out", default="out",
                        help="the folder that train.py wrote (default: out)")
    parser.add_argument("--only", default=",".join(BENCHES), metavar="NAME,NAME",
                        help=f"some of {', '.join(BENCHES)} (default: all)")
    args = parser.parse_args()
    names = args.only.split(",")
    for name in names:
        if name not in BENCHES:
            raise Refused(f"--only {name}: expected some of {', '.join(BENCHES)}")
    s = replace(load_settings(args.out), out=str(Path(args.out).resolve()), device="cpu",
                precision="fp32")
    check(s)
    torch.set_num_threads(1)  # as in a lane of train.py
    path = Path(s.out) / "bench.json"
    result = read_json(path) if path.exists() else {}
    for name in names:
        result[name] = BENCHES[name](s) | {"torch": torch.__version__}
        print(f"{name}: ratio {result[name]['ratio']}", flush=True)
        write_json(path, result)
    if "skill" in names:
        plot_skill(result["skill"], Path(s.out) / "bench.png")


if __name__ == "__main__":
    run_command(main)
