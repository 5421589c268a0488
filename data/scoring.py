"""The exam: which questions are asked about which pictures, and what the answers are worth.

`examine` collects what a model says (a model is any function here, so guessing can sit the exam
too), and `summarize` turns that into scores. The truth is known, so every score is exact:

    vqa            exact match of generated answers; vqa_by_type: the same by type of question
    caption_f1     over objects: one is right when its colour, shape, place (and size) all are
    caption_exact  share of captions that are right and complete
    pope_acc       is there a ..? half yes, half hard no, as in POPE (arXiv 2305.10355)
    pope_yes_rate  share of yes among these answers
    comp_*         on pictures with, and questions about, pairs that no training picture shows
"""
import random
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from data.corpus import raster, sentences
from data.world import (ANSWERS, CAPTION_REQUESTS, COLORS, COMP_PAIRS, NUMBERS, PLACES, QA,
                        RICH_TYPES, About, ask, ask_any, caption, make_scene, score_caption,
                        types_of, unique)


SCORES = ("vqa", "caption_f1", "pope_acc", "comp_vqa")  # the ones that tables show


class Answered(NamedTuple):
    picture: int
    qa: QA
    answer: str

    @property
    def right(self):
        return self.answer == self.qa.answer


class Said(NamedTuple):
    """What a model said about the pictures of a split."""
    scenes: list
    questions: list  # [Answered]
    pope: list  # [Answered], empty for 'comp'
    captions: list  # one text a scene


def ask_in_turn(scene, k, rng):
    """A question of the k-th type (cyclically), or of any type if the scene has none of it."""
    types = types_of(scene)
    return ask(scene, types[k % len(types)], rng) or ask_any(scene, rng)


def about_unseen(qa):
    """Whether a question and its answer are about a colour-shape pair of COMP_PAIRS."""
    color = qa.answer if qa.type == "color" else qa.about.color
    shape = qa.answer if qa.type == "shape" else qa.about.shape
    return (color, shape) in COMP_PAIRS


def benchmark(split, pictures, world):
    """The exam of a split's first pictures, two questions and one yes/no question about each:
    (scenes, [(picture, QA)], [(picture, QA of type 'exists')])"""
    rng = random.Random(f"benchmark/{split}")
    scenes = [make_scene(split, 0, i, world) for i in range(pictures)]
    questions, pope = [], []
    for i, scene in enumerate(scenes):
        for k in (2 * i, 2 * i + 1):
            qa = ask_in_turn(scene, k, rng)
            while split == "comp" and not about_unseen(qa):
                qa = ask_any(scene, rng)
            questions.append((i, qa))
        pope.append((i, ask(scene, "exists", rng)))  # unused in 'comp', but keeps the stream
    return scenes, questions, pope


def examine(answer, pictures, world):
    """What a model says, {split: Said}, about the first pictures of each split, {split: number}. A
    model is a function, answer(split, [(picture, QA), ..]) -> texts; a QA may ask for a caption."""
    said = {}
    for split, n in pictures.items():
        scenes, questions, pope = benchmark(split, n, world)
        if split == "comp":
            pope = []
        requests = [(i, QA("caption", CAPTION_REQUESTS[0], caption(scene), About("caption")))
                    for i, scene in enumerate(scenes)]
        texts = iter(answer(split, questions + pope + requests))
        said[split] = Said(scenes, [Answered(i, qa, next(texts)) for i, qa in questions],
                           [Answered(i, qa, next(texts)) for i, qa in pope], list(texts))
    return said


def score_answers(answered):
    """Exact match, in all and by question type: (accuracy, {type: accuracy})"""
    hits = defaultdict(list)
    for a in answered:
        hits[a.qa.type].append(a.right)
    by_type = {type: float(np.mean(hits[type])) for type in RICH_TYPES if type in hits}
    return float(np.mean([a.right for a in answered])), by_type


def count_objects(captions, scenes):
    """(right, said, true) objects of each caption: three arrays (captions,)"""
    return np.array([score_caption(text, scene) for text, scene in zip(captions, scenes)]).T


def score_captions(captions, scenes):
    """(F1 over objects, share of captions that are right and complete)"""
    right, said, true = count_objects(captions, scenes)
    f1 = 2 * right.sum() / max(1, said.sum() + true.sum())
    return float(f1), float(np.mean((right == said) & (right == true)))


def summarize(said):
    """The scores of what a model said."""
    scores = {}
    for split, (scenes, questions, pope, captions) in said.items():
        vqa, by_type = score_answers(questions)
        f1, exact = score_captions(captions, scenes)
        if split == "comp":
            scores |= {"comp_vqa": vqa, "comp_caption_f1": f1}
        else:
            scores |= {"vqa": vqa, "vqa_by_type": by_type, "caption_f1": f1, "caption_exact": exact}
            scores["pope_acc"] = float(np.mean([a.right for a in pope]))
            scores["pope_yes_rate"] = float(np.mean([a.answer == "yes" for a in pope]))
    return scores


def tally(answered, pictures):
    """(right answers, answers) per picture: (pictures, 2)"""
    counts = np.zeros((pictures, 2), dtype=int)
    for a in answered:
        counts[a.picture] += (a.right, 1)
    return counts


def intervals(said, draws=1000):
    """95% bootstrap intervals, {score: [low, high]}, resampling whole pictures."""
    rng, result = np.random.default_rng(0), {}
    for split, (scenes, questions, pope, captions) in said.items():
        n, prefix = len(scenes), "comp_" if split == "comp" else ""
        right, named, true = count_objects(captions, scenes)
        counts = {"vqa": tally(questions, n), "caption_f1": np.stack([2 * right, named + true], 1)}
        if pope:
            counts["pope_acc"] = tally(pope, n)
        picked = rng.integers(0, n, (draws, n))
        for name, pairs in counts.items():
            got, possible = pairs[picked].sum(1).T  # (draws,) each
            low, high = np.percentile(got / possible.clip(1), [2.5, 97.5])
            result[prefix + name] = [float(low), float(high)]
    return result


def by_objects(said):
    """Scores on the test split by the number of objects: {1: {"vqa", "caption_f1"}, ..}"""
    (scenes, questions, _, captions), result = said["test"], {}
    for n in sorted({len(scene) for scene in scenes}):
        vqa, _ = score_answers([a for a in questions if len(scenes[a.picture]) == n])
        own = [i for i, scene in enumerate(scenes) if len(scene) == n]
        f1, _ = score_captions([captions[i] for i in own], [scenes[i] for i in own])
        result[n] = {"vqa": vqa, "caption_f1": f1}
    return result


def score_chance(pictures, world):
    """The scores of random answers, and of captions of other scenes."""
    rng = random.Random("chance")
    possible = ANSWERS | {"count": NUMBERS[:world.max_objects + 1]}

    def answer(split, items):
        texts = []
        for picture, qa in items:
            if qa.type == "caption":
                texts.append(caption(make_scene(split, 1, picture, world)))
            else:
                texts.append(rng.choice(possible[qa.type]))
        return texts

    return summarize(examine(answer, pictures, world))


def examine_reading(answer, dialect, seed, n, world):
    """The scores of an LLM, answer([(scene in words, question), ..]) -> texts, on n held-out
    scenes: does it answer from sentences and from rasters, and can it describe rasters? What it
    cannot do with words, it cannot do with patches that are mixtures of words."""
    scenes = [make_scene("text:held-out", seed, i, world) for i in range(n)]
    scores = {}
    for name in ("text_qa", "raster_qa"):
        rng = random.Random(f"{name}/{seed}")
        questions = [ask_in_turn(scene, i, rng) for i, scene in enumerate(scenes)]
        asked = []
        for scene, qa in zip(scenes, questions):
            if name == "raster_qa":
                body = raster(scene, rng)
            else:
                body = sentences(rng.sample(scene, len(scene)), dialect, rng)
            asked.append((body, qa.question))
        texts = answer(asked)
        answered = [Answered(i, qa, texts[i]) for i, qa in enumerate(questions)]
        scores[name], scores[f"{name}_by_type"] = score_answers(answered)
    few = scenes[:n // 3]  # their rasters continue raster_qa's random stream
    captions = answer([(raster(scene, rng), CAPTION_REQUESTS[0]) for scene in few])
    scores["raster_caption_f1"], _ = score_captions(captions, few)
    return scores


class Edit(NamedTuple):
    """A question before and after a picture's `old` colour word is replaced by the `new` one."""
    picture: int
    old: str
    new: str
    follows: bool  # whether the answer should become the new colour; others should stay
    question: str
    answer: str
    question_after: str
    answer_after: str


def color_edits(pictures, world):
    """[Edit, ..] of the first test pictures: in each, one object unique in colour and shape gets a
    colour that the picture lacks. Asked for its colour, a model should now answer the new word; its
    shape, its place (asked with the new word) and another object's place should stay."""
    rng, edits = random.Random("steering"), []
    for i in range(pictures):
        scene = make_scene("test", 0, i, world)
        single = [o for o in unique(scene, "color") if o in unique(scene, "shape")]
        if not single:
            continue
        o = rng.choice(single)
        old, colors = o.color, [p.color for p in scene]
        new = rng.choice([color for color in COLORS if color not in colors])
        question = f"what color is the {o.shape}?"
        edits.append(Edit(i, old, new, True, question, old, question, new))
        asked = [(f"what shape is the {old} object?", o.shape),
                 (f"where is the {old} {o.shape}?", PLACES[o.place])]
        others = [p for p in scene if p != o]
        if others:
            p = others[0]
            asked.append((f"where is the {p.color} {p.shape}?", PLACES[p.place]))
        for question, answer in asked:
            after = question.replace(old, new)
            edits.append(Edit(i, old, new, False, question, answer, after, answer))
    return edits
