"""Tokenizers and documents: two vocabularies that share the words that matter, and answers that are marked."""
import random

import pytest

from data.bpe import load_encoding, merge, save_encoding, shared_tokens
from data.corpus import conversation, document, encode, raster, train_tokenizer
from data.world import COLORS, PLACES, SHAPES, SIZES, World, make_scene


@pytest.fixture(scope="module")
def encodings():
    return train_tokenizer("source", 512, 0), train_tokenizer("target", 640, 0)


def test_encoding_and_decoding_are_inverse(encodings):
    for encoding in encodings:
        for text in ["scene:\n . red circle\n", "Ünï ✓ \x00 42", ""]:
            assert encoding.decode(encoding.encode(text)) == text


def test_a_saved_vocabulary_is_the_same_vocabulary(encodings, tmp_path):
    save_encoding(encodings[0], tmp_path / "tokenizer.json")
    loaded = load_encoding(tmp_path / "tokenizer.json")
    text = "question: is there a red circle? yes\n"
    assert loaded.encode(text) == encodings[0].encode(text) and loaded.n_vocab == encodings[0].n_vocab


def test_the_vocabularies_differ(encodings):
    shared = shared_tokens(*encodings)
    assert all(len(shared) < 0.8 * e.n_vocab for e in encodings)
    same = [t for t in shared if encodings[0].encode_single_token(t) == encodings[1].encode_single_token(t)]
    assert len(same) < 0.1 * len(shared)


def test_the_words_of_the_world_are_single_tokens_of_both(encodings):
    words = {*COLORS, *SHAPES, *" ".join(PLACES).split(), "."}
    assert {f" {w}".encode() for w in words} <= set(shared_tokens(*encodings))
    rich = shared_tokens(*(train_tokenizer(dialect, 512, 0, documents=1000, world=World(5, rich=True)) for dialect in ("source", "target")))
    assert {f" {w}".encode() for w in {*words, *SIZES}} <= set(rich)


def test_merging_replaces_every_occurrence():
    assert merge((1, 2, 3, 1, 2), (1, 2), 9) == (9, 3, 9)
    assert merge((1, 1, 1), (1, 1), 9) == (9, 1)


def test_a_raster_shows_each_object_where_it_is():
    scene = make_scene("test", 0, 1)
    lines = raster(scene, random.Random(0)).splitlines()
    tiles = [line.split() for line in lines]
    assert len(tiles) == 6 and all(len(line) == 6 for line in tiles)
    for obj in scene:
        row, col = divmod(obj.place, 3)
        for line in tiles[2 * row:2 * row + 2]:
            assert set(line[2 * col:2 * col + 2]) == {obj.color, obj.shape}
    assert sum(line.count(".") for line in tiles) == 36 - 4 * len(scene)


def test_a_raster_of_the_rich_world_names_all_attributes_of_each_object():
    for i in range(100):
        scene = make_scene("test", 0, i, World(rich=True))
        tiles = [line.split() for line in raster(scene, random.Random(i)).splitlines()]
        for obj in scene:
            row, col = divmod(obj.place, 3)
            words = sum((line[2 * col:2 * col + 2] for line in tiles[2 * row:2 * row + 2]), [])
            assert set(words) == {obj.color, obj.shape, obj.size}


def test_nothing_is_asked_twice_in_a_conversation():
    for i in range(100):
        rng = random.Random(i)
        text = [t for t, w in conversation(make_scene("train", 0, i), rng, 8) if not w]
        assert len(text) == len(set(text)) >= 3


def test_only_answers_have_weight(encodings):
    pieces = document("source", 0, 0)
    ids, weights = encode(encodings[0], pieces)
    answers = "".join(t for t, w in pieces if w)
    assert encodings[0].decode([i for i, w in zip(ids, weights) if w]) == answers != ""
    assert encodings[0].decode(ids) == "".join(t for t, _ in pieces)


def test_the_two_corpora_share_no_document():
    assert not {str(document("source", 0, i)) for i in range(200)} & {str(document("target", 0, i)) for i in range(200)}
