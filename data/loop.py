"""The training loop that all stages share: optimisers, learning rates, progress, checkpoints."""
import math
import signal
import sys
import time
from contextlib import nullcontext

import torch
import torch.nn as nn
from tqdm import tqdm

from data.files import RANK, RANKS, Refused, write_text
from data.run import Stop, Stopped, lane


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for hidden matrices (Jordan et al. 2024).

        U S V^T = the gradient's momentum;  W <- W - lr * sqrt(max(1, rows / columns)) * U V^T

    torch.optim.Muon does the same matrix by matrix, in a bfloat16 that many CPUs have to emulate;
    this one computes in float32, all matrices of one shape at once.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                average = self.state[p].setdefault("momentum", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(average, group["momentum"])  # Nesterov
                by_shape.setdefault(p.shape, []).append((p, ahead))
            for (rows, columns), pairs in by_shape.items():
                updates = orthogonal(torch.stack([ahead for _, ahead in pairs]))
                for (p, _), update in zip(pairs, updates):
                    p.sub_(update, alpha=group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonal(x):
    """U S V^T -> U V^T, approximately, for each matrix: x (matrices, rows, columns) -> the same.

    Five steps x <- p(x x^T) x of a Newton-Schulz iteration, p(a) = 3.4445 - 4.7750 a + 2.0315 a^2
    (Jordan's coefficients), drive all singular values towards 1. Because a = x x^T becomes
    p(a) a p(a), the steps need x itself only at the end: where rows are few, that is much cheaper.
    """
    if x.size(1) > x.size(2):
        return orthogonal(x.mT).mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    one = torch.eye(x.size(1), device=x.device)
    a = x @ x.mT  # (matrices, rows, rows)
    p = steps = 3.4445 * one - 4.7750 * a + 2.0315 * a @ a
    for _ in range(4):
        a = p @ a @ p
        p = 3.4445 * one - 4.7750 * a + 2.0315 * a @ a
        steps = p @ steps  # the product of all p
    return steps @ x


def optimizers(matrix_lr, lr, *modules):
    """Muon for the modules' hidden matrices, AdamW for embeddings, heads, biases and the rest."""
    matrices = [p for module in modules for p in module.hidden_matrices()]
    hidden = {id(p) for p in matrices}
    others = [p for module in modules for p in module.parameters() if id(p) not in hidden]
    adamw = torch.optim.AdamW(others, lr, betas=(0.9, 0.95), weight_decay=0.0)
    return [Muon(matrices, matrix_lr), adamw]


def size_of(module):
    """Number of parameters; 0 for None."""
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def autocast(s):
    """bfloat16 if the settings ask for it."""
    if s.precision != "bf16":
        return nullcontext()
    return torch.autocast(torch.device(s.device).type, torch.bfloat16)


def compile_blocks(s, model):
    """Compile the blocks of a model, if the settings ask for it: they take nearly all of its time,
    and compile quickly because they are alike. Texts differ in length, so shapes are dynamic."""
    if s.compile:
        for part in model.modules():
            for block in part if isinstance(part, nn.ModuleList) else []:
                block.compile(dynamic=True)


class Loop:
    """A stage's steps, from where its last checkpoint left off:

        loop = Loop(s, stage, [model], optimizers(..), steps)
        for step in loop:
            loop.update([loss])  # of this step's batch, which depends only on the step

    A killed stage resumes as if nothing had happened: a checkpoint holds everything that a step
    depends on. Losses go to log.csv. measure() runs after each number of steps in `measure_at`:
    measured = [[steps done, result], ..].
    """

    def __init__(self, s, stage, modules, optimizers, steps, measure=None, measure_at=()):
        self.s, self.stage, self.steps = s, stage, steps
        self.modules, self.optimizers = modules, optimizers
        self.measure, self.measure_at = measure, measure_at
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        self.step = 0
        self.seconds = 0.0  # spent in steps, without measuring or saving
        self.smooth = None  # running mean of the loss
        self.log, self.measured = [], []
        stage.folder.mkdir(parents=True, exist_ok=True)
        self.resume()

    def __iter__(self):
        self.bar = tqdm(desc=self.stage.name.split("/")[-1], initial=self.step, total=self.steps,
                        mininterval=1 if sys.stderr.isatty() else 60, dynamic_ncols=True,
                        leave=False, position=lane(), disable=RANK > 0)
        saved = time.perf_counter()
        while self.step < self.steps:
            self.measure_now()
            for module in self.modules:
                module.train()
            for optimizer, rate in zip(self.optimizers, self.rates):
                for group in optimizer.param_groups:
                    group["lr"] = rate * self.schedule()
            began, Stop.in_step = time.perf_counter(), True
            yield self.step
            self.seconds += time.perf_counter() - began
            self.step += 1
            self.bar.update()
            if Stop.signal or time.perf_counter() - saved > self.s.save_every:
                self.save()
                saved = time.perf_counter()
            Stop.in_step = False
            if Stop.signal:
                self.bar.close()
                raise Stopped(Stop.signal)
        self.bar.close()
        for module in self.modules:
            module.eval()
        self.measure_now()
        lines = [f"{step},{loss},{smooth},{lr:.6g}\n" for step, loss, smooth, lr in self.log]
        write_text(self.stage.folder / "log.csv", "step,loss,smoothed,lr\n" + "".join(lines))

    def schedule(self):
        """The learning rates' factor: warm up, hold, then decay linearly over the last half."""
        up = (self.step + 1) / min(50, self.steps)
        down = 2 * (1 - self.step / self.steps)
        return min(up, 1.0, down)

    def measure_now(self):
        if self.step in self.measure_at:
            self.measured.append([self.step, self.measure()])

    def update(self, losses):
        """One optimiser step to lower the sum of the losses of a batch's parts. What a part needs
        in memory is freed before the next one is computed: small parts stay in a CPU's cache. (No
        clipping: Muon's and AdamW's steps do not grow with the gradient.)"""
        value = 0.0
        for loss in losses:
            loss.backward()
            value += loss.item()
        if RANKS > 1:
            value = self.sum_over_ranks(value)
        self.expect_finite(value)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.smooth = value if self.smooth is None else 0.98 * self.smooth + 0.02 * value
        self.bar.set_postfix_str(f"loss {self.smooth:.3f}", refresh=False)
        if self.step % 10 == 0 or self.step == self.steps - 1:
            lr = self.optimizers[-1].param_groups[0]["lr"]
            self.log.append([self.step, round(value, 5), round(self.smooth, 5), lr])

    def sum_over_ranks(self, loss):
        """Each process has computed some parts of the batch: add up their losses and gradients.
        Also, if one of them was asked to stop, all do."""
        params = [p for module in self.modules for p in module.parameters() if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        facts = torch.tensor([loss, float(Stop.signal is not None)], device=grads[0].device)
        both = torch.cat([facts, *(grad.flatten() for grad in grads)])
        torch.distributed.all_reduce(both)
        loss, stop, *_ = both[:2].tolist()
        for p, grad in zip(params, both[2:].split([p.numel() for p in params])):
            p.grad = grad.view_as(p)
        if stop:
            Stop.signal = Stop.signal or signal.SIGTERM
        return loss

    def expect_finite(self, loss):
        """Raise Refused, before it reaches a weight, for a loss or a gradient that is no number."""
        gradients = [p.grad.abs().max() for module in self.modules for p in module.parameters()
                     if p.grad is not None]
        largest = torch.stack(gradients).max().item()  # nan, if one is
        if not math.isfinite(loss + largest):
            self.bar.close()
            raise Refused(f"{self.stage.name}: at step {self.step} (seed {self.s.seed}) the loss "
                          f"is {loss} and the largest gradient {largest}; delete "
                          f"{str(self.stage.folder)!r} and try lower learning rates or --precision "
                          "fp32")

    def save(self):
        parts = [part.state_dict() for part in [*self.modules, *self.optimizers]]
        self.stage.save_state(self.step, parts=parts, rng=self.random_streams(), log=self.log,
                              seconds=self.seconds, smooth=self.smooth, measured=self.measured)

    def random_streams(self):
        """The state of the CPU's generator and, if training is elsewhere, of that device's: drawn
        words come from there."""
        streams = [torch.get_rng_state()]
        if self.s.device != "cpu":
            streams.append(torch.get_device_module(self.s.device).get_rng_state())
        return streams

    def resume(self):
        state = self.stage.load_state(self.s.device)
        if state is None:
            return
        for part, saved in zip([*self.modules, *self.optimizers], state["parts"], strict=True):
            part.load_state_dict(saved)
        torch.set_rng_state(state["rng"][0].cpu())
        if len(state["rng"]) > 1:
            torch.get_device_module(self.s.device).set_rng_state(state["rng"][1].cpu())
        self.step, self.seconds, self.smooth = state["step"], state["seconds"], state["smooth"]
        self.log, self.measured = state["log"], state["measured"]
        print(f"{self.stage.name}: resuming from step {self.step}", flush=True)
