"""What all training loops share: learning rates, optimiser steps, progress, checkpoints."""
import math
import sys
import time

import torch
from tqdm import tqdm

from data.files import Refused, write_text
from data.run import lane


class Loop:
    """A stage's steps, from where its last checkpoint left off:

        loop = Loop(s, stage, [model], optimizers(..), steps)
        for step in loop:
            loop.update(loss)  # of this step's batch, which depends on nothing but `step`

    A stage that was killed goes on as if nothing had happened, for what a checkpoint holds is all
    that a step depends on. The losses go into log.csv. After each number of steps in `moments`,
    what watch() says is noted: seen = [[steps done, what it said], ..].
    """

    def __init__(self, s, stage, modules, optimizers, steps, watch=None, moments=()):
        self.s, self.stage, self.modules, self.optimizers = s, stage, modules, optimizers
        self.steps, self.watch, self.moments = steps, watch, moments
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        self.step, self.seconds, self.smooth, self.log, self.seen = 0, 0.0, None, [], []
        stage.folder.mkdir(parents=True, exist_ok=True)
        self.resume()

    def __iter__(self):
        self.bar = tqdm(desc=self.stage.name.split("/")[-1], initial=self.step, total=self.steps,
                        mininterval=1 if sys.stderr.isatty() else 60, dynamic_ncols=True,
                        leave=False, position=lane())
        saved = time.perf_counter()
        while self.step < self.steps:
            self.look()
            for module in self.modules:
                module.train()
            for optimizer, rate in zip(self.optimizers, self.rates):
                optimizer.param_groups[0]["lr"] = rate * self.schedule()
            began = time.perf_counter()
            yield self.step
            self.seconds += time.perf_counter() - began
            self.step += 1
            self.bar.update()
            if time.perf_counter() - saved > self.s.save_every and self.step < self.steps:
                self.save()
                saved = time.perf_counter()
        self.bar.close()
        for module in self.modules:
            module.eval()
        self.look()
        lines = [f"{step},{loss},{smooth},{lr:.6g}\n" for step, loss, smooth, lr in self.log]
        write_text(self.stage.folder / "log.csv", "step,loss,smoothed,lr\n" + "".join(lines))

    def schedule(self, warmup=50, decay=0.5):
        """The learning rates' factor: up, level, and down to zero over the last half."""
        up = (self.step + 1) / min(warmup, self.steps)
        down = (1 - self.step / self.steps) / decay
        return min(up, 1.0, down)

    def look(self):
        if self.step in self.moments:
            self.seen.append([self.step, self.watch()])

    def update(self, loss):
        """One step of the optimisers on this loss."""
        value = loss.item()
        if not math.isfinite(value):
            raise Refused(f"{self.stage.name}: the loss is {value} at step {self.step}; lower the "
                          f"learning rate and delete {str(self.stage.folder)!r}")
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.smooth = value if self.smooth is None else 0.98 * self.smooth + 0.02 * value
        self.bar.set_postfix_str(f"loss {self.smooth:.3f}", refresh=False)
        if self.step % 10 == 0 or self.step == self.steps - 1:
            lr = self.optimizers[-1].param_groups[0]["lr"]
            self.log.append([self.step, round(value, 5), round(self.smooth, 5), lr])

    def save(self):
        parts = [part.state_dict() for part in [*self.modules, *self.optimizers]]
        self.stage.save_state(parts=parts, rng=torch.get_rng_state(), step=self.step, log=self.log,
                              seconds=self.seconds, smooth=self.smooth, seen=self.seen)

    def resume(self):
        state = self.stage.load_state(self.s.device)
        if state is None:
            return
        for part, saved in zip([*self.modules, *self.optimizers], state["parts"], strict=True):
            part.load_state_dict(saved)
        torch.set_rng_state(state["rng"].cpu())
        self.step, self.seconds, self.smooth = state["step"], state["seconds"], state["smooth"]
        self.log, self.seen = state["log"], state["seen"]
        print(f"{self.stage.name}: going on from step {self.step}", flush=True)
