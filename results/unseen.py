"""Why are unseen pairs of colour and shape harder for an adapter than for a linear probe?

    python results/unseen.py       after train.py; half a minute

The same features are classified in several ways. Each learns the colours and shapes of objects in
training pictures, none of which shows an unseen pair, and names those of val's objects (seen pairs)
and of comp's (unseen pairs). An object's four patches vote. Writes unseen.json into --out.
"""
import sys
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project, one folder up

from adapter import load_adapter, readable
from data.files import read_json, read_tensors, write_json
from data.run import Parser, run_command
from evaluate import grounding, held_out, load_vlm, open_data
from results.report import unseen_table

PICTURES = 3000  # labelled training pictures
WAYS = {  # title: (hidden width, 0 for a linear classifier; its loss; are features whitened?)
    "linear, squared error": (0, "squared error", False),
    "linear, cross-entropy": (0, "cross-entropy", False),
    "two layers, squared error": (256, "squared error", False),
    "two layers, cross-entropy": (256, "cross-entropy", False),
    "linear, cross-entropy, whitened": (0, "cross-entropy", True),
    "two layers, squared error, whitened": (256, "squared error", True),
    "two layers, cross-entropy, whitened": (256, "cross-entropy", True),
}


def objects_of(features, split, data, kind):
    """The patches of a split's objects (n, 4, D), and which word of this kind each is (n,)."""
    x, y = [], []
    for seen, patches in data.seen(split, features):
        x.append(patches)
        y.append(data.kinds[kind].index(seen.words[kind]))
    return torch.stack(x), torch.tensor(y)


def classifier(x, y, hidden, loss, steps=1000, rate=0.003):
    """Learn the class of each patch, from x (n, 4, D) and y (n,). Returns a module."""
    torch.manual_seed(0)
    D, classes = x.size(2), int(y.max()) + 1
    net = nn.Linear(D, classes)
    if hidden:
        net = nn.Sequential(nn.Linear(D, hidden), nn.GELU(), nn.Linear(hidden, classes))
    optimizer = torch.optim.AdamW(net.parameters(), rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        some = torch.randint(len(x), (128,))
        said, true = net(x[some]).flatten(0, 1), y[some].repeat_interleave(x.size(1))
        if loss == "cross-entropy":
            value = F.cross_entropy(said, true)
        else:
            value = F.mse_loss(said, F.one_hot(true, classes).float())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return net


@torch.no_grad()
def accuracy(net, x, y, loss):
    """How often an object's patches, voting, name its class."""
    said = net(x)  # (n, 4, classes)
    if loss == "cross-entropy":
        said = said.log_softmax(-1)
    return (said.sum(1).argmax(-1) == y).float().mean().item()


def compare(out):
    """{way: {split: {kind: accuracy}}}"""
    data, features = open_data(out), held_out(out, splits=["val", "comp"])
    stored = read_tensors(out / "vit" / "features.pt", mmap=True)["train"]
    features["train"] = stored[:PICTURES].float()
    bridge = load_adapter(out / "langbridge_align")
    white = {split: (x - bridge.mean) @ bridge.scale for split, x in features.items()}
    probed = read_json(out / "vit" / "config.json")["scores"]
    found = {"ridge regression, an object's patches side by side": {
        "val": {kind: probed["val"][f"probe_{kind}"] for kind in data.kinds},
        "comp": {kind: probed[f"comp_probe_{kind}"] for kind in data.kinds}}}
    for title, (hidden, loss, whitened) in WAYS.items():
        found[title] = {"val": {}, "comp": {}}
        x = white if whitened else features
        for kind in data.kinds:
            net = classifier(*objects_of(x["train"], "train", data, kind), hidden, loss)
            for split in ("val", "comp"):
                found[title][split][kind] = accuracy(
                    net, *objects_of(x[split], split, data, kind), loss)
    for stage in ("align", "instruct"):
        _, vlm = load_vlm(out, f"langbridge_{stage}")
        words, title = readable(vlm.adapter.tokens), f"LangBridge's words, after {stage}"
        found[title] = {}
        for split in ("val", "comp"):
            _, _, found[title][split] = grounding(vlm, features[split], words, data, split=split)
    return found


def main():
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"),
                        help="the folder that train.py wrote (default: out)")
    out = parser.parse_args().out
    found = compare(out)
    write_json(out / "unseen.json", found)
    print(unseen_table([found]))


if __name__ == "__main__":
    run_command(main)
