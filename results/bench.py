"""How long things take, each beside what it is compared with, on a CPU.

    python results/bench.py               after train.py: all of these, into bench.json
    python results/bench.py --only ask

    step      one training step of the source LLM, beside one of a GPT-2 of the same width and
              depth, built and trained as in nanoGPT, on the same documents
    skill     seconds of training until an LLM reads rasters: ours by its recipe, beside that GPT-2
              with three times as many steps, at several learning rates
    generate  40 tokens after each of 20 texts without the cache, beside the same with it
    ask       a cold `python evaluate.py --image .. --ask ..`, beside a cold `import torch`

Seconds depend on the machine and on the hour; only ratios within a run mean anything. In `skill`
two models are trained side by side, a thread each. Interrupted? Run the same command again.
"""
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from timeit import timeit

import torch
import torch.nn as nn
import torch.nn.functional as F

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the project, one folder up

import train
from data.corpus import encode, in_scene, raster, turn
from data.files import Stage, read_json, write_json
from data.run import Job, Parser, make_stages, run_command
from data.world import ask_any, make_scene

RATES = [0.000125, 0.00025, 0.0005, 0.001, 0.002, 0.004]  # of AdamW, for the rival
GOAL = 0.9  # share of questions about rasters that are answered exactly
TIMES = 20  # how often things are timed; the median counts


class GPT2(nn.Module):
    """The rival, as nanoGPT builds it: learned positions, GELU, one matrix for embedding and head.
    (Its norms have no gains, as ours have none.)"""

    def __init__(self, config):
        super().__init__()
        C, layers, self.H = config.C, config.layers, config.H
        self.embed, self.position = (nn.Embedding(n, C) for n in (config.V, config.context))
        self.qkv, self.out, self.up, self.down = (
            nn.ModuleList(nn.Linear(i * C, o * C, bias=False) for _ in range(layers))
            for i, o in ((1, 3), (1, 1), (1, 4), (4, 1)))
        self.norm = nn.LayerNorm(C, elementwise_affine=False)
        self.head = nn.Linear(C, config.V, bias=False)
        self.head.weight = self.embed.weight
        for name, p in self.named_parameters():
            shrink = (2 * layers) ** -0.5 if name.startswith(("out", "down")) else 1.0
            nn.init.normal_(p, std=0.02 * shrink)

    def hidden(self, x):
        """What the head reads: x (B, T, C) -> (B, T, C)"""
        x = x + self.position.weight[:x.size(1)]
        for qkv, out, up, down in zip(self.qkv, self.out, self.up, self.down):
            q, k, v = qkv(self.norm(x)).unflatten(2, (3, self.H, -1)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, c)
            x = x + out(y.transpose(1, 2).flatten(2))  # (B, T, C)
            x = x + down(F.gelu(up(self.norm(x))))  # (B, T, C)
        return self.norm(x)


def new_llm(s, rate=None):
    """(model, its optimisers, its vocabulary): ours, or the rival at a learning rate of AdamW."""
    llm, encoding, _ = train.new_llm(s, "llm_source")
    if rate is None:
        return llm, train.optimizers_of(s.llm_matrix_lr, s.llm_lr, llm), encoding
    rival = GPT2(llm.config)
    adamw = torch.optim.AdamW(rival.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.1)
    return rival, [adamw], encoding


def documents_of(s, encoding, batch):
    """What the source LLM reads in one step of train.pretrain_llm, as samples."""
    documents = (s.dataset.document("source", s.seed, i, s.llm_rasters, s.llm_turns, s.llm_captions)
                 for i in range(batch * s.llm_batch, (batch + 1) * s.llm_batch))
    return [train.Sample(ids, [max(weight, s.llm_text_weight) for weight in weights])
            for ids, weights in (encode(encoding, document) for document in documents)]


def train_step(s, llm, optimizers, samples, record=float):
    """One step on samples; the rival's gradients are clipped. `record` gets the loss before the
    weights change."""
    weight = sum(sum(sample.weights[1:]) for sample in samples)
    loss = sum(train.text_loss(s, llm, part) for part in train.by_length(samples)) / weight
    loss.backward()
    if isinstance(llm, GPT2):
        nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
    record(loss.item())
    train.update(optimizers)


# ---- seconds to a skill -------------------------------------------------------------------------

def raster_questions(encoding, n):
    """Rasters of unread scenes, each with a question and its answer, which alone has a weight."""
    rng, samples = Random("bench"), []
    for scene in [make_scene("text:test", 0, i) for i in range(n)]:
        body, qa = in_scene(raster(scene, rng)), ask_any(scene, rng)
        samples.append(train.Sample(*encode(encoding, body + turn(qa.question, qa.answer))))
    return samples


@torch.no_grad()
def exact_match(llm, samples):
    """The share of answers of which every token is the likeliest after the true ones before it:
    these are the ones that greedy generation gets right."""
    ids, weights = train.padded(samples)  # 2 x (B, T)
    likeliest = llm.head(llm.hidden(llm.embed(ids[:, :-1]))).argmax(-1)  # (B, T - 1)
    wrong = (likeliest != ids[:, 1:]) & (weights[:, 1:] > 0)  # (B, T - 1)
    return 1 - wrong.any(1).float().mean().item()


def learn_to_read(s, stage, rate, steps):
    """Train an LLM, and note [seconds, exact match] on the way."""
    llm, optimizers, encoding = new_llm(s, rate)
    exam = raster_questions(encoding, min(500, 5 * s.test_pictures))  # a smoke run asks fewer
    run = train.Run(s, stage, [llm], optimizers, steps)

    def measure():
        run.measured.append([run.seconds, exact_match(llm, exam)])

    for batch in run:
        if run.step % max(1, s.llm_source_steps // 25) == 0:
            run.seconds -= timeit(measure, number=1)  # these seconds are no training
        train_step(s, llm, optimizers, documents_of(s, encoding, batch), run.record)
    measure()
    reached = [seconds for seconds, right in run.measured if right >= GOAL]
    stage.finish(seconds=run.seconds, scores={"val": {"exact_match": run.measured[-1][1]}}, design={
        "params": train.size_of(llm), "steps": steps, "seconds": run.seconds,
        "seconds_to_goal": reached[0] if reached else None, "curve": run.measured})


def bench_skill(s):
    settings, jobs = train.open_stage(s, "llm_source").settings, []
    for name, rate, longer in [("ours", None, 1)] + [(f"gpt2-{r}-3x", r, 3) for r in RATES]:
        about = {"rate": rate, "steps": longer * s.llm_source_steps}
        jobs.append(Job(learn_to_read, Stage(s.out, f"bench/{name}", settings | about), about))
    make_stages(s, jobs, train.say_scores)
    designs = {job.stage.folder.name: job.stage.config()["design"] for job in jobs}
    ours, *rivals = [design["seconds_to_goal"] for design in designs.values()]
    reached = [seconds for seconds in rivals if seconds]
    ratio = min(reached) / ours if ours and reached else None  # None: one of them never did
    return {"goal": GOAL, "designs": designs, "ratio": ratio}


# ---- two things in turn -------------------------------------------------------------------------

def in_turn(**things):
    """The median seconds of two functions, called in turn, and their ratio."""
    took = [[timeit(do, number=1) for do in things.values()] for _ in range(TIMES)]
    first, second = map(median, zip(*took))
    return dict(zip(things, (first, second)), ratio=first / second)


def bench_step(s):
    ours, rival = new_llm(s), new_llm(s, RATES[0])
    samples = documents_of(s, ours[2], 0)
    return in_turn(ours=partial(train_step, s, *ours[:2], samples),
                   gpt2=partial(train_step, s, *rival[:2], samples))


def bench_generate(s):
    llm, ids = new_llm(s)[0], torch.zeros(20, 100, dtype=torch.long)  # no matter which tokens

    def generate(tokens, *lengths):
        for T in lengths:
            llm.generate(llm.embed(ids[:, :T]), [], tokens)

    return in_turn(uncached=partial(generate, 1, *range(60, 100)), cached=partial(generate, 40, 60))


def bench_ask(s):
    def python(*arguments):
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    ask = ["--image", ROOT / train.example_picture(s), "--ask", "what color is the circle?"]
    return in_turn(ask=partial(python, ROOT / "evaluate.py", "--out", s.out, *ask),
                   import_torch=partial(python, "-c", "import torch"))


# ---- python results/bench.py --------------------------------------------------------------------

BENCHES = {"step": bench_step, "skill": bench_skill, "generate": bench_generate, "ask": bench_ask}


def main():
    parser = Parser(__doc__)
    parser.add_argument("--out", default="out", help="the folder of train.py (default: out)")
    parser.add_argument("--only", choices=BENCHES, help="one of these (default: all)")
    args = parser.parse_args()
    s = replace(train.load_settings(args.out), device="cpu", precision="fp32", threads=2)
    torch.set_num_threads(1)  # as in a lane of train.py
    path = Path(args.out) / "bench.json"
    result = read_json(path) if path.exists() else {}
    for name in [args.only] if args.only else BENCHES:
        result[name] = BENCHES[name](s) | {"torch": torch.__version__}
        write_json(path, result)
        print(f"{name:10}", *(f"{key} {x:.4f}   " for key, x in result[name].items()
                              if isinstance(x, float)), flush=True)


if __name__ == "__main__":
    run_command(main)
