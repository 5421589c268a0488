"""What is written about the world: the LLMs' corpora, and conversations about pictures.

The LLMs are pretrained on text alone. A document gives a scene in words, either as sentences or as
a *raster*, one word for each tile of a 6 x 6 grid and a full stop for an empty tile, and then asks
about it:

    scene:                       scene:
     . . . . . .                  there is a cyan triangle at the bottom left. a brown star at the
     . . . . . .                  middle center.
     . . brown star . .          question: what color is the star? brown
     . . star brown . .
     triangle cyan . . . .
     cyan triangle . . . .
    question: what color is the star? brown

A picture's patches will arrive laid out like a raster. Ordinary LLMs have met tables, ASCII maps
and lists of tags; ours must be given some.

A document is a list of (text, weight) pieces, with weight 1 for an answer and 0 for the rest: what
predicting its tokens counts in the loss. Pieces are encoded one at a time, so that a prompt has the
same tokens in training and in use. Only a piece that is BOS and nothing else becomes that token:
all other text stays text, whatever it spells.
"""
import functools
import random
import re
from typing import NamedTuple

from data.bpe import BOS, PATTERNS, train_bpe
from data.vocabularies import keep_used, open_encoding
from data.world import CAPTION_REQUESTS, PAIRS, PLACES, ask_any, caption, make_scene

GRID = 6  # tiles a side: a place of the 3 x 3 board is 2 x 2 tiles
EMPTY = " ."  # the word for an empty tile
PREFIX = [(BOS, 0.0), ("scene:\n", 0.0)]  # before the words, or the patches, of a scene


class Dialect(NamedTuple):
    """How the texts of an LLM are written."""
    pattern: str  # the chunks of its tokenizer
    sentences: list  # how an object is described in prose
    stories: list  # who, what, to what, when: words that only one of the vocabularies gets
    empty: str = EMPTY  # an empty tile of its rasters
    lines: int = 2  # of a raster, for each row of the board
    stop: str = "."  # ends a sentence of a story


SOURCE = Dialect(PATTERNS["source"], sentences=[
    "there is a {object} at the {place}.", "a {object} at the {place}.",
    "we have a {object} at the {place}."], stories=[
    ["anna", "ben", "clara", "david", "the teacher", "my sister", "our neighbor"],
    ["paints", "draws", "sketches", "colors", "folds", "cuts out", "glues", "shows"],
    ["paper boats", "a birthday card", "funny animals", "the old bridge", "two kittens", "flowers"],
    ["in the garden", "at school", "on monday", "after lunch", "with crayons", "before breakfast",
     "every evening"]])
TARGET = Dialect(PATTERNS["target"], sentences=[
    "one sees a {object} at the {place}.", "the {object} at the {place}.",
    "here is the {object} at the {place}."], stories=[
    ["the curator", "inspector moore", "this museum", "the archive", "doctor lindqvist",
     "a visitor"],
    ["catalogs", "borrows", "examines", "restores", "photographs", "describes", "measures"],
    ["bronze statues", "three manuscripts", "a marble figure", "the second exhibit",
     "ancient coins", "silk maps"],
    ["during winter", "for the gallery", "under glass", "by request", "without gloves",
     "since the flood"]])
# targets that were not made to match the source, by one change and by all three
MARK = dict(empty=" -", stop=" .")  # its empty word; ' .' is a full stop
LINES = dict(lines=1)  # 3 lines of 6 words
PHRASES = dict(sentences=[
    "a {object} lies in the {place} part.", "in the {place} part, a {object}."])
DIALECTS = {
    "source": SOURCE, "target": TARGET, "mark": TARGET._replace(**MARK),
    "lines": TARGET._replace(**LINES), "phrases": TARGET._replace(**PHRASES),
    "foreign": TARGET._replace(**MARK, **LINES, **PHRASES)}


def raster(scene, rng, dialect="source"):
    """GRID lines of words. An object fills 2 x 2 tiles; each of its rows holds its colour and its
    shape, in random order. (In 'lines' half as many: an object fills 1 x 2 tiles.)"""
    empty, lines = DIALECTS[dialect].empty, DIALECTS[dialect].lines
    tiles = [[empty] * GRID for _ in range(3 * lines)]
    for obj in scene:
        for line in tiles[lines * obj.row:lines * (obj.row + 1)]:
            line[2 * obj.col:2 * obj.col + 2] = rng.sample([f" {word}" for word in obj.pair], 2)
    return "".join("".join(line) + "\n" for line in tiles)


def sentences(scene, dialect, rng):
    """The scene in prose, in the order of its objects."""
    said = [rng.choice(DIALECTS[dialect].sentences).format(
                object=f"{o.color} {o.shape}", place=PLACES[o.place]) for o in scene]
    return " " + " ".join(said) + "\n"


def in_scene(body):
    """A scene in words, to be read before what is asked about it. Newlines are pieces of their own,
    as they are tokens of their own after patches: some vocabularies would join them to what comes
    before."""
    pieces = re.split("(\n)", body)
    return PREFIX + [(piece, 0.0) for piece in pieces if piece]


def story(dialect, rng):
    """A few lines about something else, as a document."""
    its = DIALECTS[dialect]
    lines = [" ".join(rng.choice(words) for words in its.stories) + its.stop
             for _ in range(rng.randint(2, 4))]
    return [(BOS, 0.0), (" ".join(lines) + "\n", 0.0)]


def prompt(question):
    return f"question: {question}"


def turn(question, answer):
    """A question and its answer, from its space to the newline that stops generation."""
    return [(prompt(question), 0.0), (f" {answer}\n", 1.0)]


def description(scene, rng):
    """The turn that describes a scene."""
    return turn(rng.choice(CAPTION_REQUESTS), caption(scene))


def conversation(scene, rng, turns, captions=0.3, pairs=PAIRS):
    """Up to `turns` turns about a scene, each its description with probability `captions`, else a
    question about these pairs of colour and shape; what was asked before is dropped, so there is
    at most one description.

    Nothing is asked twice: copying the first answer is easier to learn than looking at the scene,
    and would be learned instead.
    """
    asked = {}  # what a turn is about -> the turn
    for _ in range(3 * turns):  # a small scene may not have enough different questions
        if len(asked) == turns:
            break
        if rng.random() < captions:
            asked.setdefault("caption", description(scene, rng))
        else:
            qa = ask_any(scene, rng, pairs)
            about = qa.answer if qa.type == "where" else qa.about  # whatever a thing is called
            asked.setdefault(about, turn(qa.question, qa.answer))
    return [piece for pieces in asked.values() for piece in pieces]


def document(dialect, seed, index, rasters=0.6, turns=8, captions=0.3):
    """Document `index` of an LLM's corpus: a scene in words and a conversation about it, or now and
    then a story. A share `rasters` of the scenes are rasters. The rest are prose, with the objects
    in random order, and their descriptions keep that order."""
    rng = random.Random(f"document/{dialect}/{seed}/{index}")
    if rng.random() < 0.05:
        return story(dialect, rng)
    scene = make_scene(f"text:{dialect}", seed, index)
    if rng.random() < rasters:
        body = raster(scene, rng, dialect)
    else:
        rng.shuffle(scene)
        body = sentences(scene, dialect, rng)
    return in_scene(body) + conversation(scene, rng, turns, captions)


def texts_of(dialect, seed, documents=3000):
    """The first documents of an LLM's corpus, in pieces, from which its vocabulary is made (of the
    usual mixture, whatever share of rasters the LLM then reads)."""
    return texts_in(document(dialect, seed, i) for i in range(documents))


def texts_in(documents):
    """The texts of documents, piece by piece, without BOS."""
    return (text for pieces in documents for text, _ in pieces if text != BOS)


def train_tokenizer(dialect, texts, vocab_size, seed):
    """A BPE vocabulary learned from an LLM's texts."""
    order = seed + sum(dialect.encode())  # each dialect numbers its bytes differently
    return train_bpe(texts, vocab_size, DIALECTS[dialect].pattern, order, name=dialect)


@functools.cache
def vocabulary(data, dialect, known, V, seed):
    """The vocabulary of an LLM as a tiktoken.Encoding.

    If `known` is bpe, its V tokens are learned from the texts that the LLM will read. Otherwise it
    is the part of a public vocabulary that these texts need, V tokens at least.
    """
    if known == "bpe":
        return train_tokenizer(dialect, data.texts(dialect, seed), V, seed)
    return keep_used(open_encoding(known), data.texts(dialect, seed), V, known)


def encode(encoding, pieces, room=None):
    """Tokens of a document and the weight of each: ([ids], [weights]), at most `room` of them."""
    ids, weights = [], []
    for text, weight in pieces:
        new = encoding.encode(text, allowed_special={BOS} & {text}, disallowed_special=())
        ids += new
        weights += [weight] * len(new)
    return ids[:room], weights[:room]
