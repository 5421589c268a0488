"""Does training on our world as files give what the built-in world gives?

    python data/world.py --export world
    python train.py --out out-export --data world/train.json --images world/pictures \\
        --val world/val.json
    python results/exported.py --out out-export

The models that have learned from files sit the exam of the built-in world. Writes exported.json
into --out.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project, one folder up

from data.dataset import ShapeData
from data.files import write_json
from data.run import Parser, run_command
from evaluate import load_vlm, score_vlm
from results.report import exported_table
from vision import encode_pictures, load_vit

MODELS = {"mlp": ("align", "instruct"), "langbridge": ("align", "instruct"),
          "blind": ("instruct",)}


def examine(out):
    """{model: {stage: scores}}, as in results.json"""
    vit = load_vit(out / "vit").eval()
    data, aside = ShapeData(vit.config.size), out / "features.new"
    features = {split: encode_pictures(vit, data, split, aside).float() for split in data.EXAM}
    aside.unlink()
    scores = {}
    for kind, stages in MODELS.items():
        scores[kind] = {}
        for stage in stages:
            _, vlm = load_vlm(out, f"{kind}_{stage}")
            scores[kind][stage] = score_vlm(vlm, features, data)
    scores["blind"] = scores["blind"]["instruct"]
    return scores


def main():
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("out-export"),
                        help="the folder that train.py wrote (default: out-export)")
    out = parser.parse_args().out
    result = {"vlm": examine(out)}
    write_json(out / "exported.json", result)
    print(exported_table(result, []))


if __name__ == "__main__":
    run_command(main)
