"""What the data promise: the same for the same seed, separate splits, exact answers, and texts in
which only answers count."""
import doctest
import random
import re
from collections import Counter
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import tokenizer

from data import bpe, vocabularies, words, world
from data.corpus import DIALECTS, EMPTY, PREFIX, document, encode, raster
from data.dataset import Shapes, load_data
from data.files import Refused
from data.scoring import Answered, Said, benchmark, examine, intervals, summarize
from data.world import (COLORS, COMP_PAIRS, NUMBERS, PLACES, QA, SEEN_PAIRS, SHAPES, About, Object,
                        ask_any, belongs, caption, draw, make_scene, parse_caption, patches_of,
                        score_caption, twin)

SPLITS = ("train", "val", "test", "comp", "text:source", "text:target", "text:val", "text:test")
TWO = [Object("red", "circle", 0), Object("blue", "star", 5)]
SMALL = Shapes(train_pictures=50, test_pictures=21)


def scenes(split, n=300):
    return [make_scene(split, 0, i) for i in range(n)]


@pytest.mark.parametrize("module", [bpe, vocabularies, words, world])
def test_the_examples_of_the_docstrings_are_true(module):
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0


# ---- scenes, splits and pictures -----------------------------------------------------------------

def test_the_same_arguments_give_the_same_scenes_pictures_and_texts():
    assert make_scene("train", 0, 7) == make_scene("train", 0, 7) != make_scene("train", 1, 7)
    assert (draw(TWO, "test/3") != draw(TWO, "test/4")).mean() > 0.9
    assert document("source", 0, 7) == document("source", 0, 7) != document("source", 1, 7)
    assert (SMALL.pictures("comp", range(3, 7))[1] == SMALL.pictures("comp", [4])[0]).all()


def test_splits_share_no_scene_and_unseen_pairs_are_in_comp_alone():
    shown = {split: {frozenset(scene) for scene in scenes(split, 1000)} for split in SPLITS}
    training = {"train", "text:source", "text:target"}
    for a in SPLITS:
        assert {*map(len, shown[a])} == {1, 2, 3}
        for b in SPLITS:
            assert a == b or {a, b} <= training or not shown[a] & shown[b]
        unseen = {any(o.pair in COMP_PAIRS for o in scene) for scene in shown[a]}
        assert a.startswith("text:") or unseen == {a == "comp"}
    assert all(belongs(scene[::-1], "test") for scene in scenes("test"))  # in any order
    seen = Counter(word for scene in shown["train"] for o in scene for word in o.pair)
    assert min(seen[word] for word in COLORS + SHAPES) > 100  # each half of an unseen pair


def test_a_twin_is_a_training_scene_that_differs_in_one_word():
    for i, scene in enumerate(scenes("train", 1000)):
        other = twin(scene, random.Random(i))
        assert len(set(scene) - set(other)) == len(set(other) - set(scene)) == 1
        assert belongs(other, "train")
        assert len({o.pair for o in other}) == len({o.place for o in other}) == len(scene)
    pictures, texts = SMALL.pairs(seed=0, step=2, n=32)
    assert len(np.unique(pictures, axis=0)) == len({*texts}) == 32


def test_an_object_is_drawn_on_the_patches_of_its_place():
    for place in range(9):
        picture = draw([Object("red", "square", place)], place).astype(int)
        painted = np.abs(picture - np.median(picture, (0, 1))).sum(-1) > 150  # (48, 48)
        patches = painted.reshape(6, 8, 6, 8).sum((1, 3)).flatten()  # painted pixels of each
        assert patches[patches_of(place, 6)].sum() > 0.95 * painted.sum() > 80
    for seen, patches in SMALL.seen("test", np.arange(36)[None].repeat(20, 0)):
        o = Object(*seen.words.values(), PLACES.index(" ".join(seen.place)))
        assert o in make_scene("test", 0, seen.picture)
        assert patches.tolist() == seen.patches == patches_of(o.place, 6)


# ---- captions and questions ----------------------------------------------------------------------

@pytest.mark.parametrize("text, right, said", [
    (caption(TWO), 2, 2), ("a red circle", 0, 1), ("", 0, 0), ("nothing at the top.", 0, 0),
    ("a red circle at the top left, a blue star at the top right.", 1, 2),  # at another place
    ("a red circle at the top left, a red circle at the top left.", 1, 2),  # twice
    ("a blue star at the middle right, red circle, top left", 1, 3)])
def test_an_object_of_a_caption_is_right_if_all_of_it_is(text, right, said):
    assert score_caption(text, TWO) == (right, said, 2)


@pytest.mark.parametrize("split, pairs", [
    ("val", SEEN_PAIRS), ("test", SEEN_PAIRS), ("comp", COMP_PAIRS)])
def test_a_question_of_the_exam_has_one_answer_and_names_only_pairs_of_its_split(split, pairs):
    shown, questions, pope = benchmark(split, 500)
    for i, (type, question, answer, _) in questions + pope:
        name = {*re.findall("|".join(COLORS + SHAPES), question)}
        its = [o for o in shown[i] if name <= {*o.pair}]
        assert len(name) < 2 or any(name == {*pair} for pair in pairs)
        if len(name) == 2 and not its and split != "comp":  # it is hard: half of it is there
            assert any(name & {*o.pair} for o in shown[i])
        if type in ("color", "shape", "where"):
            (o,) = its
            facts = {"color": o.color, "shape": o.shape, "where": PLACES[o.place]}
            assert answer == facts[type] and o.pair in pairs
        elif type == "absent":
            assert not its and answer.removeprefix("there is no ") in question
        else:
            assert answer == (NUMBERS[len(its)] if type == "count" else "yes" if its else "no")
    assert 0.45 < np.mean([qa.answer == "yes" for _, qa in pope]) < 0.55


def test_things_are_named_by_color_by_shape_and_by_both():
    rng = random.Random(0)
    assert {ask_any(TWO, rng).question for _ in range(9000)} >= {
        "where is the star?", "where is the blue object?", "where is the blue star?",
        "is there a star?", "is there anything blue?", "is there a blue star?",
        "what color is the star?", "where is the cross?", "how many blue objects are there?",
        "how many stars are there?", "how many crosses can you see?"}


# ---- the exam ------------------------------------------------------------------------------------

def test_scores_are_exact():
    qas = [("color", "red"), ("count", "two"), ("exists", "no")]
    color, count, exists = (QA(type, "?", true, About(type)) for type, true in qas)
    said = Said([TWO, TWO], captions=[caption(TWO), caption(TWO[:1])],
                questions=[Answered(0, color, "red"), Answered(1, color, "blue"),
                           Answered(1, count, "two")],
                pope=[Answered(0, exists, "yes"), Answered(1, exists, "no")])
    scores = {"vqa": 2 / 3, "vqa_by_type": {"color": 1 / 2, "count": 1.0}, "caption_f1": 6 / 7,
              "pope_acc": 1 / 2, "pope_yes_rate": 1 / 2}
    assert summarize({"test": said, "val": said}) == scores | {"val": scores}
    assert summarize({"comp": said})["comp_vqa"] == 2 / 3
    counted = SMALL.counts({"test": said, "val": said})
    assert counted["vqa"].tolist() == [[1, 1], [1, 2]] and {*counted} < {*scores}
    assert intervals(counted)["caption_f1"] == [pytest.approx(2 / 3), 1.0]


def test_the_truth_scores_one_and_guessing_little():
    pictures = {"val": 30, "test": 200, "comp": 100}
    truth = summarize(examine(lambda split, items: [qa.answer for _, qa in items], pictures))
    guesses = Shapes(train_pictures=1000).guesses(pictures)
    for name in ("vqa", "caption_f1", "pope_acc", "comp_vqa"):
        assert truth[name] == truth["val"].get(name, 1) == 1
        assert all(scores[name] < 0.65 for scores in guesses.values())
    assert guesses["majority"]["vqa"] > guesses["chance"]["vqa"] > 0.1


def test_reading_is_examined_on_scenes_that_no_text_tells():
    answer = Mock(side_effect=lambda items: ["yes"] * len(items))
    scores = SMALL.examine_reading(answer, "source")
    asked = [[body for body, _ in call.args[0]] for call in answer.mock_calls]
    assert [len(bodies) for bodies in asked] == [10, 10, 3, 21, 21, 7]  # of val, then of test
    for body, scene in zip(asked[0] + asked[3], scenes("text:val", 10) + scenes("text:test", 21)):
        assert {*parse_caption(body)} == {(o.color, o.shape, PLACES[o.place]) for o in scene}
    assert all(body.count("\n") == 6 for bodies in asked[1:3] + asked[4:] for body in bodies)
    assert 0 < scores["raster_qa_by_type"]["exists"] and scores["raster_caption_f1"] == 0


def test_data_are_rebuilt_from_their_config_and_others_are_refused():
    assert load_data(SMALL.config(), "out") == SMALL
    for other in ({"kind": "photos"}, {"kind": "shapes", "max_objects": 5}):
        with pytest.raises(Refused, match="another version"):
            load_data(other, "out")


# ---- texts ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("dialect, lines, empty", [("source", 2, "."), ("foreign", 1, "-")])
def test_a_raster_shows_each_object_where_it_is(dialect, lines, empty):
    # two words in each line of a place
    tiles = np.array(raster(TWO, random.Random(0), dialect).split()).reshape(3, lines, 3, 2)
    for line in range(lines):
        shown = [{*tiles[row, line, col]} for row in range(3) for col in range(3)]
        assert shown == [{"red", "circle"}, *[{empty}] * 4, {"blue", "star"}, *[{empty}] * 3]


def test_every_vocabulary_has_the_words_of_the_world_but_numbers_them_differently():
    words = {f" {word}".encode() for word in {*COLORS, *SHAPES, *" ".join(PLACES).split()}}
    tokens = {dialect: bpe.tokens_of(tokenizer(dialect)) for dialect in DIALECTS}
    for dialect, its in tokens.items():
        assert words | {EMPTY.encode(), DIALECTS[dialect].empty.encode()} <= {*its}
    assert np.mean([a == b for a, b in zip(tokens["source"], tokens["target"])]) < 0.1


def test_only_answers_weigh_nothing_is_asked_twice_and_no_unseen_pair_in_training():
    encoding = tokenizer("source")
    for i in range(50):
        pieces = document("source", 0, i)
        ids, weights = encode(encoding, pieces)
        weighed = encoding.decode([id for id, weight in zip(ids, weights) if weight == 1])
        assert weighed == "".join(text for text, weight in pieces if weight)
        assert bool(weighed) == (pieces[:2] == PREFIX)  # else it is a story
        asked = [text for text, _ in SMALL.conversation(i, random.Random(i), turns=8)[::2]]
        assert len(asked) == len({text.replace("can you see", "are there") for text in asked}) > 1
        assert not any(f"{color} {shape}" in str(asked) for color, shape in COMP_PAIRS)
