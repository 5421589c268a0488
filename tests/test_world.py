"""What the data promise: exact answers, separate splits, captions that can be read back, scores
that mean what they say, and one object through which the stages see it all."""
import doctest
import json
import random
from collections import Counter

import numpy as np
import pytest

import data.world as world
from data.dataset import ShapeData, load_data
from data.files import Refused
from data.scoring import (
    by_objects, color_edits, counts, examine, intervals, score_chance, score_majority, summarize)
from data.world import (
    ANSWERS, COLORS, COMP_PAIRS, NUMBERS, PAIRS, PLACES, QUESTION_TYPES, QUESTIONS, SEEN_PAIRS,
    SHAPES, SIDES, WORDINGS, Object, ask, belongs, caption, draw, make_scene, parse_caption,
    patches_of, score_caption, side_of, twin)

SPLITS = ("train", "val", "test", "comp", "text:source", "text:target", "text:val", "text:test")


def scenes(split, n=300):
    return [make_scene(split, 0, i) for i in range(n)]


def pairs_of(scene):
    return {o.pair for o in scene}


# ---- scenes and pictures -----------------------------------------------------------------------

def test_the_examples_of_the_docstrings_are_true():
    result = doctest.testmod(world)
    assert result.failed == 0 and result.attempted > 0


def test_a_scene_is_a_function_of_split_seed_and_index():
    assert make_scene("train", 0, 7) == make_scene("train", 0, 7)
    assert make_scene("train", 0, 7) != make_scene("train", 1, 7)
    scene = make_scene("test", 0, 3)
    assert (draw(scene, "test/3") == draw(scene, "test/3")).all()
    assert (draw(scene, "test/3") != draw(scene, "test/4")).mean() > 0.9


def test_no_two_splits_share_a_scene_except_the_texts_and_pictures_that_are_trained_on():
    shown = {split: {frozenset(scene) for scene in scenes(split, 3000)} for split in SPLITS}
    training = {"train", "text:source", "text:target"}
    for a in SPLITS:
        for b in SPLITS:
            if a != b and not {a, b} <= training:
                assert not shown[a] & shown[b], (a, b)
    assert shown["train"] & shown["text:source"] & shown["text:target"]


def test_the_stages_meet_the_scenes_of_the_splits_that_are_held_apart():
    shapes, read = ShapeData(train_pictures=50, test_pictures=60), []
    for split in shapes.SPLITS:
        drawn = draw(make_scene(split, 0, 1), f"{split}/1")
        assert (shapes.pictures(split, [1])[0] == drawn).all()

    def answer(asked):
        read.extend(body for body, _ in asked if " at the " in body)
        return [""] * len(asked)

    shapes.examine_reading(answer, "source")
    held_out = {frozenset((o.color, o.shape, PLACES[o.place]) for o in scene)
                for split in ("text:val", "text:test") for scene in scenes(split, 100)}
    assert len(read) == 30 + 60
    assert all(frozenset(parse_caption(body)) in held_out for body in read)


def test_every_split_has_scenes_of_one_object_and_sides_are_as_large_as_they_say():
    sides = Counter(side_of([Object(*pair, place)]) for pair in PAIRS for place in range(9))
    assert sides.total() == 432 and all(sides[side] >= 30 for side in SIDES)
    assert 0.5 < sides["train"] / 432 < 0.7
    for split in SPLITS:
        sizes = Counter(len(scene) for scene in scenes(split, 600))
        assert set(sizes) == {1, 2, 3} and min(sizes.values()) > 150


def test_the_order_of_objects_does_not_move_a_scene_to_another_side():
    rng = random.Random(0)
    for scene in scenes("text:test", 50):
        shuffled = rng.sample(scene, len(scene))
        assert side_of(shuffled) == side_of(scene) == "text:test"


def test_unseen_pairs_are_in_no_training_picture_and_in_every_comp_picture():
    for split in ("train", "val", "test"):
        assert not any(pairs_of(scene) & set(COMP_PAIRS) for scene in scenes(split, 2000))
    assert all(pairs_of(scene) & set(COMP_PAIRS) for scene in scenes("comp", 2000))
    assert len(COMP_PAIRS) >= 0.15 * len(COLORS) * len(SHAPES)


def test_each_half_of_an_unseen_pair_is_seen_plenty():
    seen = Counter()
    for scene in scenes("train", 2000):
        for o in scene:
            seen.update([o.color, o.shape])
    for color, shape in COMP_PAIRS:
        assert min(seen[color], seen[shape]) > 200


def test_a_twin_is_a_training_scene_that_differs_in_one_word():
    rng = random.Random(0)
    for scene in scenes("train"):
        other = twin(scene, rng)
        assert len(set(scene) - set(other)) == len(set(other) - set(scene)) == 1
        assert belongs(other, "train")


def test_the_patches_of_a_place_are_those_its_object_covers():
    assert patches_of(0, 6) == [0, 1, 6, 7] and patches_of(8, 6) == [28, 29, 34, 35]
    assert sorted(sum((patches_of(p, 6) for p in range(9)), [])) == list(range(36))


# ---- captions and questions --------------------------------------------------------------------

def test_every_wording_of_a_caption_can_be_read_back():
    for scene in scenes("test"):
        for i in range(len(WORDINGS)):
            assert score_caption(caption(scene, i), scene) == (len(scene),) * 3


def test_an_invented_a_half_said_or_a_repeated_object_is_not_right():
    scene = make_scene("test", 0, 1)
    n = len(scene)
    invented = caption(scene) + " a red circle at the top left."
    assert score_caption(invented, scene) == (n, n + 1, n)
    assert score_caption(caption(scene) * 2, scene) == (n, 2 * n, n)
    assert score_caption(caption(scene), [])[2] == 0
    assert parse_caption("a red circle") == [("red", "circle", "")]
    assert score_caption("a red circle", scene)[0] == 0


def true_answers(scene, about):
    """What can truly be answered to a question about this, by another way than the generator's."""
    these = [o for o in scene if about.color in (None, o.color) and about.shape in (None, o.shape)]
    if about.type == "count":
        return [NUMBERS[len(these)]]
    if about.type == "exists":
        return ["yes" if these else "no"]
    if about.type == "where":
        return [PLACES[o.place] for o in these]
    return [getattr(o, about.type) for o in these]


@pytest.mark.parametrize("split, pairs", [
    ("test", SEEN_PAIRS), ("comp", COMP_PAIRS), ("text:test", PAIRS)])
def test_answers_are_possible_and_follow_from_the_scene(split, pairs):
    rng = random.Random(0)
    for scene in scenes(split):
        for type in QUESTION_TYPES:
            qa = ask(scene, type, rng, pairs)
            if qa is None:
                assert type in ("color", "shape")
                continue
            assert qa.answer in (NUMBERS[:len(scene) + 1] if type == "count" else ANSWERS[type])
            assert qa.type == qa.about.type == type
            assert true_answers(scene, qa.about) == [qa.answer]


def test_yes_and_no_are_balanced_and_a_no_is_hard():
    rng = random.Random(0)
    asked = [(scene, ask(scene, "exists", rng, SEEN_PAIRS)) for scene in scenes("test", 2000)]
    assert 0.46 < np.mean([qa.answer == "yes" for _, qa in asked]) < 0.54
    for scene, qa in asked:
        if qa.answer == "no":
            assert any(qa.about.color == o.color or qa.about.shape == o.shape for o in scene)


def test_the_name_of_a_pair_does_not_give_the_answer_away():
    """Outside comp no unseen pair is asked about, in training neither; in comp nothing else is."""
    rng, shapes = random.Random(0), ShapeData(train_pictures=500)
    unseen = {f"{color} {shape}" for color, shape in COMP_PAIRS}
    told = "".join(text for i in range(500) for text, _ in shapes.conversation(i, rng, 8))
    assert not any(pair in told for pair in unseen) and "red circle" in told
    said = examine(lambda split, items: [""] * len(items), {"val": 300, "test": 300, "comp": 300})
    for split in ("val", "test", "comp"):
        about = [a.qa.about for a in said[split].questions + said[split].pope
                 if a.qa.type in ("exists", "where")]
        assert all(((o.color, o.shape) in COMP_PAIRS) == (split == "comp") for o in about)


def test_every_question_has_two_wordings():
    assert all(len(set(wordings)) >= 2 for wordings in QUESTIONS.values())


def test_an_unknown_question_type_names_the_known_ones():
    with pytest.raises(ValueError, match="color, shape, where"):
        ask(make_scene("test", 0, 0), "size", random.Random(0))


# ---- the exam ----------------------------------------------------------------------------------

def exam(accuracy):
    """What a model says that is right so often, by the generator's own truth."""
    rng = random.Random(0)

    def answer(split, items):
        return [qa.answer if rng.random() < accuracy else "?" for _, qa in items]

    return examine(answer, {"val": 50, "test": 300, "comp": 100})


def test_the_truth_scores_one_and_nonsense_zero():
    truth, nonsense = summarize(exam(1.0)), summarize(exam(0.0))
    scores = ["vqa", "caption_f1", "caption_exact", "pope_acc", "comp_vqa", "comp_caption_f1"]
    assert all(truth[name] == 1 for name in scores)
    assert all(nonsense[name] == 0 for name in scores)
    assert truth["val"]["vqa"] == 1 and nonsense["val"]["pope_acc"] == 0


def test_the_exam_on_unseen_pairs_asks_about_these_only():
    comp = exam(1.0)["comp"]
    for asked in comp.questions:
        qa = asked.qa
        color = qa.answer if qa.type == "color" else qa.about.color
        shape = qa.answer if qa.type == "shape" else qa.about.shape
        assert (color, shape) in COMP_PAIRS
    assert len(comp.questions) == 2 * len(comp.pope) == 200


def test_an_interval_holds_the_score_and_has_the_width_of_a_binomial():
    said = {split: said for split, said in exam(0.8).items() if split != "val"}
    scores, bounds = summarize(said), intervals(counts(said))
    for name, (low, high) in bounds.items():
        assert low < scores[name] < high
    low, high = bounds["pope_acc"]
    assert 0.7 < (high - low) / (2 * 1.96 * np.sqrt(0.8 * 0.2 / 300)) < 1.4


def test_scores_are_told_for_each_number_of_objects():
    assert by_objects(exam(1.0)) == {n: {"vqa": 1, "caption_f1": 1} for n in (1, 2, 3)}


def test_guessing_scores_little_and_the_likeliest_answers_are_not_worth_more_than_half():
    pictures = {"val": 30, "test": 300, "comp": 150}
    chance, majority = score_chance(pictures), score_majority(pictures, 2000)
    for scores in (chance, majority):
        assert 0.1 < scores["vqa"] < 0.4 and scores["caption_f1"] < 0.05
        assert 0.4 < scores["pope_acc"] < 0.6 and 0.4 < scores["comp_pope_acc"] < 0.6
    assert majority["vqa_by_type"]["count"] > chance["vqa_by_type"]["count"]


def test_an_edit_asks_what_follows_from_the_new_colour():
    edits = color_edits(100)
    assert {edit.follows for edit in edits} == {True, False}
    for edit in edits:
        scene = make_scene("test", 0, edit.picture)
        assert edit.new not in [o.color for o in scene]
        if edit.follows:
            assert (edit.answer, edit.answer_after) == (edit.old, edit.new)
            assert edit.question == edit.question_after
        else:
            assert edit.answer == edit.answer_after
            assert edit.question_after == edit.question.replace(edit.old, edit.new)


# ---- the object that the stages see ------------------------------------------------------------

def test_the_data_of_an_older_version_are_refused():
    with pytest.raises(Refused, match="another version"):
        load_data({"kind": "shapes", "max_objects": 5, "rich": True, "size": 96}, "out")


@pytest.fixture
def shapes():
    return ShapeData(train_pictures=50, test_pictures=21)


def test_a_split_has_as_many_pictures_as_it_says(shapes):
    assert [shapes.count(split) for split in shapes.SPLITS] == [50, 10, 21, 10]
    pictures = shapes.pictures("comp", range(3, 7))
    assert pictures.shape == (4, 48, 48, 3) and pictures.dtype == np.uint8
    assert (pictures[1] == shapes.pictures("comp", [4])[0]).all()


def test_the_data_can_be_stored_as_json_and_loaded_again(shapes):
    assert load_data(json.loads(json.dumps(shapes.config())), "out") == shapes


def test_an_unknown_kind_of_data_names_the_known_ones():
    with pytest.raises(Refused, match="'photos', expected one of shapes"):
        load_data({"kind": "photos", "size": 48}, "out")


def test_the_second_half_of_a_batch_are_twins_that_differ_in_one_word(shapes):
    pictures, texts = shapes.pairs(seed=0, step=2, n=32, of="texts")
    assert pictures.shape == (32, 48, 48, 3) and len(texts) == 32
    for text, other in zip(texts[:16], texts[16:]):
        old, new = Counter(text.split()), Counter(other.split())
        lost, got = set(old - new), set(new - old)
        if lost <= set(shapes.place_words):  # a place is named by two words
            assert 1 <= len(lost) == len(got) <= 2
        else:
            assert len(lost) == len(got) == 1
    assert len(np.unique(pictures, axis=0)) == 32


def test_two_drawings_of_a_scene_are_of_one_scene_and_differ(shapes):
    pictures, texts = shapes.pairs(seed=0, step=2, n=8, of="texts")
    again, others = shapes.pairs(seed=0, step=2, n=8, of="drawings")
    assert (pictures == again).all() and others.shape == pictures.shape
    assert not (others == pictures).all(axis=(1, 2, 3)).any()
    first, second = shapes.test_pairs("test", 0, "drawings", n=4)
    assert (first == shapes.pictures("test", range(4))).all()
    for i, (a, b) in enumerate(zip(first, second)):
        objects = [patch for o in shapes.objects("test", i, 6) for patch in o.patches]
        contrast = [[np.ptp(picture[8 * (n // 6):][:8, 8 * (n % 6):][:, :8], axis=(0, 1)).max()
                     for n in range(36)] for picture in (a, b)]
        loudest = [set(np.argsort(each)[-2:]) for each in contrast]
        assert all(patches <= set(objects) for patches in loudest)


@pytest.mark.parametrize("split", ["val", "test"])
def test_pictures_for_retrieval_are_the_first_of_a_split_in_order(shapes, split):
    pictures, texts = shapes.test_pairs(split, 1, "texts", n=5)
    assert (pictures == shapes.pictures(split, range(5, 10))).all()
    for text, index in zip(texts, range(5, 10)):
        for o in shapes.objects(split, index, 6):
            assert {*o.words.values(), *o.place} <= set(text.split())


def test_an_object_has_the_words_of_the_scene():
    for index in range(50):
        scene = make_scene("comp", 0, index)
        for o, seen in zip(scene, ShapeData().objects("comp", index, 6), strict=True):
            assert seen.words == {"color": o.color, "shape": o.shape}
            assert " ".join(seen.place) == PLACES[o.place]
            assert all(word in ShapeData.kinds[kind] for kind, word in seen.words.items())
            assert set(seen.place) <= set(ShapeData.place_words)


def test_the_patches_of_an_object_are_those_where_its_picture_shows_it():
    shapes, inside = ShapeData(), []
    for index in range(100):
        objects = shapes.objects("test", index, 6)
        if len(objects) > 1:
            continue
        picture = shapes.pictures("test", [index])[0].astype(int)
        background = np.median(picture, axis=(0, 1))
        painted = np.abs(picture - background).sum(-1) > 150  # (48, 48)
        patches = painted.reshape(6, 8, 6, 8).sum((1, 3)).flatten()  # painted pixels of each
        inside.append((patches[objects[0].patches].sum(), painted.sum()))
    shown, painted = np.array(inside).T
    assert len(inside) > 20 and painted.sum() > 1000
    assert shown.sum() / painted.sum() > 0.95


def test_example_questions_have_one_of_each_type():
    assert len(ShapeData().example_questions()) == len(QUESTION_TYPES)


def test_reading_is_examined_on_sentences_then_on_rasters_and_then_with_captions(shapes):
    exams = []

    def answer(asked):
        exams.append(asked)
        return ["yes"] * len(asked)

    scores = shapes.examine_reading(answer, "source")
    assert [len(asked) for asked in exams] == [10, 10, 3, 21, 21, 7]  # val, then test
    assert all(" at the " in scene for scene, _ in exams[0] + exams[3])
    places = [[place for _, _, place in parse_caption(scene)] for scene, _ in exams[3]]
    assert any(said != sorted(said, key=PLACES.index) for said in places)  # in any order
    rasters = exams[1] + exams[2] + exams[4] + exams[5]
    assert all(scene.count("\n") == 6 for scene, _ in rasters)
    assert {question for _, question in exams[2] + exams[5]} == {shapes.request}
    for of_split in (scores, scores["val"]):
        assert 0 < of_split["raster_qa_by_type"]["exists"] <= 1
        assert of_split["text_qa_by_type"]["color"] == of_split["raster_caption_f1"] == 0
    assert 0 < scores["text_qa"] < 0.5 and scores["raster_qa_by_type"]["exists"] < 1
