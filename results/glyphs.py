"""More words than the LLM is wide: does a LangBridge still say its words?

    python results/glyphs.py     40 minutes; the scores of many commands, into glyphs.json

Three worlds of 50, 200 and 800 glyphs, squares of 4 x 4 dots in a colour, with made-up names ('a
red kobalu at the center.'), in the format of --data. Training pictures are neither enlarged nor
turned, since captions name a place: turned dots are too hard for our ViT. In each world, two LLMs
that are 64 wide and a ViT are trained once; then LangBridges by the LLM's loss, by the word loss,
and by half of both. Interrupted? Run the same command again.
"""
import random
import sys
from itertools import combinations
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the project, one folder up

from data.files import read_json, write_json
from data.run import Parser, command
from data.words import STOP_WORDS
from data.world import COLORS
from results.budgets import copy_whole, run

NAMES = [50, 200, 800]
LOSSES = {"LLM": 0.0, "both": 0.5, "words": 1.0}  # what trains W: the share of the word loss
DRAWINGS = 20  # of each glyph
TRAINING = dict(vit_steps=1500, llm_source_C=64, llm_target_C=64, llm_source_steps=1200,
                llm_target_steps=1200, align_steps=800)


def make_world(folder, n):
    """Pictures of n glyphs, and train.json about them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, entries = random.Random(n), []
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    names = {"".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(3 * n)}
    glyphs = rng.sample([*combinations(range(16), 8)], n)  # no two are alike
    for name, dots in zip(rng.sample(sorted(names - STOP_WORDS), n), glyphs):
        for i in range(DRAWINGS):
            picture = Image.new("RGB", (48, 48), (rng.randint(200, 255),) * 3)
            color = rng.choice(COLORS)
            for k in dots:
                x, y = k % 4 * 12, k // 4 * 12
                ImageDraw.Draw(picture).rectangle((x, y, x + 11, y + 11), fill=color)
            picture.save(folder / f"{name}{i}.png")
            turns = [{"from": "human", "value": "what is this?"},
                     {"from": "gpt", "value": f"a {color} {name} at the center."}]
            entries.append({"image": f"{name}{i}.png", "conversations": turns})
    write_json(folder / "train.json", entries)


def measure(folder, n, threads):
    """A world's LLMs and ViT; for each of LOSSES, the scores and the words of a LangBridge."""
    pictures, models, rows = folder / "pictures", folder / "models", []
    if not (pictures / "train.json").exists():
        make_world(pictures, n)
    given = dict(data=pictures / "train.json", images=pictures, threads=threads, **TRAINING)
    run("train.py", out=models, stages="llm_source,vit,llm_target", **given)
    for name, share in LOSSES.items():
        out = folder / name
        copy_whole(models, out)
        run("train.py", out=out, stages="langbridge_align", align_word_loss=share, **given)
        run("transfer.py", out=out, rows="zero_shot_langbridge,aligned_langbridge", threads=threads)
        run("evaluate.py", out=out)
        moved = {row["name"]: row["scores"] for row in read_json(out / "transfer.json")["rows"]}
        rows.append({"name": name, **moved, **read_json(out / "evaluate.json")["told"]})
    words = read_json(out / "langbridge_align" / "adapter.json")["tokens"]
    return {"names": n, "K/C": len(words) / TRAINING["llm_source_C"], "rows": rows}


def main():
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default="out-glyphs", help="default: out-glyphs")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as cores")
    args = parser.parse_args()
    worlds = [measure(args.out / f"{n}", n, args.threads) for n in NAMES]
    write_json(args.out / "glyphs.json", {"seed": 0, "worlds": worlds})
    print(f"\nScores: {args.out}/glyphs.json")


if __name__ == "__main__":
    with command():
        main()
