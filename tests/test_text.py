"""Tokenizers and documents: two vocabularies that share the words that matter, and answers that
are marked."""
import doctest
import random

import pytest

import data.bpe as bpe
from data.bpe import load_encoding, merge, save_encoding, shared_tokens
from data.corpus import (
    DIALECTS, NOTHING, conversation, document, encode, raster, texts_of, train_tokenizer)
from data.world import COLORS, PLACES, SHAPES, make_scene


@pytest.fixture(scope="module")
def encodings():
    return (train_tokenizer("source", texts_of("source", 0), 512, 0),
            train_tokenizer("target", texts_of("target", 0), 640, 0))


def as_tokens(words):
    return {f" {word}".encode() for word in words}


def tiles_of(scene, lines):
    """The words of a raster's lines at each object: [(object, [words above], [words below])]"""
    tiles = [line.split() for line in lines]
    found = []
    for o in scene:
        row, col = divmod(o.place, 3)
        above, below = tiles[2 * row:2 * row + 2]
        found.append((o, above[2 * col:2 * col + 2], below[2 * col:2 * col + 2]))
    return found


def test_the_examples_of_the_docstrings_are_true():
    result = doctest.testmod(bpe)
    assert result.failed == 0 and result.attempted > 0


def test_encoding_and_decoding_are_inverse(encodings):
    for encoding in encodings:
        for text in ["scene:\n . red circle\n", "Ünï ✓ \x00 42", ""]:
            assert encoding.decode(encoding.encode(text)) == text


def test_a_saved_vocabulary_is_the_same_vocabulary(encodings, tmp_path):
    encoding = encodings[0]
    save_encoding(encoding, tmp_path / "tokenizer.json")
    loaded = load_encoding(tmp_path / "tokenizer.json")
    text = "question: is there a red circle? yes\n"
    assert loaded.encode(text) == encoding.encode(text)
    assert loaded.token_byte_values() == encoding.token_byte_values()
    assert loaded.n_vocab == encoding.n_vocab


def test_the_vocabularies_differ(encodings):
    source, target = encodings
    shared = shared_tokens(source, target)
    assert all(len(shared) < 0.8 * encoding.n_vocab for encoding in encodings)
    same = [t for t in shared if source.encode_single_token(t) == target.encode_single_token(t)]
    assert len(same) < 0.1 * len(shared)


def test_the_words_of_the_world_are_single_tokens_of_both(encodings):
    words = {*COLORS, *SHAPES, *" ".join(PLACES).split(), NOTHING.strip()}
    assert as_tokens(words) <= set(shared_tokens(*encodings))


def test_merging_replaces_every_occurrence():
    assert merge((1, 2, 3, 1, 2), (1, 2), 9) == (9, 3, 9)
    assert merge((1, 1, 1), (1, 1), 9) == (9, 1)


def test_a_raster_shows_each_object_where_it_is():
    scene = make_scene("test", 0, 1)
    text = raster(scene, random.Random(0))
    lines = text.splitlines()
    assert len(lines) == 6 and all(len(line.split()) == 6 for line in lines)
    for o, above, below in tiles_of(scene, lines):
        assert set(above) == set(below) == {o.color, o.shape}
    assert text.count(NOTHING) == 36 - 4 * len(scene)


def test_a_dialect_has_its_own_grid_and_its_own_word_for_nothing():
    scene = make_scene("test", 0, 1)
    text = raster(scene, random.Random(0), "foreign")
    lines = text.splitlines()
    assert len(lines) == 3 and all(len(line.split()) == 6 for line in lines)
    for o in scene:
        words = lines[o.row].split()[2 * o.col:2 * o.col + 2]
        assert sorted(words) == sorted([o.color, o.shape])
    assert text.count(" -") == 18 - 2 * len(scene) and NOTHING not in text


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_has_the_words_of_the_world_and_of_nothing(dialect):
    encoding = train_tokenizer(dialect, texts_of(dialect, 0, documents=1000), 640, 0)
    words = {*COLORS, *SHAPES, *" ".join(PLACES).split(), DIALECTS[dialect].nothing.strip()}
    assert as_tokens(words | {NOTHING.strip()}) <= set(encoding.token_byte_values())


def test_nothing_is_asked_twice_in_a_conversation():
    for i in range(100):
        pieces = conversation(make_scene("train", 0, i), random.Random(i), 8)
        questions = [text for text, weight in pieces if not weight]
        assert len(questions) == len(set(questions)) >= 3


def test_only_answers_have_weight(encodings):
    encoding = encodings[0]
    pieces = document("source", 0, 0)
    ids, weights = encode(encoding, pieces)
    answers = "".join(text for text, weight in pieces if weight)
    weighted = [token for token, weight in zip(ids, weights) if weight]
    assert encoding.decode(weighted) == answers != ""
    assert encoding.decode(ids) == "".join(text for text, _ in pieces)


def test_the_two_corpora_share_no_document():
    source = {str(document("source", 0, i)) for i in range(200)}
    target = {str(document("target", 0, i)) for i in range(200)}
    assert not source & target
