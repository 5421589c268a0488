"""How long our LLM takes to learn, beside a GPT-2 of the same width and depth, on a CPU.

    python results/bench.py     after train.py: both of these, into bench.json

    step      the seconds of a training step, on the same documents
    skill     how well an LLM reads rasters, after so many seconds of training: ours by its recipe,
              the GPT-2 as in nanoGPT, with three times as many steps, at several learning rates

Seconds depend on the machine and on the hour; only ratios within a run mean anything. In `skill`
two models are trained side by side, a thread each. Interrupted? Run the same command again.
"""
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

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project, one folder up

import train
from data.corpus import encode, in_scene, raster, turn
from data.files import Stage, write_json
from data.run import Job, Parser, make_stages, command, say
from data.world import ask_any, make_scene

RATES = [0.000125, 0.00025, 0.0005, 0.001, 0.002, 0.004]  # of AdamW, for the rival


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


def documents_of(s, encoding, step):
    """What the source LLM reads in one step of train.pretrain_llm, as samples."""
    documents = (s.dataset.document("source", s.seed, i, s.llm_rasters, s.llm_turns, s.llm_captions)
                 for i in range(step * s.llm_batch, (step + 1) * s.llm_batch))
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


def bench_step(s):
    """The median seconds of twenty steps of each, taken in turn, and their ratio."""
    models = [new_llm(s), new_llm(s, RATES[0])]
    samples = documents_of(s, models[0][2], 0)
    steps = [partial(train_step, s, *model[:2], samples) for model in models]
    took = [[timeit(step, number=1) for step in steps] for _ in range(20)]
    ours, gpt2 = map(median, zip(*took))
    return {"ours": ours, "gpt2": gpt2, "ratio": ours / gpt2}


# ---- learning a skill ---------------------------------------------------------------------------

def raster_questions(encoding, n):
    """Rasters of unread scenes, each with a question and its answer, which alone has a weight."""
    rng, samples = Random("bench"), []
    for scene in [make_scene("text:test", 0, i) for i in range(n)]:
        body, qa = in_scene(raster(scene, rng)), ask_any(scene, rng)
        samples.append(train.Sample(*encode(encoding, body + turn(qa.question, qa.answer))))
    return samples


@torch.no_grad()
def examine(run, llm, samples):
    """Note the seconds so far, and the exact match: the share of answers of which every token is
    the likeliest after the true ones before it. These are what greedy generation gets right."""
    ids, weights = train.padded(samples)  # 2 x (B, T)
    likeliest = llm.head(llm.hidden(llm.embed(ids[:, :-1]))).argmax(-1)  # (B, T - 1)
    wrong = (likeliest != ids[:, 1:]) & (weights[:, 1:] > 0)  # (B, T - 1)
    run.measured.append([run.seconds, 1 - wrong.any(1).float().mean().item()])


def learn_to_read(s, stage, rate, steps):
    """Train an LLM, and examine it on the way."""
    llm, optimizers, encoding = new_llm(s, rate)
    exam = raster_questions(encoding, min(500, 5 * s.test_pictures))  # a smoke run asks fewer
    run = train.Run(s, stage, [llm], optimizers, steps)
    for step in run:
        if run.step % max(1, s.llm_source_steps // 25) == 0:  # these seconds are no training:
            run.seconds -= timeit(partial(examine, run, llm, exam), number=1)
        train_step(s, llm, optimizers, documents_of(s, encoding, step), run.record)
    examine(run, llm, exam)
    stage.finish(seconds=run.seconds, scores={"val": {"exact_match": run.measured[-1][1]}},
                 design={"params": train.size_of(llm), "curve": run.measured})


def bench_skill(s):
    """How each design learns, {name: {"params": .., "curve": [[seconds, exact match], ..]}}"""
    settings, jobs = train.open_stage(s, "llm_source").settings, []
    for name, rate, longer in [("ours", None, 1)] + [(f"gpt2-{r}-3x", r, 3) for r in RATES]:
        about = {"rate": rate, "steps": longer * s.llm_source_steps}
        stage = Stage(s.out, f"bench/{name}", settings | about)
        jobs.append(Job(partial(learn_to_read, s, **about), stage))
    make_stages(s, jobs, train.say_scores)
    return {job.stage.folder.name: job.stage.config()["design"] for job in jobs}


# ---- python results/bench.py --------------------------------------------------------------------

def main():
    parser = Parser(__doc__)
    parser.add_argument("--out", default="out", help="the folder of train.py (default: out)")
    s = train.load_settings(parser.parse_args().out)
    s = replace(s, device="cpu", precision="fp32", threads=2)
    torch.set_num_threads(1)  # as in a lane of train.py
    step, designs = bench_step(s), bench_skill(s)
    write_json(Path(s.out) / "bench.json",
               {"torch": torch.__version__, "step": step, "skill": {"designs": designs}})
    say("a step: ours {ours:.4f} s, GPT-2 {gpt2:.4f} s, ratio {ratio:.2f}".format(**step))


if __name__ == "__main__":
    with command():
        main()
