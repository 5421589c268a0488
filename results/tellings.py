"""How should a scene be told to a real LLM, so that it can answer?

    python results/tellings.py FILE.gguf      20 minutes

The LLM reads solved examples, then scenes of val in true words, told in several ways, and answers
two questions about each. No adapter and no picture is needed: what it cannot read, it cannot see.
Three sets of examples for each way. Writes tellings.json into --out.
"""
import random
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project, one folder up

from data.corpus import LIST_HEAD, listing, raster, solved_examples
from data.files import write_json
from data.run import Parser, number, run_command
from data.scoring import Answered, benchmark, score_answers
from data.world import PLACES
from model import Reader, load_llm
from results.report import tellings_table

SEEDS = [0, 1, 2]  # of the sets of examples


def in_lines(line, head=""):
    """A way to tell a scene: a line for each object, with its {place}, {color}, {shape}, {row} and
    {column}."""
    def tell(scene):
        return head + "".join(line.format(place=PLACES[o.place], color=o.color, shape=o.shape,
                                          row=o.row + 1, column=o.col + 1) for o in scene)
    return tell


def as_raster(scene):
    return raster(scene, random.Random(str(scene)))


WAYS = {  # title: (how a scene is told, number of examples)
    "`place | color shape`": (listing, 16),
    "the same, 4 examples": (listing, 4),
    "the same, 8 examples": (listing, 8),
    "the same, 32 examples": (listing, 32),
    "`place | color shape color shape`": (
        in_lines("{place} | {color} {shape} {color} {shape}\n", LIST_HEAD), 16),
    "`color shape | place`": (in_lines("{color} {shape} | {place}\n", "object | place\n"), 16),
    "`place: color shape`": (in_lines("{place}: {color} {shape}\n"), 16),
    "`row 1, column 2: color shape`": (
        in_lines("row {row}, column {column}: {color} {shape}\n"), 16),
    "`there is a color shape at the place.`": (
        in_lines("there is a {color} {shape} at the {place}.\n"), 16),
    "a raster of 6 x 6 words": (as_raster, 16),
}


def compare(llm, encoding, pictures):
    """{title: {"vqa" and each type of question: [a score for each set of examples]}}"""
    scenes, questions, _ = benchmark("val", pictures)
    asked, found = [(i, qa.question) for i, qa in questions], {}
    for title, (tell, shots) in WAYS.items():
        found[title] = {}
        for seed in SEEDS:
            reader = Reader(llm, encoding, solved_examples(shots, seed, tell))
            answers = reader.answer([tell(scene) for scene in scenes], asked)
            vqa, by_type = score_answers([Answered(i, qa, answer) for (i, qa), answer
                                          in zip(questions, answers)])
            for name, value in {"vqa": vqa, **by_type}.items():
                found[title].setdefault(name, []).append(value)
        means = {name: f"{np.mean(values):.3f}" for name, values in found[title].items()}
        print(f"{title:40}", *means.values(), flush=True)
    return found


def main():
    parser = Parser(__doc__)
    parser.add_argument("file", type=Path, help="the LLM: a GGUF file")
    parser.add_argument("--out", type=Path, default=Path("out"), help="a folder (default: out)")
    parser.add_argument("--pictures", type=number(1), default=100,
                        help="scenes of val (default: 100)")
    args = parser.parse_args()
    llm, encoding = load_llm(args.file)
    found = {"llm": args.file.stem, "pictures": args.pictures,
             "ways": compare(llm, encoding, args.pictures)}
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "tellings.json", found)
    print(tellings_table(found))


if __name__ == "__main__":
    run_command(main)
