"""What the stages ask of their data, answered for the world of world.py.

    a stage needs                                for
    config(), sums                               what load_data rebuilds it from; hashes of files
    SPLITS, EXAM, SCORES, count(split)           the splits, those of the exam, what tables show
    pictures(split, indices)                     (n, size, size, 3) uint8, for the ViT's features
    alt_texts, alt_V, pairs, test_pairs          the ViT: its vocabulary, batches, retrieval
    texts, document, examine_reading             the LLMs: vocabulary, corpus (in pieces), scores
    description, conversation, sampled           the adapters: align, instruct; how many
                                                 conversations a LangBridge takes its words from
    examine, score, counts, guesses              the exam of a VLM, and models that do not look
    request, example_questions, example_picture  what a user may ask, and about what
    kinds, seen                                  the words for objects, and which patches show them

OwnData (own.py) answers the same for files of your own; a third kind would be another such class.
"""
import math
import random
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import partial
from statistics import mode
from typing import NamedTuple

import numpy as np

from data import corpus, scoring
from data.files import Refused
from data.own import open_own
from data.world import (CAPTION_REQUESTS, COLORS, COMP_PAIRS, PLACES, SEEN_PAIRS, SHAPES, ask_any,
                        draw, keywords, make_scene, patches_of, twin)


class SeenObject(NamedTuple):
    """An object of a picture: what it is, where it is, and which patches show it."""
    picture: int
    words: dict  # {kind: word}, as in {"color": "red", "shape": "circle"}
    place: list  # the words of its place
    patches: list  # indices into the N patches


@dataclass(frozen=True)
class Shapes:
    """Scenes of coloured shapes. The same arguments always give the same result."""
    size: int = 48  # picture side in pixels
    train_pictures: int = 12000
    test_pictures: int = 600

    SPLITS = ("train", "val", "test", "comp")
    EXAM = ("val", "test", "comp")
    SCORES = scoring.SCORES
    sums = {}
    alt_V = 400
    sampled = 1000
    request = CAPTION_REQUESTS[0]  # asks for a caption
    example_picture = "results/picture.png"
    kinds = {"color": COLORS, "shape": SHAPES}
    texts = staticmethod(corpus.texts_of)
    document = staticmethod(corpus.document)
    examine = staticmethod(scoring.examine)
    score = staticmethod(scoring.summarize)

    def config(self):
        return {"kind": "shapes", **asdict(self)}

    def count(self, split):
        counts = {"train": self.train_pictures, "test": self.test_pictures}
        return counts.get(split, self.test_pictures // 2)  # val and comp have half as many

    def pictures(self, split, indices):
        return np.stack([draw(make_scene(split, 0, i), f"{split}/{i}", self.size)
                         for i in indices])

    def alt_texts(self, seed, n):
        return [keywords(make_scene("train", seed, i)) for i in range(n)]

    def pairs(self, seed, step, n):
        half, rng = n // 2, random.Random(f"twins/{seed}/{step}")
        indices = range(step * half, (step + 1) * half)  # of seed + 1: captions use seed 0
        scenes = [make_scene("train", seed + 1, i) for i in indices]
        scenes += [twin(scene, rng) for scene in scenes]
        pictures = [draw(scene, f"pairs/{seed}/{step}/{k}", self.size)
                    for k, scene in enumerate(scenes)]
        return np.stack(pictures), [keywords(scene) for scene in scenes]

    def test_pairs(self, split, n=100):
        texts = [keywords(make_scene(split, 0, i)) for i in range(n)]
        return self.pictures(split, range(n)), texts

    def examine_reading(self, answer, dialect):
        return scoring.join_splits({
            split: scoring.examine_reading(answer, dialect, f"text:{split}", self.count(split))
            for split in ("val", "test")})

    def description(self, index, rng):
        return corpus.description(make_scene("train", 0, index), rng)

    def conversation(self, index, rng, turns, captions=0.3):
        return corpus.conversation(make_scene("train", 0, index), rng, turns, captions, SEEN_PAIRS)

    def counts(self, said):
        """What each picture adds to the scores, for intervals; nothing is reported on val."""
        return scoring.join_splits({split: scoring.counts(its) for split, its in said.items()
                                    if split != "val"})

    def guesses(self, pictures):
        """The scores of guessing about so many pictures of each split. 'majority' gives the answer
        that a question most often has about training pictures; if never asked there, the one that
        its type most often has. 'chance' gives the answer to a random training question of its
        type; a caption, then, is that of a training picture."""
        rng = random.Random("majority")
        answers = defaultdict(list)  # question, or type of question -> its answers
        for i in range(self.train_pictures):
            scene = make_scene("train", 0, i)
            asked = [ask_any(scene, rng, SEEN_PAIRS) for _ in range(4)]
            for qa in [scoring.caption_of(scene), *asked]:
                answers[qa.question].append(qa.answer)
                answers[qa.type].append(qa.answer)
        usual = {question: mode(its) for question, its in answers.items()}  # the most frequent

        def majority(split, items):
            return [usual.get(qa.question, usual[qa.type]) for _, qa in items]

        def chance(split, items):
            return [rng.choice(answers[qa.type]) for _, qa in items]

        return {"majority": self.score(self.examine(majority, pictures)),
                "chance": self.score(self.examine(chance, pictures))}

    def example_questions(self):
        """One of each type."""
        _, questions, _ = scoring.benchmark("test", self.test_pictures)
        return list({qa.type: qa.question for _, qa in reversed(questions)}.values())[::-1]

    def seen(self, split, values):
        """Each SeenObject of a split's first pictures, of 'comp' those of unseen pairs alone, and
        the values of its patches. `values` has shape (pictures, N, ..), torch or numpy."""
        side = math.isqrt(values.shape[1])
        for i, patches in enumerate(values):
            for o in make_scene(split, 0, i):
                if o.pair in COMP_PAIRS or split != "comp":
                    words, place = {"color": o.color, "shape": o.shape}, PLACES[o.place].split()
                    seen = SeenObject(i, words, place, patches_of(o.place, side))
                    yield seen, patches[seen.patches]


def load_data(config, out):
    """Rebuild the data of an --out folder from its config(). Raises Refused for those of another
    version."""
    kinds = {"shapes": Shapes, "own": partial(open_own, folder=f"{out}/pictures")}
    fields = dict(config)
    try:
        return kinds[fields.pop("kind", None)](**fields)
    except (KeyError, TypeError):
        raise Refused(f"the data of {str(out)!r} are of another version of this project: the "
                      "folder must be made again")
