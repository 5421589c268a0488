"""Vocabularies: BPE is what its definition says, and what is kept of a public vocabulary encodes
our texts as the whole of it does."""
import hashlib
import random
import re
from collections import Counter
from inspect import getsource

import pytest
from conftest import ROOT
from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

from data.bpe import (BOS, PATTERNS, load_encoding, make_encoding, merge, save_encoding, tokens_of,
                      train_bpe)
from data.corpus import encode
from data.files import Refused
from data.vocabularies import PUBLIC, keep_used, merge_path, open_encoding
from data.words import cut as chunks_of, readable, words_in

BYTES = [bytes([i]) for i in range(256)]
ODD = ["Zwölf Boxkämpfer 🙂🙂", "東京都 is not Kyōto", "\x00\r\n\t  ", "", "42 ✓ red?\n"]


def random_texts(seed):
    """Words of few letters: many merges are equally frequent, and overlap."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcé"[:k % 4 + 1], k=rng.randint(1, 12))) for k in range(60)]
    return [" ".join(rng.choices(words, k=20)) for _ in range(6)]


def train_slowly(texts, vocab_size, pattern, seed):
    """The tokens that train_bpe should find; all pairs are counted anew for each of them."""
    tokens = [BYTES[byte] for byte in random.Random(seed).sample(range(256), 256)]
    words = [tuple(tokens.index(BYTES[byte]) for byte in chunk.encode())
             for chunk in chunks_of(texts, pattern)]
    while len(tokens) < vocab_size - 1 and max(map(len, words)) > 1:
        pairs = Counter(pair for ids in words for pair in zip(ids, ids[1:]))
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        words = [merge(ids, best, len(tokens)) for ids in words]
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return tokens


@pytest.mark.parametrize("pattern", [*PATTERNS.values(), r"\S+|\s", r"(?s).+"])
def test_keeping_the_counts_of_pairs_makes_the_same_tokens_as_counting_them_anew(pattern):
    for seed, V in enumerate((256, 270, 400, 400, 400)):
        slowly = train_slowly(random_texts(seed), V, pattern, seed)
        assert tokens_of(train_bpe(random_texts(seed), V, pattern, seed)) == slowly


def test_any_text_survives_encoding_also_by_a_saved_vocabulary(tmp_path):
    encoding, path = train_bpe(random_texts(0), 300, PATTERNS["target"]), tmp_path / "any.json"
    save_encoding(encoding, path)
    loaded = load_encoding(path)
    ids, _ = encode(loaded, [(BOS, 0.0), (f"{BOS}<|b{BOS}os|>", 1.0)])  # only alone is it a token
    assert ids.index(loaded.n_vocab - 1) == 0 == ids[1:].count(ids[0])
    assert tokens_of(loaded) == tokens_of(encoding) and loaded._pat_str == encoding._pat_str
    assert all(loaded.decode(encoding.encode(text)) == text for text in ODD + random_texts(1))


SCRIPTS = ["42", "४२", "٤٢", "чёрный", "прямоугольник", "赤い円です", "مُرَبَّع", "कितने", "ที่นี่",
           "été", "e\u0301te\u0301", "می\u200cروم", "ქართული", "𞤀𞤣𞤤𞤢𞤥"]


@pytest.mark.parametrize("pattern", PATTERNS.values())
def test_words_and_numbers_of_any_script_are_words(pattern):
    texts, words = [f" {w}, {w} 1.{w}" for w in SCRIPTS], [f" {w}" for w in SCRIPTS]
    encoding = train_bpe(texts, 4000, pattern)
    assert {word.encode() for word in words} <= {*tokens_of(encoding)}
    for text in texts + ODD:  # tiktoken cuts as we do
        assert encoding.encode_ordinary(text) == sum(
            map(encoding.encode_ordinary, chunks_of([text], pattern)), [])
    assert words_in(",".join(words)) == SCRIPTS
    assert readable([b" \xd1", *map(str.encode, words)]) == [w for w in SCRIPTS[3:] if len(w) > 2]


# ---- vocabularies of others ----------------------------------------------------------------------

def cut(encoding, text):
    """The tokens of a text as byte strings."""
    return encoding.decode_tokens_bytes(encoding.encode_ordinary(text))


def test_what_is_kept_of_a_vocabulary_encodes_the_texts_as_the_whole_does():
    for seed in range(20):
        texts = random_texts(seed)
        whole = train_bpe(texts, 340, r" ?\S+|\s", seed)
        part = keep_used(whole, texts[:2], 0, "part")
        assert all(cut(part, text) == cut(whole, text) for text in texts[:2])
        more = tokens_of(keep_used(whole, texts[:2], part.n_vocab + 3, "more"))
        kept, others = tokens_of(part), [t for t in tokens_of(whole) if t not in tokens_of(part)]
        assert more == [t for t in tokens_of(whole) if t in kept + others[:3]]  # in their order
        assert {*BYTES} <= {*kept} <= {*more} and len(others) > 3


def test_a_token_that_merging_does_not_reach_is_kept_as_a_chunk():
    whole = make_encoding("whole", r"\w+|\W", BYTES + [b"bc", b"ab", b"cd", b"abcd", b"zz"])
    assert merge_path(b"abcd", whole._mergeable_ranks) == [b"bc"]
    part = keep_used(whole, ["abcd"], 0, "part")
    assert cut(part, "abcd") == cut(whole, "abcd") == [b"abcd"] and cut(part, "zz") == [b"z", b"z"]


@pytest.mark.parametrize("name", PUBLIC)
def test_without_its_files_a_public_vocabulary_is_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for page in (None, b"<html>Log in to use this network</html>"):  # None: no network
        monkeypatch.setattr("tiktoken.load.read_file", lambda url: page or open(tmp_path / "none"))
        with pytest.raises(Refused, match=r"\Acannot load .*data/README.md says which files.*\Z"):
            open_encoding(name)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_page_lists_the_files_of_a_public_vocabulary_as_tiktoken_saves_them(name):
    page = (ROOT / "data/README.md").read_text(encoding="utf-8")
    (site,) = re.findall("file from `(.*)`", page)
    rows = re.findall(rf"^\| {name} \| `(.*)` \| `(.*)` \|$", page, re.MULTILINE)
    urls = re.findall('"(https://[^"]+)"', getsource(ENCODING_CONSTRUCTORS[name]))
    assert [(site + file, saved) for file, saved in rows] == [
        (url, hashlib.sha1(url.encode()).hexdigest()) for url in urls]
