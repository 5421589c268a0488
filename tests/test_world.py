"""What the data promise: the same for the same seed, separate splits, exact answers, and texts in
which only answers count."""
import doctest
import json
import random
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from conftest import tokenizer

import data.bpe
import data.own
import data.world
from data.bpe import tokens_of
from data.corpus import DIALECTS, EMPTY, conversation, document, encode, raster
from data.dataset import Shapes, load_data
from data.files import Refused
from data.scoring import (Answered, Said, benchmark, counts, examine, intervals, score_majority,
                          summarize)
from data.world import (ANSWERS, COLORS, COMP_PAIRS, NUMBERS, PAIRS, PLACES, QA, QUESTION_TYPES,
                        SEEN_PAIRS, SHAPES, WORDINGS, About, Object, ask, belongs, caption, draw,
                        make_scene, parse_caption, patches_of, score_caption, side_of, twin)

SPLITS = ("train", "val", "test", "comp", "text:source", "text:target", "text:val", "text:test")
TWO = [Object("red", "circle", 0), Object("blue", "star", 5)]


def scenes(split, n=300):
    return [make_scene(split, 0, i) for i in range(n)]


@pytest.fixture
def shapes():
    return Shapes(train_pictures=50, test_pictures=21)


# ---- scenes, splits and pictures -----------------------------------------------------------------

@pytest.mark.parametrize("module", [data.bpe, data.own, data.world])
def test_the_examples_of_the_docstrings_are_true(module):
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0


def test_the_same_arguments_give_the_same_scenes_pictures_and_texts(shapes):
    assert make_scene("train", 0, 7) == make_scene("train", 0, 7) != make_scene("train", 1, 7)
    assert (draw(TWO, "test/3") == draw(TWO, "test/3")).all()
    assert (draw(TWO, "test/3") != draw(TWO, "test/4")).mean() > 0.9
    assert document("source", 0, 7) == document("source", 0, 7) != document("source", 1, 7)
    assert (shapes.pictures("comp", range(3, 7))[1] == shapes.pictures("comp", [4])[0]).all()
    assert [shapes.count(split) for split in shapes.SPLITS] == [50, 10, 21, 10]


def test_no_two_splits_share_a_scene_but_the_texts_and_pictures_of_training():
    shown = {split: {frozenset(scene) for scene in scenes(split, 1000)} for split in SPLITS}
    training = {"train", "text:source", "text:target"}
    for a in SPLITS:
        assert {*map(len, shown[a])} == {1, 2, 3}
        for b in SPLITS:
            assert a == b or {a, b} <= training or not shown[a] & shown[b]
    assert all(side_of(scene[::-1]) == "test" for scene in scenes("test"))  # in any order


def test_unseen_pairs_are_in_no_training_picture_and_in_every_comp_picture():
    unseen, seen = set(COMP_PAIRS), Counter()
    for split in ("train", "val", "test"):
        assert not any(o.pair in unseen for scene in scenes(split, 1000) for o in scene)
    assert all(any(o.pair in unseen for o in scene) for scene in scenes("comp", 1000))
    for scene in scenes("train", 1000):
        seen.update(word for o in scene for word in o.pair)
    assert min(seen[word] for pair in COMP_PAIRS for word in pair) > 100  # each half is


def test_unseen_pairs_are_asked_about_in_the_exam_on_them_alone(shapes):
    told = str([shapes.conversation(i, random.Random(i), turns=8) for i in range(50)])
    assert not any(f"{color} {shape}" in told for color, shape in COMP_PAIRS)
    assert any(f"{color} {shape}" in told for color, shape in SEEN_PAIRS)
    for split in ("val", "test", "comp"):
        _, questions, pope = benchmark(split, 100)
        for _, qa in questions + pope:
            pair = (qa.answer if qa.type == "color" else qa.about.color,
                    qa.answer if qa.type == "shape" else qa.about.shape)
            assert qa.type == "count" or (pair in COMP_PAIRS) == (split == "comp")


def test_a_twin_is_a_training_scene_that_differs_in_one_word(shapes):
    for scene in scenes("train"):
        other = twin(scene, random.Random(0))
        assert len(set(scene) - set(other)) == len(set(other) - set(scene)) == 1
        assert belongs(other, "train")
    pictures, texts = shapes.pairs(seed=0, step=2, n=32, of="texts")
    again, others = shapes.pairs(seed=0, step=2, n=32, of="drawings")
    assert (pictures == again).all() and len(np.unique([*pictures, *others], axis=0)) == 64
    for text, other in zip(texts[:16], texts[16:]):  # a place is named by two words
        assert 1 <= (Counter(text.split()) - Counter(other.split())).total() <= 2


def test_an_object_is_drawn_on_the_patches_of_its_place(shapes):
    assert patches_of(0, 6) == [0, 1, 6, 7] and patches_of(8, 6) == [28, 29, 34, 35]
    for place in range(9):
        picture = draw([Object("red", "square", place)], place).astype(int)
        painted = np.abs(picture - np.median(picture, (0, 1))).sum(-1) > 150  # (48, 48)
        patches = painted.reshape(6, 8, 6, 8).sum((1, 3)).flatten()  # painted pixels of each
        assert patches[patches_of(place, 6)].sum() > 0.95 * painted.sum() > 80
    values = np.arange(36)[None].repeat(20, 0)
    for seen, patches in shapes.seen("test", values):
        place, words = PLACES.index(" ".join(seen.place)), seen.words
        assert Object(words["color"], words["shape"], place) in make_scene("test", 0, seen.picture)
        assert patches.tolist() == seen.patches == patches_of(place, 6)


# ---- captions and questions ----------------------------------------------------------------------

def test_every_wording_of_a_caption_can_be_read_back():
    for scene in scenes("test"):
        for i in range(len(WORDINGS)):
            assert score_caption(caption(scene, i), scene) == (len(scene),) * 3


@pytest.mark.parametrize("text, right, said", [
    ("a red circle at the top left, a blue star at the middle right.", 2, 2),
    ("a red circle at the top left, a blue star at the top right.", 1, 2),  # at another place
    ("a red circle at the top left, a red circle at the top left.", 1, 2),  # twice
    ("a red circle at the top left, a pink cross at the top left.", 1, 2),  # invented
    ("a red circle", 0, 1), ("", 0, 0), ("there is nothing.", 0, 0)])
def test_an_object_of_a_caption_is_right_if_all_of_it_is(text, right, said):
    assert score_caption(text, TWO) == (right, said, 2)


@pytest.mark.parametrize("split, pairs", [
    ("test", SEEN_PAIRS), ("comp", COMP_PAIRS), ("text:test", PAIRS)])
def test_answers_follow_from_the_scene(split, pairs):
    rng, answers = random.Random(0), Counter()
    for scene in scenes(split):
        for type in QUESTION_TYPES:
            qa = ask(scene, type, rng, pairs)
            if qa is None:
                assert type in ("color", "shape")  # no object has one that no other has
                continue
            about, its = qa.about, [o for o in scene if qa.about.color in (None, o.color)
                                    and qa.about.shape in (None, o.shape)]
            true = {"count": [NUMBERS[len(its)]], "exists": ["yes" if its else "no"],
                    "where": [PLACES[o.place] for o in its]}
            assert true.get(type, [getattr(o, type, None) for o in its]) == [qa.answer]
            assert qa.answer in ANSWERS[type] and about.type == type
            answers[qa.answer] += 1
            if qa.answer == "no" and split == "test":  # a hard no: half of it is there
                assert any(about.color == o.color or about.shape == o.shape for o in scene)
    assert 0.4 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.6


# ---- the exam ------------------------------------------------------------------------------------

def test_scores_are_exact():
    def answered(picture, type, answer, true):
        return Answered(picture, QA(type, "?", true, About(type)), answer)

    said = {"test": Said([TWO, TWO], [answered(0, "color", "red", "red"),
                                      answered(1, "color", "red", "blue"),
                                      answered(1, "count", "two", "two")],
                         [answered(0, "exists", "yes", "no"), answered(1, "exists", "no", "no")],
                         [caption(TWO), caption(TWO[:1])])}
    assert summarize(said) == {
        "vqa": 2 / 3, "vqa_by_type": {"color": 1 / 2, "count": 1.0}, "caption_f1": 6 / 7,
        "caption_exact": 1 / 2, "pope_acc": 1 / 2, "pope_yes_rate": 1 / 2}
    counted = counts(said)
    assert counted["vqa"] == [[1, 1], [1, 2]] and counted["caption_f1"] == [[4, 4], [2, 3]]
    assert intervals(counted)["caption_f1"] == [pytest.approx(2 / 3), 1.0]


def test_the_truth_scores_one_and_guessing_little():
    pictures = {"val": 30, "test": 200, "comp": 100}
    truth = summarize(examine(lambda split, items: [qa.answer for _, qa in items], pictures))
    guesses = Shapes(train_pictures=1000).guesses(pictures)
    for name in ("vqa", "caption_f1", "pope_acc", "comp_vqa"):
        assert truth[name] == truth["val"].get(name, 1) == 1
        assert all(scores[name] < 0.65 for scores in guesses.values())
    assert guesses["majority"]["vqa"] > 0.15 and guesses["chance"]["caption_f1"] < 0.05


def test_a_majority_gives_the_most_frequent_answer_of_training():
    with mock.patch("data.scoring.make_scene", lambda split, seed, i: TWO if i else TWO[:1]):
        scores = score_majority({"test": 4}, training_pictures=100)
    assert scores["caption_f1"] == 14 / 15 and scores["vqa"] == 1


def test_reading_is_examined_on_scenes_that_no_text_tells(shapes):
    asked = []

    def answer(items):
        asked.append([body for body, _ in items])
        return ["yes"] * len(items)

    scores = shapes.examine_reading(answer, "source")
    assert [len(bodies) for bodies in asked] == [10, 10, 3, 21, 21, 7]  # of val, then of test
    for bodies, split in ((asked[0], "text:val"), (asked[3], "text:test")):
        true = [{(o.color, o.shape, PLACES[o.place]) for o in scene} for scene in scenes(split, 21)]
        assert all(set(parse_caption(body)) in true for body in bodies)
    assert all(body.count("\n") == 6 for bodies in asked[1:3] + asked[4:] for body in bodies)
    assert 0 < scores["raster_qa_by_type"]["exists"] and scores["raster_caption_f1"] == 0


def test_data_are_rebuilt_from_their_config_and_others_are_refused(shapes):
    assert load_data(json.loads(json.dumps(shapes.config())), "out") == shapes
    for other in ({"kind": "photos"}, {"kind": "shapes", "max_objects": 5}):
        with pytest.raises(Refused, match="another version"):
            load_data(other, "out")


# ---- texts ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("dialect, lines, empty", [("source", 6, " ."), ("foreign", 3, " -")])
def test_a_raster_shows_each_object_where_it_is(dialect, lines, empty):
    text = raster(TWO, random.Random(0), dialect)
    tiles, k = [line.split() for line in text.splitlines()], lines // 3
    assert len(tiles) == lines and all(len(row) == 6 for row in tiles)
    for row in tiles[:k]:
        assert {*row[:2]} == {"red", "circle"}
    for row in tiles[k:2 * k]:
        assert {*row[4:]} == {"blue", "star"}
    assert text.count(empty) == 6 * lines - 4 * k


def test_every_vocabulary_has_the_words_of_the_world_but_numbers_them_differently():
    words = {f" {word}".encode() for word in {*COLORS, *SHAPES, *" ".join(PLACES).split()}}
    tokens = {dialect: tokens_of(tokenizer(dialect)) for dialect in DIALECTS}
    for dialect, its in tokens.items():
        assert words | {EMPTY.encode(), DIALECTS[dialect].empty.encode()} <= {*its}
    same = [a == b for a, b in zip(tokens["source"], tokens["target"])]
    assert np.mean(same) < 0.1 and len({*tokens["source"]} & {*tokens["target"]}) < 0.8 * len(same)


def test_only_answers_weigh_and_nothing_is_asked_twice():
    encoding = tokenizer("source")
    for i in range(20):
        pieces = document("source", 0, i, stories=0)
        ids, weights = encode(encoding, pieces)
        weighed = encoding.decode([id for id, weight in zip(ids, weights) if weight == 1])
        assert weighed == "".join(text for text, weight in pieces if weight) != ""
        assert encoding.decode(ids) == "".join(text for text, _ in pieces)
        told = conversation(make_scene("train", 0, i), random.Random(i), 8)
        asked = [text for text, weight in told if not weight]
        assert len(asked) == len({*asked}) >= 2
    assert not any(document("source", 0, i) == document("target", 0, i) for i in range(100))
