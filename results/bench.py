"""How long our LLM takes to learn to read rasters, beside a GPT-2 of the same width and depth.

    python results/bench.py     after train.py: into bench.json, on a CPU

Both read the same documents, ours by its recipe, the GPT-2 as in nanoGPT, with three times as many
steps, at several learning rates. On the way it is measured how well they answer. Seconds depend on
the machine and on the hour; only ratios within a run mean anything. Two models are trained side by
side, a thread each. Interrupted? Run the same command again.
"""
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from timeit import timeit

import torch
import torch.nn as nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project, one folder up

import train
from data.corpus import encode, in_scene, raster, turn
from data.files import Stage, write_json
from data.run import Job, Parser, command, make_stages
from data.world import ask_any, make_scene

RATES = [0.000125, 0.00025, 0.0005, 0.001, 0.002, 0.004]  # of AdamW, for the rival


class GPT2(nn.Module):
    """The rival, as nanoGPT builds it, of PyTorch's own blocks: learned positions, GELU, one matrix
    for embedding and head."""

    def __init__(self, config):
        super().__init__()
        C, layers = config.C, config.layers
        self.embed, self.position = (nn.Embedding(n, C) for n in (config.V, config.context))
        block = nn.TransformerEncoderLayer(C, config.H, 4 * C, dropout=0.0, activation="gelu",
                                           batch_first=True, norm_first=True, bias=False)
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(C, bias=False),
                                            enable_nested_tensor=False)
        self.head = nn.Linear(C, config.V, bias=False)
        self.head.weight = self.embed.weight
        for name, p in self.named_parameters():
            ends_branch = name.endswith(("out_proj.weight", "linear2.weight"))
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02 * (2 * layers) ** -0.5 if ends_branch else 0.02)

    def hidden(self, x):
        """What the head reads: x (B, T, C) -> (B, T, C)"""
        T = x.size(1)
        earlier = nn.Transformer.generate_square_subsequent_mask(T)  # (T, T)
        return self.blocks(x + self.position.weight[:T], earlier, is_causal=True)  # (B, T, C)


def new_llm(s, rate):
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
    """Train an LLM, and examine it on the way. The rival's gradients are clipped."""
    llm, optimizers, encoding = new_llm(s, rate)
    exam = raster_questions(encoding, min(500, 5 * s.test_pictures))  # a smoke run asks fewer
    run = train.Run(s, stage, [llm], optimizers, steps)
    for step in run:
        if step % max(1, s.llm_source_steps // 25) == 0:  # these seconds are no training:
            run.seconds -= timeit(partial(examine, run, llm, exam), number=1)
        samples = documents_of(s, encoding, step)
        weight = sum(sum(sample.weights[1:]) for sample in samples)
        loss = sum(train.text_loss(s, llm, part) for part in train.by_length(samples)) / weight
        loss.backward()
        if rate:
            nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        run.record(loss.item())
        train.update(optimizers)
    examine(run, llm, exam)
    stage.finish(seconds=run.seconds, scores={"val": {"exact_match": run.measured[-1][1]}},
                 design={"params": train.size_of(llm), "steps": steps, "curve": run.measured})


def bench(s):
    """How each design learns, {name: {"params": .., "curve": [[seconds, exact match], ..]}}"""
    settings, jobs = train.open_stage(s, "llm_source").settings, []
    for name, rate, longer in [("ours", None, 1)] + [(f"gpt2-{r}-3x", r, 3) for r in RATES]:
        about = {"rate": rate, "steps": longer * s.llm_source_steps}
        stage = Stage(s.out, f"bench/{name}", settings | about)
        jobs.append(Job(partial(learn_to_read, s, **about), stage))
    make_stages(s, jobs, train.say_scores)
    return {job.stage.folder.name: job.stage.config()["design"] for job in jobs}


def main():
    parser = Parser(__doc__)
    parser.add_argument("--out", default="out", help="the folder of train.py (default: out)")
    s = train.load_settings(parser.parse_args().out)
    s = replace(s, device="cpu", precision="fp32", threads=2)
    write_json(Path(s.out) / "bench.json",
               {"torch": torch.__version__, "skill": {"designs": bench(s)}})


if __name__ == "__main__":
    with command():
        main()
