"""What the generator promises: exact answers, separate splits, and captions that can be read back."""
import doctest
import random
from collections import Counter

import numpy as np
import pytest

import data.world as world
from data.world import (ANSWERS, COMP_PAIRS, PLACES, QUESTION_TYPES, QUESTIONS, WORDINGS, ask, caption, draw,
                        make_scene, parse_caption, score_caption, twin)


def scenes(split, n=300):
    return [make_scene(split, 0, i) for i in range(n)]


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


def test_an_invented_or_half_said_object_is_not_right():
    scene = make_scene("test", 0, 1)
    assert score_caption(caption(scene) + " a red circle at the top left.", scene)[1] == len(scene) + 1
    assert score_caption(caption(scene).replace("at the", "in"), [])[2] == 0
    assert parse_caption("a red circle") == {("red", "circle", None)}
    assert score_caption("a red circle", scene)[0] == 0


def test_answers_are_possible_and_follow_from_the_scene():
    rng = random.Random(0)
    for scene in scenes("test"):
        for type in QUESTION_TYPES:
            qa = ask(scene, type, rng)
            if qa is None:
                assert type in ("color", "shape")
                continue
            assert qa.answer in ANSWERS[type]
            _, color, shape = qa.about
            if type == "where":
                assert [PLACES[o.place] for o in scene if (o.color, o.shape) == (color, shape)] == [qa.answer]
            if type == "color":
                assert [o.color for o in scene if o.shape == shape] == [qa.answer]
            if type == "shape":
                assert [o.shape for o in scene if o.color == color] == [qa.answer]
            if type == "exists":
                assert (qa.answer == "yes") == any((o.color, o.shape) == (color, shape) for o in scene)


def test_yes_and_no_are_balanced_and_a_no_is_hard():
    rng = random.Random(0)
    asked = [(s, ask(s, "exists", rng)) for s in scenes("test", 2000)]
    assert 0.46 < np.mean([qa.answer == "yes" for _, qa in asked]) < 0.54
    for scene, qa in asked:
        if qa.answer == "no":
            assert any(qa.about[1] == o.color or qa.about[2] == o.shape for o in scene)


def test_every_question_has_two_wordings():
    assert all(len(set(wordings)) >= 2 for wordings in QUESTIONS.values())


def test_a_twin_differs_in_one_word():
    rng = random.Random(0)
    for scene in scenes("train"):
        other = twin(scene, rng)
        assert len(set(scene) - set(other)) == len(set(other) - set(scene)) == 1


def test_an_unknown_question_type_names_the_known_ones():
    with pytest.raises(ValueError, match="color, shape, where"):
        ask(make_scene("test", 0, 0), "size", random.Random(0))
