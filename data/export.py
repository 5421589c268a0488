"""The world of world.py as files, in the format that conversations.py reads.

    python data/world.py --export DIR
    python train.py --data DIR/train.json --images DIR/pictures --val DIR/val.json

    pictures/     of train, val, test and comp
    train.json    a caption and questions about each training picture; twins of it, with captions;
                  and the texts of both LLMs, which are entries without an image
    val.json      what is held out: the exam of val and test
    comp.json     the exam about unseen pairs of colour and shape, for evaluate.py --data
"""
import json
import random
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data.bpe import BOS
from data.corpus import conversation, description, document
from data.files import Refused
from data.run import Parser, number, run_command
from data.scoring import benchmark, caption_of
from data.world import SEEN_PAIRS, caption, draw, make_scene, twin

TURNS = 10  # of a conversation, at most
TWINS = 2  # of each training picture
TEXTS = 20000  # of each LLM's kind


def export(folder, pictures, test_pictures, size):
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise Refused(f"{str(folder)!r} is not empty; export into a new folder")
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    train = export_training(folder, pictures, size) + export_texts()
    random.Random("order").shuffle(train)
    write(folder / "train.json", train)
    held = export_exam(folder, "val", test_pictures, size)
    write(folder / "val.json", held + export_exam(folder, "test", test_pictures, size))
    write(folder / "comp.json", export_exam(folder, "comp", test_pictures // 2, size))
    print(f"written: {folder}/. Try next:\n  python train.py --out out-export --data {folder}/"
          f"train.json --images {folder}/pictures --val {folder}/val.json")


def write(path, entries):
    path.write_text(json.dumps(entries, indent=0), encoding="utf-8")


def as_entry(name, turns, image=None):
    """An entry of [(question, answer), ..]"""
    said, mark = [], "<image>\n" if image else ""
    for question, answer in turns:
        said += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
        mark = ""
    return {"id": name, **({"image": image} if image else {}), "conversations": said}


def turns_of(pieces):
    """[('question: ..', 0), (' answer\\n', 1), ..] -> [(question, answer), ..]"""
    texts = [text for text, _ in pieces]
    return [(question.removeprefix("question: "), answer.strip())
            for question, answer in zip(texts[::2], texts[1::2])]


def save(folder, split, i, scene, size):
    """Draw a scene into a file, as the built-in world draws it. Returns the file's name."""
    name = f"{split}-{i}.png"
    Image.fromarray(draw(scene, f"{split}/{i}", size)).save(folder / "pictures" / name)
    return name


def export_training(folder, pictures, size):
    """Conversations about the training pictures of the built-in world, and captions of the twins of
    each: without twins, a ViT need not see every detail. All their captions have one wording: from
    the words of several, a ViT learns more slowly which colour goes with which shape."""
    entries = []
    for i in tqdm(range(pictures), "training pictures", leave=False):
        rng, scene = random.Random(f"export/{i}"), make_scene("train", 0, i)
        first = turns_of(description(scene, rng))
        others = turns_of(conversation(scene, rng, TURNS, captions=0.0, pairs=SEEN_PAIRS))
        image = save(folder, "train", i, scene, size)
        entries.append(as_entry(f"train-{i}", first + others, image))
        for k in range(TWINS):
            other, name = twin(scene, rng), f"{i}-{k}"
            image = save(folder, "twin", name, other, size)
            ((request, _),) = turns_of(description(other, rng))
            entries.append(as_entry(f"twin-{name}", [(request, caption(other))], image))
    return entries


def export_texts():
    """The corpora of both LLMs, without the stories: a scene in words is the context of the first
    question."""
    entries = []
    for dialect in ("source", "target"):
        for i in range(TEXTS):
            pieces = document(dialect, 0, i, stories=0.0)
            text = "".join(text for text, _ in pieces).removeprefix(BOS)
            context, _, _ = text.partition("question: ")
            asked = [piece for piece in pieces if piece[0].startswith("question: ") or piece[1]]
            (question, answer), *others = turns_of(asked)
            turns = [(context + question, answer), *others]
            entries.append(as_entry(f"{dialect}-{i}", turns))
    return entries


def export_exam(folder, split, pictures, size):
    """The exam about a split's pictures: a caption and three questions each."""
    scenes, questions, pope = benchmark(split, pictures)
    entries = []
    for i, scene in enumerate(tqdm(scenes, f"{split} pictures", leave=False)):
        asked = [caption_of(scene)] + [qa for k, qa in questions + pope if k == i]
        image = save(folder, split, i, scene, size)
        turns = [(qa.question, qa.answer) for qa in asked]
        entries.append(as_entry(f"{split}-{i}", turns, image))
    return entries


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--export", required=True, metavar="DIR", help="a new folder")
    add("--pictures", type=number(20), default=12000, help="training pictures (default: 12000)")
    add("--test_pictures", type=number(20), default=600, help="of the test split (default: 600)")
    add("--size", type=number(6, 1024), default=48, help="of a picture, in pixels (default: 48)")
    args = parser.parse_args()
    export(args.export, args.pictures, args.test_pictures, args.size)


if __name__ == "__main__":
    run_command(main)
