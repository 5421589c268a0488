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
from data.scoring import by_objects, color_edits, examine, intervals, summarize
from data.world import (
    ANSWERS, COLORS, COMP_PAIRS, NUMBERS, PLACES, QUESTION_TYPES, QUESTIONS, RICH_QUESTIONS,
    RICH_TYPES, RICH_WORDINGS, SHAPES, SYNONYMS, WORDINGS, World, ask, caption, draw, make_scene,
    parse_caption, patches_of, score_caption, twin, types_of)

RICH = World(max_objects=5, rich=True)


def scenes(split, n=300, world=World()):
    return [make_scene(split, 0, i, world) for i in range(n)]


def pairs_of(scene):
    return {(o.color, o.shape) for o in scene}


def words_of(texts):
    return set(" ".join(texts).replace("?", "").replace(".", "").split())


# ---- scenes and pictures -----------------------------------------------------------------------

def test_the_examples_of_the_docstrings_are_true():
    result = doctest.testmod(world)
    assert result.failed == 0 and result.attempted > 0


def test_a_scene_is_a_function_of_split_seed_and_index():
    assert make_scene("train", 0, 7) == make_scene("train", 0, 7)
    assert scenes("train") != scenes("val") != scenes("test")
    assert (draw(make_scene("test", 0, 3)) == draw(make_scene("test", 0, 3))).all()


def test_a_drawing_is_seeded_by_what_the_scene_shows_and_by_nothing_else():
    plain = world.Object("red", "circle", 4)
    large = world.Object("blue", "star", 8, "large")
    assert world.drawing_seed([plain, large], 3) == (
        "draw/3/[Object(color='red', shape='circle', place=4), "
        "Object(color='blue', shape='star', place=8, size='large')]")


def test_unseen_pairs_are_in_no_training_picture_and_in_every_comp_picture():
    for split in ("train", "val", "test"):
        assert not any(pairs_of(scene) & COMP_PAIRS for scene in scenes(split, 2000))
    assert all(pairs_of(scene) & COMP_PAIRS for scene in scenes("comp", 2000))
    assert len(COMP_PAIRS) >= 0.15 * len(COLORS) * len(SHAPES)
    rng = random.Random(0)
    assert not any(pairs_of(twin(scene, rng)) & COMP_PAIRS for scene in scenes("train"))


def test_each_half_of_an_unseen_pair_is_seen_plenty():
    seen = Counter()
    for scene in scenes("train", 2000):
        for o in scene:
            seen.update([o.color, o.shape])
    for color, shape in COMP_PAIRS:
        assert min(seen[color], seen[shape]) > 200


def test_the_rich_world_has_the_same_objects_with_sizes_that_can_be_seen():
    for plain, rich in zip(scenes("test", 20), scenes("test", 20, World(rich=True))):
        assert plain == [o._replace(size="") for o in rich]
        assert all(o.size in world.SIZES for o in rich)

    def painted(size):
        """The share of pixels unlike the background, with one object of this size."""
        shares = []
        for seed in range(20):
            picture = draw([world.Object("red", "square", 4, size)], seed=seed).astype(int)
            shares.append((np.abs(picture - picture[0, 0]).sum(-1) > 120).mean())
        return np.mean(shares)

    assert 0 < painted("small") < 0.6 * painted("large")


def test_a_twin_differs_in_one_word():
    rng = random.Random(0)
    for scene in scenes("train") + scenes("train", world=RICH):
        other = twin(scene, rng)
        assert len(set(scene) - set(other)) == len(set(other) - set(scene)) == 1


def test_the_patches_of_a_place_are_those_its_object_covers():
    assert patches_of(0, 6) == [0, 1, 6, 7] and patches_of(8, 6) == [28, 29, 34, 35]
    assert sorted(sum((patches_of(p, 6) for p in range(9)), [])) == list(range(36))


# ---- captions and questions --------------------------------------------------------------------

@pytest.mark.parametrize("kind, wordings", [(World(), WORDINGS), (RICH, RICH_WORDINGS)])
def test_every_wording_of_a_caption_can_be_read_back(kind, wordings):
    for scene in scenes("test", world=kind):
        for i in range(len(wordings)):
            assert score_caption(caption(scene, i), scene) == (len(scene),) * 3


def test_a_caption_of_the_rich_world_must_tell_the_sizes():
    for scene in scenes("test", world=RICH):
        right, _, _ = score_caption(caption([o._replace(size="") for o in scene]), scene)
        assert right == 0


def test_an_invented_or_half_said_object_is_not_right():
    scene = make_scene("test", 0, 1)
    invented = caption(scene) + " a red circle at the top left."
    assert score_caption(invented, scene) == (len(scene), len(scene) + 1, len(scene))
    assert score_caption(caption(scene), [])[2] == 0
    assert parse_caption("a red circle") == {("red", "circle", "", "")}
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
    if about.type != "relation":
        return [getattr(o, about.type) for o in these]
    [first] = these
    [other] = [o for o in scene if (o.color, o.shape) == (about.other_color, about.other_shape)]
    (row, col), (row2, col2) = divmod(first.place, 3), divmod(other.place, 3)
    true = {"left of": col < col2, "right of": col > col2, "above": row < row2, "below": row > row2}
    return ["yes" if true[about.relation] else "no"]


def test_answers_are_possible_and_follow_from_the_scene():
    rng = random.Random(0)
    for scene in scenes("test") + scenes("test", world=RICH):
        for type in types_of(scene):
            qa = ask(scene, type, rng)
            if qa is None:
                assert type in ("color", "shape", "relation")
                continue
            assert qa.answer in (NUMBERS[:len(scene) + 1] if type == "count" else ANSWERS[type])
            assert qa.type == qa.about.type == type
            assert true_answers(scene, qa.about) == [qa.answer]


def test_yes_and_no_are_balanced_and_a_no_is_hard():
    rng = random.Random(0)
    asked = [(scene, ask(scene, "exists", rng)) for scene in scenes("test", 2000)]
    assert 0.46 < np.mean([qa.answer == "yes" for _, qa in asked]) < 0.54
    for scene, qa in asked:
        if qa.answer == "no":
            assert any(qa.about.color == o.color or qa.about.shape == o.shape for o in scene)


@pytest.mark.parametrize("type", ["size", "relation"])
def test_the_answers_of_the_rich_world_are_balanced(type):
    rng = random.Random(0)
    asked = [ask(scene, type, rng) for scene in scenes("test", 2000, RICH)]
    answers = Counter(qa.answer for qa in asked if qa)
    assert 0.46 < answers[ANSWERS[type][0]] / answers.total() < 0.54


def test_synonyms_are_asked_with_and_never_answered():
    rng, synonyms = random.Random(0), set(SYNONYMS.values())
    asked = [ask(scene, type, rng) for scene in scenes("train", 300, RICH) for type in RICH_TYPES]
    assert synonyms <= words_of(qa.question for qa in asked if qa)
    assert not synonyms & words_of(qa.answer for qa in asked if qa)
    plain = [ask(scene, type, rng) for scene in scenes("train") for type in QUESTION_TYPES]
    assert not synonyms & words_of(qa.question for qa in plain if qa)


def test_every_question_has_two_wordings():
    assert all(len(set(wordings)) >= 2 for wordings in QUESTIONS.values())
    assert all(len(set(wordings)) >= 2 for wordings in RICH_QUESTIONS.values())


def test_an_unknown_question_type_names_the_known_ones():
    with pytest.raises(ValueError, match="color, shape, where"):
        ask(make_scene("test", 0, 0), "size", random.Random(0))


# ---- the exam ----------------------------------------------------------------------------------

def exam(accuracy):
    """What a model says that is right so often, by the generator's own truth."""
    rng = random.Random(0)

    def answer(split, items):
        return [qa.answer if rng.random() < accuracy else "?" for _, qa in items]

    return examine(answer, {"test": 300, "comp": 100}, World())


def test_the_truth_scores_one_and_nonsense_zero():
    truth, nonsense = summarize(exam(1.0)), summarize(exam(0.0))
    scores = ["vqa", "caption_f1", "caption_exact", "pope_acc", "comp_vqa", "comp_caption_f1"]
    assert all(truth[name] == 1 for name in scores)
    assert all(nonsense[name] == 0 for name in scores)


def test_the_exam_on_unseen_pairs_asks_about_these_only():
    comp = exam(1.0)["comp"]
    for asked in comp.questions:
        qa = asked.qa
        color = qa.answer if qa.type == "color" else qa.about.color
        shape = qa.answer if qa.type == "shape" else qa.about.shape
        assert (color, shape) in COMP_PAIRS
    assert comp.questions and not comp.pope


def test_an_interval_holds_the_score_and_has_the_width_of_a_binomial():
    said = exam(0.8)
    scores, bounds = summarize(said), intervals(said)
    for name, (low, high) in bounds.items():
        assert low < scores[name] < high
    low, high = bounds["pope_acc"]
    assert 0.7 < (high - low) / (2 * 1.96 * np.sqrt(0.8 * 0.2 / 300)) < 1.4


def test_scores_are_told_for_each_number_of_objects():
    assert by_objects(exam(1.0)) == {n: {"vqa": 1, "caption_f1": 1} for n in (1, 2, 3)}


def test_an_edit_asks_what_follows_from_the_new_colour():
    edits = color_edits(100, World())
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

@pytest.fixture(params=[False, True], ids=["plain", "rich"])
def shapes(request):
    return ShapeData(rich=request.param, train_pictures=50, test_pictures=21)


def test_a_split_has_as_many_pictures_as_it_says(shapes):
    assert [shapes.count(split) for split in shapes.SPLITS] == [50, 10, 21, 10]
    pictures = shapes.pictures("comp", range(3, 7))
    assert pictures.shape == (4, 48, 48, 3) and pictures.dtype == np.uint8
    assert (pictures[1] == shapes.pictures("comp", [4])[0]).all()


def test_the_data_can_be_stored_as_json_and_loaded_again(shapes):
    assert load_data(json.loads(json.dumps(shapes.config()))) == shapes


def test_an_unknown_kind_of_data_names_the_known_ones():
    with pytest.raises(Refused, match="'photos', expected one of shapes"):
        load_data({"kind": "photos", "size": 48})


def test_the_second_half_of_a_batch_are_twins_that_differ_in_one_word(shapes):
    pictures, texts = shapes.pairs(seed=0, step=2, n=32)
    assert pictures.shape == (32, 48, 48, 3) and len(texts) == 32
    for text, other in zip(texts[:16], texts[16:]):
        old, new = Counter(text.split()), Counter(other.split())
        lost, got = set(old - new), set(new - old)
        if lost <= set(shapes.place_words):  # a place is named by two words
            assert 1 <= len(lost) == len(got) <= 2
        else:
            assert len(lost) == len(got) == 1
    assert len(np.unique(pictures, axis=0)) == 32


def test_pictures_for_retrieval_are_the_first_of_the_test_split_in_order(shapes):
    pictures, texts = shapes.test_pairs(1, n=5)
    assert (pictures == shapes.pictures("test", range(5, 10))).all()
    for text, index in zip(texts, range(5, 10)):
        for o in shapes.objects("test", index, 6):
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
    assert len(ShapeData(5, rich=True).example_questions()) == len(RICH_TYPES)


def test_reading_is_examined_on_sentences_then_on_rasters_and_then_with_captions(shapes):
    exams = []

    def answer(asked):
        exams.append(asked)
        return ["yes"] * len(asked)

    scores = shapes.examine_reading(answer, "source", seed=0)
    assert [len(asked) for asked in exams] == [35, 35, 11]  # 5/3 of 21, and a third of that
    assert all(" at the " in scene for scene, _ in exams[0])
    assert all(scene.count("\n") == 6 for scene, _ in exams[1] + exams[2])
    assert {question for _, question in exams[2]} == {shapes.request}
    assert 0 < scores["raster_qa_by_type"]["exists"] < 1 and scores["raster_caption_f1"] == 0
    assert scores["text_qa_by_type"]["color"] == 0 < scores["text_qa"] < 0.5
