"""What is written about the world: the text that the LLMs learn to read from, and conversations about pictures.

The LLMs are pretrained on text alone. A document gives a scene in words, either as sentences or as a *raster*, one word
for each tile of a 6 x 6 grid and a full stop for 'nothing here', and then asks about it:

    scene:                                   scene:
     . . . . . .                              there is a cyan triangle at the bottom left. a brown star at the middle center.
     . . . . . .                             question: what color is the star? brown
     . . brown star . .
     . . star brown . .
     triangle cyan . . . .
     cyan triangle . . . .
    question: what color is the star? brown

The raster is the layout in which a picture's patches will later arrive. Ordinary LLMs have met tables, ASCII maps and
lists of tags; ours must be given some. A document is a list of (text, weight) pieces: how much its tokens count when they
are to be predicted, 0 for what is no answer; pieces are encoded one by one, so that a prompt has the same tokens in training and in use.
"""
import random

from data.bpe import BOS, PATTERNS, train_bpe
from data.world import CAPTION_REQUESTS, PLACES, World, any_caption, ask_any, make_scene

GRID = 6  # tiles a side: a place of the 3 x 3 board is 2 x 2 tiles
NOTHING = " ."  # the word for an empty tile

SENTENCES = {  # each LLM has read sentences of its own
    "source": ["there is a {c} {s} at the {p}.", "a {c} {s} at the {p}.", "we have a {c} {s} at the {p}."],
    "target": ["one sees a {c} {s} at the {p}.", "the {c} {s} at the {p}.", "here is the {c} {s} at the {p}."],
}
STORIES = {  # and some pages on something else, which give each vocabulary words that the other lacks
    "source": [["anna", "ben", "clara", "david", "the teacher", "my sister", "our neighbor"],
               ["paints", "draws", "sketches", "colors", "folds", "cuts out", "glues", "shows"],
               ["paper boats", "a birthday card", "funny animals", "the old bridge", "two kittens", "flowers"],
               ["in the garden", "at school", "on monday", "after lunch", "with crayons", "before breakfast", "every evening"]],
    "target": [["the curator", "inspector moore", "this museum", "the archive", "doctor lindqvist", "a visitor"],
               ["catalogs", "borrows", "examines", "restores", "photographs", "describes", "measures"],
               ["bronze statues", "three manuscripts", "a marble figure", "the second exhibit", "ancient coins", "silk maps"],
               ["during winter", "for the gallery", "under glass", "by request", "without gloves", "since the flood"]],
}


def raster(scene, rng):
    """The scene as a grid of words, GRID lines; an object's four tiles show its colour, its shape and, in the rich world, its size."""
    tiles = [[NOTHING] * GRID for _ in range(GRID)]
    for obj in scene:
        row, col = divmod(obj.place, 3)
        for i in (2 * row, 2 * row + 1):
            words = [f" {obj.color}", f" {obj.shape}"]
            if obj.size and i % 2:  # one of the two lines
                words[rng.randrange(2)] = f" {obj.size}"
            tiles[i][2 * col:2 * col + 2] = rng.sample(words, 2)
    return "".join("".join(line) + "\n" for line in tiles)


def sentences(scene, dialect, rng):
    """The scene in prose, the objects in the order in which they are given."""
    return " " + " ".join(rng.choice(SENTENCES[dialect]).format(c=f"{o.size} {o.color}".strip(), s=o.shape, p=PLACES[o.place]) for o in scene) + "\n"


def story(dialect, rng):
    lines = [" ".join(rng.choice(words) for words in STORIES[dialect]) for _ in range(rng.randint(2, 4))]
    return [(BOS + ". ".join(lines) + ".\n", 0.0)]


def turn(question, answer):
    """One question and its answer; the space belongs to the answer's first token, the newline ends the answer."""
    return [(f"question: {question}", 0.0), (f" {answer}\n", 1.0)]


def description(scene, rng):
    """The turn that describes a scene, in a random wording."""
    return turn(rng.choice(CAPTION_REQUESTS), any_caption(scene, rng))


def conversation(scene, rng, turns, captions=0.3):
    """Up to `turns` turns about a scene: each is its description with probability `captions`, otherwise a question.

    Nothing is asked twice. Otherwise the answer could be copied from the first time, which is easier to learn than
    looking at the scene, and is learned instead of it.
    """
    pieces, told = [], set()
    for _ in range(3 * turns):  # a small scene has few questions; then the conversation is shorter
        if rng.random() < captions:
            about, new = "caption", description(scene, rng)
        else:
            qa = ask_any(scene, rng)
            about, new = qa.about, turn(qa.question, qa.answer)
        if about not in told:
            told.add(about)
            pieces += new
        if len(told) == turns:
            break
    return pieces


def document(dialect, seed, index, rasters=0.6, turns=8, captions=0.3, stories=0.05, world=World()):
    """Document `index` of an LLM's corpus: a scene in words and a conversation about it, or a story.

    Prose tells the objects in any order, and a description of it keeps that order, as one of a raster keeps the raster's.
    """
    rng = random.Random(f"document/{dialect}/{seed}/{index}")
    if rng.random() < stories:
        return story(dialect, rng)
    scene = make_scene(f"text:{dialect}", seed, index, world)
    if rng.random() < rasters:
        body = raster(scene, rng)
    else:
        rng.shuffle(scene)
        body = sentences(scene, dialect, rng)
    return [(f"{BOS}scene:\n{body}", 0.0)] + conversation(scene, rng, turns, captions)


def train_tokenizer(dialect, vocab_size, seed, documents=3000, **kwargs):
    """A BPE vocabulary learned from the first documents of an LLM's own corpus."""
    texts = ["".join(text for text, _ in document(dialect, seed, i, **kwargs)).replace(BOS, "") for i in range(documents)]
    return train_bpe(texts, vocab_size, PATTERNS[dialect], seed=sum(dialect.encode()) + seed, name=dialect)


def encode(encoding, pieces):
    """Tokens of a document and the weight of each: ([ids], [weights])"""
    ids, weights = [], []
    for text, weight in pieces:
        new = encoding.encode(text, allowed_special={BOS})
        ids += new
        weights += [weight] * len(new)
    return ids, weights
