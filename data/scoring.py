"""The exam: which questions are asked about which pictures, and what the answers are worth.

A model is examined in two steps. `examine` collects what it says (a model is a function here, so that guessing at random can
be examined like a VLM), `summarize` turns this into the scores S. The generator knows the truth about every picture, so all
scores are exact:

    vqa            exact match of generated answers, and vqa_by_type
    caption_f1     over objects: one counts as right when its colour, its shape and its place are; caption_exact: all right
    pope_acc       balanced yes/no existence with hard negatives, as in POPE (arXiv 2305.10355); pope_yes_rate
    comp_*         the same on pictures with colour-shape pairs that no training picture shows, asking only about these
"""
import random
from collections import defaultdict

import numpy as np

from data.world import (ANSWERS, CAPTION_REQUESTS, COMP_PAIRS, NUMBERS, QA, RICH_TYPES, ask, ask_any, caption, make_scene, score_caption,
                        types_of)


def subject(qa):
    """The (color, shape) pair that a question is about, its answer filled in; None in it where there is no pair."""
    type, color, shape = qa.about[:3]
    return (qa.answer if type == "color" else color, qa.answer if type == "shape" else shape)


def benchmark(split, pictures, world):
    """The questions of a split: (scenes, [(picture, QA)], [(picture, exists-QA)]). Always the same for a split.

    Two questions for each picture, types in turn where the scene allows; on 'comp', only questions about unseen pairs.
    """
    rng = random.Random(f"benchmark/{split}")
    scenes = [make_scene(split, 0, i, world) for i in range(pictures)]
    questions, pope = [], []
    for i, scene in enumerate(scenes):
        types = types_of(scene)
        for k in range(2):
            qa = ask(scene, types[(2 * i + k) % len(types)], rng) or ask_any(scene, rng)
            while split == "comp" and subject(qa) not in COMP_PAIRS:
                qa = ask_any(scene, rng)
            questions.append((i, qa))
        pope.append((i, ask(scene, "exists", rng)))
    return scenes, questions, pope


def examine(answer, pictures, world):
    """What a model says: `answer(split, [(picture, QA)])` gives texts, captions among them; pictures: {split: how many}.

    Returns {split: (scenes, [(picture, QA, answer)], [(picture, exists-QA, answer)], [caption])}.
    """
    said = {}
    for split, n in pictures.items():
        scenes, questions, pope = benchmark(split, n, world)
        pope = [] if split == "comp" else pope
        captions = [(i, QA("caption", CAPTION_REQUESTS[0], caption(scene), ("caption",))) for i, scene in enumerate(scenes)]
        items = questions + pope + captions
        asked = [(i, qa, a) for (i, qa), a in zip(items, answer(split, items))]
        said[split] = scenes, asked[:len(questions)], asked[len(questions):-n], [a for _, _, a in asked[-n:]]
    return said


def score_answers(questions, answers):
    """Exact match, in all and by question type: (accuracy, {type: accuracy})"""
    hits = defaultdict(list)
    for qa, answer in zip(questions, answers):
        hits[qa.type].append(answer == qa.answer)
    return (float(np.mean(sum(hits.values(), []))), {type: float(np.mean(hits[type])) for type in RICH_TYPES if type in hits})


def score_captions(captions, scenes):
    """(F1 over objects, share of captions that are right and complete); an object counts when all its attributes are right."""
    right, said, true = np.array([score_caption(c, s) for c, s in zip(captions, scenes)]).T
    return float(2 * right.sum() / max(1, said.sum() + true.sum())), float(np.mean((right == said) & (right == true)))


def summarize(said):
    """The scores S of what a model said."""
    scores = {}
    for split, (scenes, questions, pope, captions) in said.items():
        vqa, by_type = score_answers([qa for _, qa, _ in questions], [a for _, _, a in questions])
        f1, exact = score_captions(captions, scenes)
        if split == "comp":
            scores |= {"comp_vqa": vqa, "comp_caption_f1": f1}
        else:
            scores |= {"vqa": vqa, "vqa_by_type": by_type, "caption_f1": f1, "caption_exact": exact,
                       "pope_acc": float(np.mean([a == qa.answer for _, qa, a in pope])),
                       "pope_yes_rate": float(np.mean([a == "yes" for _, _, a in pope]))}
    return scores


def intervals(said, draws=1000):
    """95% bootstrap intervals of the scores, {score: [low, high]}: pictures are drawn with replacement, with all that is theirs."""
    rng, result = np.random.default_rng(0), {}
    for split, (scenes, questions, pope, captions) in said.items():
        n = len(scenes)
        tally = lambda asked: np.array([[sum(a == qa.answer for a, qa in own), len(own)] for own in by_picture(asked, n)])
        objects = np.array([score_caption(c, s) for c, s in zip(captions, scenes)])  # (pictures, 3)
        counts = {"vqa": tally(questions), "caption_f1": np.stack([2 * objects[:, 0], objects[:, 1] + objects[:, 2]], axis=1)}
        if pope:
            counts["pope_acc"] = tally(pope)
        picked = rng.integers(0, n, (draws, n))
        for name, pairs in counts.items():
            sums = pairs[picked].sum(1)  # (draws, 2): right and possible
            result["comp_" * (split == "comp") + name] = [float(v) for v in np.percentile(sums[:, 0] / sums[:, 1].clip(1), [2.5, 97.5])]
    return result


def by_picture(asked, n):
    """[(picture, QA, answer)] as n lists of (answer, QA)."""
    own = [[] for _ in range(n)]
    for i, qa, answer in asked:
        own[i].append((answer, qa))
    return own


def by_objects(said):
    """vqa and caption F1 on the test split by the number of objects: {1: {"vqa", "caption_f1"}, ..}"""
    scenes, questions, _, captions = said["test"]
    result = {}
    for n in sorted({len(scene) for scene in scenes}):
        own = [(qa, a) for i, qa, a in questions if len(scenes[i]) == n]
        result[n] = {"vqa": score_answers(*zip(*own))[0],
                     "caption_f1": score_captions(*zip(*[(c, s) for c, s in zip(captions, scenes) if len(s) == n]))[0]}
    return result


def score_chance(pictures, world):
    """S of answers drawn at random from those possible, and of captions of other scenes, drawn at random."""
    rng, possible = random.Random("chance"), ANSWERS | {"count": NUMBERS[:world.max_objects + 1]}
    guess = lambda split, i, qa: caption(make_scene(split, 1, i, world)) if qa.type == "caption" else rng.choice(possible[qa.type])
    return summarize(examine(lambda split, items: [guess(split, i, qa) for i, qa in items], pictures, world))
