"""The exam: which questions are asked about which pictures, and what the answers are worth.

`examine` collects what a model says (a model is any function here, so guessing can sit the exam
too), and `summarize` turns that into scores. The truth is known, so every score is exact:

    vqa            exact match of generated answers; vqa_by_type: the same by type of question
    caption_f1     over objects: one is right when its colour, shape and place all are
    caption_exact  share of captions that are right and complete
    pope_acc       is there a ..? half yes, half hard no, as in POPE (arXiv 2305.10355); of unseen
                   pairs, a third of the no are not hard: a colour is in only one of these pairs
    pope_yes_rate  share of yes among these answers
    comp_*         on pictures with, and questions about, pairs that no training picture shows
    val            the same scores on the val split: for choices, while the others are for reports
"""
import random
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

from data.corpus import raster, sentences
from data.world import (ANSWERS, CAPTION_REQUESTS, COMP_PAIRS, PAIRS, QA, QUESTION_TYPES,
                        SEEN_PAIRS, About, ask, ask_any, caption, make_scene, score_caption)


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


def ask_in_turn(scene, k, rng, pairs=PAIRS, types=QUESTION_TYPES):
    """A question of the k-th type (cyclically), or of any type if the scene has none of it."""
    return ask(scene, types[k % len(types)], rng, pairs) or ask_any(scene, rng, pairs, types)


def asked_about(split):
    """(types of question, pairs that they are about) in a split's exam; of unseen pairs, only
    questions about what is there, and whether it is"""
    if split == "comp":
        return ["color", "shape", "where", "exists"], COMP_PAIRS
    return QUESTION_TYPES, SEEN_PAIRS


def benchmark(split, pictures):
    """The exam of a split's first pictures, two questions and one yes/no question about each:
    (scenes, [(picture, QA)], [(picture, QA of type 'exists')])"""
    rng = random.Random(f"benchmark/{split}")
    types, pairs = asked_about(split)
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


def score_answers(answered):
    """Exact match, in all and by question type: (accuracy, {type: accuracy})"""
    hits = defaultdict(list)
    for a in answered:
        hits[a.qa.type].append(a.right)
    by_type = {type: float(np.mean(hits[type])) for type in QUESTION_TYPES if type in hits}
    return float(np.mean([a.right for a in answered])), by_type


def count_objects(captions, scenes):
    """(right, said, true) objects of each caption: three arrays (captions,)"""
    return np.array([score_caption(text, scene) for text, scene in zip(captions, scenes)]).T


def caption_f1(right, said, true):
    """F1 over the objects of some captions"""
    return float(2 * right.sum() / max(1, said.sum() + true.sum()))


def summarize(said):
    """The scores of what a model said."""
    by_split = {}
    for split, (scenes, questions, pope, captions) in said.items():
        vqa, by_type = score_answers(questions)
        right, named, true = count_objects(captions, scenes)
        by_split[split] = {
            "vqa": vqa, "vqa_by_type": by_type, "caption_f1": caption_f1(right, named, true),
            "caption_exact": float(np.mean((right == named) & (right == true))),
            "pope_acc": score_answers(pope)[0],
            "pope_yes_rate": float(np.mean([a.answer == "yes" for a in pope]))}
    return join_splits(by_split)


def join_splits(by_split):
    """{split: its scores} as one dict: test's as they are, comp's with comp_ before their names,
    and val's as a dict of their own, where no table takes them for test's."""
    scores = {}
    for split, own in by_split.items():
        if split == "val":
            scores["val"] = own
        elif split == "comp":
            scores |= {f"comp_{name}": value for name, value in own.items()}
        else:
            scores |= own
    return scores


def counts(said):
    """What each picture adds to the scores, {score: [[got, possible], ..]}: a score is the sum of
    what was got over the sum of what was possible. For bootstraps, which resample pictures."""
    result = {}
    for prefix, split in (("", "test"), ("comp_", "comp")):  # nothing is reported on val
        if split in said:
            scenes, questions, pope, captions = said[split]
            for name, answered in (("vqa", questions), ("pope_acc", pope)):
                result[prefix + name] = np.zeros((len(scenes), 2), dtype=int)
                for a in answered:
                    result[prefix + name][a.picture] += (a.right, 1)
            right, named, true = count_objects(captions, scenes)
            result[f"{prefix}caption_f1"] = np.stack([2 * right, named + true], 1)
    return result


def intervals(counted, draws=1000):
    """95% bootstrap intervals of counts, {score: [low, high]}, resampling whole pictures."""
    result = {}
    for name, pairs in counted.items():
        rng, pairs = np.random.default_rng(0), np.array(pairs)  # (pictures, 2)
        got, possible = pairs[rng.integers(0, len(pairs), (draws, len(pairs)))].sum(1).T  # (draws,)
        low, high = np.percentile(got / possible.clip(1), [2.5, 97.5])
        result[name] = [float(low), float(high)]
    return result


# ---- scores without looking --------------------------------------------------------------------

def score_chance(pictures):
    """The scores of random answers, and of captions of other scenes."""
    def answer(split, items):
        rng, texts = random.Random(f"chance/{split}"), []
        for picture, qa in items:
            if qa.type == "caption":
                texts.append(caption(make_scene(split, 1, picture)))
            else:
                texts.append(rng.choice(ANSWERS[qa.type]))
        return texts

    return summarize(examine(answer, pictures))


def score_majority(pictures, training_pictures):
    """The scores of the answer that each question most often has about training pictures; if never
    asked there, of the one that its type of question most often has."""
    rng = random.Random("majority")
    answers = defaultdict(Counter)  # question or type -> its answers
    for i in range(training_pictures):
        scene = make_scene("train", 0, i)
        for qa in [caption_of(scene)] + [ask_any(scene, rng, SEEN_PAIRS) for _ in range(4)]:
            answers[qa.question][qa.answer] += 1
            answers[qa.type][qa.answer] += 1

    def answer(split, items):
        texts = []
        for _, qa in items:
            known = answers.get(qa.question) or answers[qa.type]
            texts.append(known.most_common(1)[0][0])
        return texts

    return summarize(examine(answer, pictures))


# ---- reading -------------------------------------------------------------------------------------

def examine_reading(answer, dialect, split, n):
    """The scores of an LLM, answer([(scene in words, question), ..]) -> texts, on the first n
    scenes of a split of texts: does it answer from sentences and from rasters, and can it describe
    rasters? What it cannot do with words, it cannot do with patches that are mixtures of words."""
    scenes = [make_scene(split, 0, i) for i in range(n)]
    scores = {}
    for name in ("text_qa", "raster_qa"):
        rng = random.Random(f"{name}/{split}")
        questions = [ask_in_turn(scene, i, rng) for i, scene in enumerate(scenes)]
        asked = []
        for scene, qa in zip(scenes, questions):
            if name == "raster_qa":
                body = raster(scene, rng, dialect)
            else:
                body = sentences(rng.sample(scene, len(scene)), dialect, rng)
            asked.append((body, qa.question))
        texts = answer(asked)
        answered = [Answered(i, qa, texts[i]) for i, qa in enumerate(questions)]
        scores[name], scores[f"{name}_by_type"] = score_answers(answered)
    few = scenes[:n // 3]  # their rasters continue raster_qa's random stream
    captions = answer([(raster(scene, rng, dialect), CAPTION_REQUESTS[0]) for scene in few])
    scores["raster_caption_f1"] = caption_f1(*count_objects(captions, few))
    return scores
