"""What training a model would take in memory, found without training it.

On torch's meta device tensors are shapes alone, so a step can be taken on paper: nothing is
computed, and what it would keep for its gradients is counted.
"""
from contextlib import contextmanager

import torch

from data.loop import optimizers, size_of


@contextmanager
def counted():
    """Count what is kept for gradients within the block: yields {storage: bytes}."""
    kept = {}

    def pack(x):
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield kept


def forecast(stages):
    """Print what each stage would train, and what it takes in memory: weights; of those that are
    trained, gradients and the optimisers' averages; and what a step keeps for its gradients.

    stages: {name: on_paper}, where on_paper() gives modules on the meta device and the losses of a
    first step: (trained, frozen, losses)
    """
    print(f"{'':22}{'trained':>12}{'parameters':>12}{'weights etc.':>16}{'for gradients':>16}")
    for name, on_paper in stages.items():
        trained, frozen, losses = on_paper()
        most = 0
        with counted() as kept:
            for _ in losses:
                most = max(most, sum(kept.values()))
                kept.clear()
        muon, adamw = [sum(p.numel() for group in optimizer.param_groups for p in group["params"])
                       for optimizer in optimizers(0.0, 0.0, *trained)]
        others = sum(map(size_of, frozen))
        fixed = 4 * (3 * muon + 4 * adamw + others)  # weight, gradient, one or two averages
        print(f"{name:22}{muon + adamw:12,}{muon + adamw + others:12,}{fixed / 2 ** 20:13.1f} MB"
              f"{most / 2 ** 20:13.1f} MB", flush=True)
    print("In float32, per process, without torch itself.")
