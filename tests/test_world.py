"""What the generator promises: exact answers, separate splits, and captions that can be read back."""
import doctest
import random
from collections import Counter

import numpy as np
import pytest

import data.world as world
from data.world import (ANSWERS, COMP_PAIRS, NUMBERS, PLACES, QUESTION_TYPES, QUESTIONS, RICH_QUESTIONS, RICH_TYPES, RICH_WORDINGS, SYNONYMS, WORDINGS,
                        World, ask, caption, draw, make_scene, parse_caption, score_caption, twin, types_of)

RICH = World(max_objects=5, rich=True)


def scenes(split, n=300, world=World()):
    return [make_scene(split, 0, i, world) for i in range(n)]


def test_the_examples_of_the_docstring_are_true():
    assert doctest.testmod(world).failed == 0


def test_a_scene_is_a_function_of_split_seed_and_index():
    assert make_scene("train", 0, 7) == make_scene("train", 0, 7)
    assert scenes("train") != scenes("val") != scenes("test")
    assert (draw(make_scene("test", 0, 3)) == draw(make_scene("test", 0, 3))).all()


def test_unseen_pairs_are_in_no_training_picture_and_in_every_comp_picture():
    pairs = lambda split: [{(o.color, o.shape) for o in s} & COMP_PAIRS for s in scenes(split, 2000)]
    assert not any(pairs("train") + pairs("val") + pairs("test")) and all(pairs("comp"))
    assert len(COMP_PAIRS) >= 0.15 * len(world.COLORS) * len(world.SHAPES)
    rng = random.Random(0)
    assert not any((o.color, o.shape) in COMP_PAIRS for s in scenes("train") for o in twin(s, rng))


def test_each_half_of_an_unseen_pair_is_seen_plenty():
    seen = Counter(word for s in scenes("train", 2000) for o in s for word in (o.color, o.shape))
    assert min(seen[word] for pair in COMP_PAIRS for word in pair) > 200


def test_every_wording_of_a_caption_can_be_read_back():
    for scene in scenes("test"):
        for wording in range(len(WORDINGS)):
            assert score_caption(caption(scene, wording), scene) == (len(scene),) * 3
    for scene in scenes("test", world=RICH):
        for wording in range(len(RICH_WORDINGS)):
            assert score_caption(caption(scene, wording), scene) == (len(scene),) * 3
        assert score_caption(caption([o._replace(size="") for o in scene]), scene)[0] == 0  # the size is an attribute like the others


def test_an_invented_or_half_said_object_is_not_right():
    scene = make_scene("test", 0, 1)
    assert score_caption(caption(scene) + " a red circle at the top left.", scene)[1] == len(scene) + 1
    assert score_caption(caption(scene).replace("at the", "in"), [])[2] == 0
    assert parse_caption("a red circle") == {("red", "circle", "", "")}
    assert score_caption("a red circle", scene)[0] == 0


def test_answers_are_possible_and_follow_from_the_scene():
    rng = random.Random(0)
    for scene in scenes("test") + scenes("test", world=RICH):
        for type in types_of(scene):
            qa = ask(scene, type, rng)
            if qa is None:
                assert type in ("color", "shape", "relation")
                continue
            assert qa.answer in (NUMBERS[:len(scene) + 1] if type == "count" else ANSWERS[type])
            _, color, shape, *rest = qa.about
            if type == "where":
                assert [PLACES[o.place] for o in scene if (o.color, o.shape) == (color, shape)] == [qa.answer]
            if type == "color":
                assert [o.color for o in scene if o.shape == shape] == [qa.answer]
            if type == "shape":
                assert [o.shape for o in scene if o.color == color] == [qa.answer]
            if type == "size":
                assert [o.size for o in scene if (o.color, o.shape) == (color, shape)] == [qa.answer]
            if type == "relation":
                (row, col), (row2, col2) = [divmod(o.place, 3) for pair in ((color, shape), tuple(rest[1:])) for o in scene if o[:2] == pair]
                true = {"left of": col < col2, "right of": col > col2, "above": row < row2, "below": row > row2}[rest[0]]
                assert qa.answer == ("yes" if true else "no")
            if type == "exists":
                assert (qa.answer == "yes") == any((o.color, o.shape) == (color, shape) for o in scene)


def test_yes_and_no_are_balanced_and_a_no_is_hard():
    rng = random.Random(0)
    asked = [(s, ask(s, "exists", rng)) for s in scenes("test", 2000)]
    assert 0.46 < np.mean([qa.answer == "yes" for _, qa in asked]) < 0.54
    for scene, qa in asked:
        if qa.answer == "no":
            assert any(qa.about[1] == o.color or qa.about[2] == o.shape for o in scene)


@pytest.mark.parametrize("type", ["size", "relation"])
def test_the_answers_of_the_rich_world_are_balanced(type):
    rng = random.Random(0)
    answers = Counter(qa.answer for qa in (ask(s, type, rng) for s in scenes("test", 2000, RICH)) if qa)
    assert 0.46 < answers[ANSWERS[type][0]] / answers.total() < 0.54


def test_the_rich_world_has_the_same_objects_with_sizes_that_can_be_seen():
    for plain, rich in zip(scenes("test", 20), scenes("test", 20, World(rich=True))):
        assert [o[:3] for o in plain] == [o[:3] for o in rich] and all(o.size in world.SIZES for o in rich)
    pictures = lambda size: [draw([world.Object("red", "square", 4, size)], seed=i).astype(int) for i in range(20)]
    painted = lambda size: np.mean([(np.abs(p - p[0, 0]).sum(-1) > 120).mean() for p in pictures(size)])
    assert 0 < painted("small") < 0.6 * painted("large")


def test_synonyms_are_asked_with_and_never_answered():
    rng = random.Random(0)
    asked = [ask(s, type, rng) for s in scenes("train", 300, RICH) for type in RICH_TYPES]
    said = lambda texts: {word for text in texts for word in text.replace("?", "").replace(".", "").split()}
    assert set(SYNONYMS.values()) <= said(qa.question for qa in asked if qa)
    assert not set(SYNONYMS.values()) & said(qa.answer for qa in asked if qa)
    plain = [ask(s, type, rng) for s in scenes("train") for type in QUESTION_TYPES]
    assert not set(SYNONYMS.values()) & said(qa.question for qa in plain if qa)


def test_every_question_has_two_wordings():
    assert all(len(set(wordings)) >= 2 for wordings in QUESTIONS.values())
    assert all(len(set(QUESTIONS.get(key, []) + RICH_QUESTIONS[key])) >= 2 for key in RICH_QUESTIONS)


def test_a_twin_differs_in_one_word():
    rng = random.Random(0)
    for scene in scenes("train") + scenes("train", world=RICH):
        other = twin(scene, rng)
        assert len(set(scene) - set(other)) == len(set(other) - set(scene)) == 1


def test_an_unknown_question_type_names_the_known_ones():
    with pytest.raises(ValueError, match="color, shape, where"):
        ask(make_scene("test", 0, 0), "size", random.Random(0))
