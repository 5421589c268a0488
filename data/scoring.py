"""The exam: which questions are asked about which pictures, and what the answers are worth.

`examine` collects what a model says (a model is any function here, so guessing can sit the exam
too), and `summarize` turns that into scores. The truth is known, so every score is exact:

    vqa            exact match of generated answers; vqa_by_type: the same by type of question
    caption_f1     over objects: one is right when its colour, shape and place all are
    pope_acc       is there a ..? half yes, half no, as in POPE (arXiv 2305.10355). If the question
                   names a colour and a shape, as half of them do, a no is hard: one of the two is
                   there. (Not always for unseen pairs: a colour is in only one of them.)
    pope_yes_rate  share of yes among these answers
    comp_*         on pictures with, and questions about, pairs that no training picture shows
    val            the same scores on the val split: for choices, while the others are for reports
"""
import random
from typing import NamedTuple

import numpy as np

from data.corpus import raster, sentences
from data.world import (CAPTION_REQUESTS, COMP_PAIRS, PAIRS, QA, QUESTION_TYPES, SEEN_PAIRS, About,
                        ask, ask_any, caption, make_scene, score_caption)

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
    pope: list  # [Answered]
    captions: list  # one text a scene


# ---- the questions -----------------------------------------------------------------------------

def ask_in_turn(scene, k, rng, pairs=PAIRS, types=QUESTION_TYPES):
    """A question of the k-th type (cyclically), or of any type if the scene has none of it."""
    return ask(scene, types[k % len(types)], rng, pairs) or ask_any(scene, rng, pairs, types)


def benchmark(split, pictures):
    """The exam of a split's first pictures, two questions and one yes/no question about each:
    (scenes, [(picture, QA)], [(picture, QA of type 'exists')])"""
    rng, types, pairs = random.Random(f"benchmark/{split}"), QUESTION_TYPES, SEEN_PAIRS
    if split == "comp":  # what is there, and whether it is; only in questions about unseen pairs
        types, pairs = ["color", "shape", "where", "exists"], COMP_PAIRS
    scenes = [make_scene(split, 0, i) for i in range(pictures)]
    questions, pope = [], []
    for i, scene in enumerate(scenes):
        for k in (2 * i, 2 * i + 1):
            questions.append((i, ask_in_turn(scene, k, rng, pairs, types)))
        pope.append((i, ask(scene, "exists", rng, pairs)))
    return scenes, questions, pope


def caption_of(scene):
    """The request for a caption, and the caption, as a QA."""
    return QA("caption", CAPTION_REQUESTS[0], caption(scene), About("caption"))


def examine(answer, pictures):
    """What a model says, {split: Said}, about the first pictures of each split, {split: number}. A
    model is a function, answer(split, [(picture, QA), ..]) -> texts; a QA may ask for a caption."""
    said = {}
    for split, n in pictures.items():
        scenes, questions, pope = benchmark(split, n)
        requests = [(i, caption_of(scene)) for i, scene in enumerate(scenes)]
        texts = iter(answer(split, questions + pope + requests))
        said[split] = Said(scenes, [Answered(i, qa, next(texts)) for i, qa in questions],
                           [Answered(i, qa, next(texts)) for i, qa in pope], list(texts))
    return said


# ---- the scores --------------------------------------------------------------------------------

def count_right(answered, pictures):
    """(right answers, answers) of each picture: (pictures, 2)"""
    result = np.zeros((pictures, 2), dtype=int)
    for a in answered:
        result[a.picture] += (a.right, 1)
    return result


def count_objects(captions, scenes):
    """(2 right, named + true) objects of each caption: (captions, 2); the share is F1"""
    right, named, true = np.array([*map(score_caption, captions, scenes)]).T  # 3 x (captions,)
    return np.stack([2 * right, named + true], 1)


def share(counted):
    """A score: of counts (n, 2), the sum of what was got over the sum of what was possible."""
    got, possible = counted.sum(0)
    return float(got / max(1, possible))


def by_type(answered):
    """{type of question: share of right answers}"""
    types = sorted({a.qa.type for a in answered}, key=QUESTION_TYPES.index)
    return {type: float(np.mean([a.right for a in answered if a.qa.type == type]))
            for type in types}


def counts(said):
    """What each picture of a split adds to the scores, {score: (pictures, 2)}: got and possible.
    Bootstraps resample its rows."""
    n = len(said.scenes)
    return {"vqa": count_right(said.questions, n), "pope_acc": count_right(said.pope, n),
            "caption_f1": count_objects(said.captions, said.scenes)}


def summarize(said):
    """The scores of what a model said, {split: Said}."""
    scores = {}
    for split, its in said.items():
        counted = counts(its)
        scores[split] = {name: share(pairs) for name, pairs in counted.items()} | {
            "vqa_by_type": by_type(its.questions),
            "pope_yes_rate": float(np.mean([a.answer == "yes" for a in its.pope]))}
    return join_splits(scores)


def join_splits(by_split):
    """{split: its scores} as one dict: test's as they are, comp's with comp_ before their names,
    and val's as a dict of their own, where no table takes them for test's."""
    scores = {}
    for split, own in by_split.items():
        if split == "comp":
            own = {f"comp_{name}": value for name, value in own.items()}
        scores |= {"val": own} if split == "val" else own
    return scores


def intervals(counted):
    """95% bootstrap intervals of scores, {score: [low, high]}, by what each picture adds to them,
    {score: (pictures, 2)}. Whole pictures are resampled: answers about one are not independent."""
    result = {}
    for name, pairs in counted.items():
        rows = np.random.default_rng(0).integers(0, len(pairs), (1000, len(pairs)))
        got, possible = pairs[rows].sum(1).T  # 2 x (1000,)
        result[name] = np.percentile(got / possible.clip(1), [2.5, 97.5]).tolist()
    return result


# ---- reading -----------------------------------------------------------------------------------

def examine_reading(answer, dialect, split, n):
    """The scores of an LLM, answer([(scene in words, question), ..]) -> texts, on the first n
    scenes of a split of texts: does it answer from sentences and from rasters, and can it describe
    rasters? What it cannot do with words, it cannot do with patches that are mixtures of words."""
    scenes = [make_scene(split, 0, i) for i in range(n)]
    scores = {}
    for name in ("text_qa", "raster_qa"):
        rng = random.Random(f"{name}/{split}")
        questions = [ask_in_turn(scene, i, rng) for i, scene in enumerate(scenes)]
        if name == "raster_qa":
            bodies = [raster(scene, rng, dialect) for scene in scenes]
        else:
            bodies = [sentences(rng.sample(scene, len(scene)), dialect, rng) for scene in scenes]
        texts = answer([(body, qa.question) for body, qa in zip(bodies, questions)])
        answered = [Answered(*its) for its in zip(range(n), questions, texts)]
        scores[name] = share(count_right(answered, n))
        scores[f"{name}_by_type"] = by_type(answered)
    few = scenes[:n // 3]  # their rasters continue raster_qa's random stream
    captions = answer([(raster(scene, rng, dialect), CAPTION_REQUESTS[0]) for scene in few])
    scores["raster_caption_f1"] = share(count_objects(captions, few))
    return scores
