"""Vocabularies: BPE is what its definition says, and what is kept of a public vocabulary encodes
our texts as the whole of it does."""
import hashlib
import inspect
import random
import re
from collections import Counter
from itertools import pairwise

import pytest
from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

from data.bpe import (BOS, PATTERNS, PUBLIC, keep_used, load_encoding, make_encoding, merge,
                      merge_path, open_encoding, save_encoding, tokens_of, train_bpe)
from data.files import Refused

BYTES = [bytes([i]) for i in range(256)]
ODD = ["Zwölf Boxkämpfer 🙂🙂", "東京都 is not Kyōto", "\x00\r\n\t  ", "", "42 ✓ red?\n"]


def random_texts(seed):
    """Words of few letters: many merges are equally frequent, and overlap."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcé"[:k % 4 + 1], k=rng.randint(1, 12))) for k in range(60)]
    return [" ".join(rng.choices(words, k=20)) for _ in range(6)]


def cut(encoding, text):
    """The tokens of a text as byte strings."""
    return [encoding.decode_single_token_bytes(id) for id in encoding.encode_ordinary(text)]


def train_slowly(texts, vocab_size, pattern, seed):
    """The tokens that train_bpe should find; all pairs are counted anew for each of them."""
    byte_order = random.Random(seed).sample(range(256), 256)
    tokens, words = [BYTES[byte] for byte in byte_order], Counter()
    for text in texts:
        for chunk in re.findall(pattern, text):
            words[tuple(byte_order.index(byte) for byte in chunk.encode())] += 1
    while len(tokens) < vocab_size - 1:
        pairs = Counter()
        for ids, n in words.items():
            for pair in pairwise(ids):
                pairs[pair] += n
        if not pairs:
            break
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        words = {merge(ids, (left, right), len(tokens)): n for ids, n in words.items()}
        tokens.append(tokens[left] + tokens[right])
    return tokens


@pytest.mark.parametrize("pattern", [*PATTERNS.values(), r"\S+|\s", r"(?s).+"])
def test_keeping_the_counts_of_pairs_makes_the_same_tokens_as_counting_them_anew(pattern):
    assert merge((1, 1, 1, 2), (1, 1), 9) == (9, 1, 2)
    for seed in range(3):
        for V in (256, 270, 400):
            slowly = train_slowly(random_texts(seed), V, pattern, seed)
            assert tokens_of(train_bpe(random_texts(seed), V, pattern, seed)) == slowly


def test_any_text_survives_encoding_also_by_a_saved_vocabulary(tmp_path):
    encoding, path = train_bpe(random_texts(0), 300, PATTERNS["target"]), tmp_path / "any.json"
    save_encoding(encoding, path)
    loaded = load_encoding(path)
    assert loaded.encode(BOS, allowed_special={BOS}) == [loaded.n_vocab - 1]
    assert tokens_of(loaded) == tokens_of(encoding) and loaded._pat_str == encoding._pat_str
    for text in ODD + random_texts(1):
        assert loaded.decode(encoding.encode(text)) == text


# ---- vocabularies of others ----------------------------------------------------------------------

def test_what_is_kept_of_a_vocabulary_encodes_the_texts_as_the_whole_does():
    for seed in range(20):
        texts = random_texts(seed)
        whole = train_bpe(texts, 340, r" ?\S+|\s", seed)
        part = keep_used(whole, texts[:2], 0, "part")
        assert all(cut(part, text) == cut(whole, text) for text in texts[:2])
        assert all(part.decode(part.encode(text)) == text for text in ODD)
        kept = set(tokens_of(part))
        assert set(BYTES) <= kept and [t for t in tokens_of(whole) if t in kept] == tokens_of(part)
        others = [t for t in tokens_of(whole) if t not in kept]  # the most frequent first
        more = tokens_of(keep_used(whole, texts[:2], part.n_vocab + 3, "more"))
        assert len(others) > 3 and {*more} - kept == {*others[:3]}


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
        with pytest.raises(Refused, match="^[^\n]*TIKTOKEN_CACHE_DIR[^\n]*$") as refusal:
            open_encoding(name)
        for url in PUBLIC[name]:
            assert f"{url} as {hashlib.sha1(url.encode()).hexdigest()}" in str(refusal.value)
    read = inspect.getsource(ENCODING_CONSTRUCTORS[name])  # by tiktoken
    assert re.findall('"(https://[^"]+)"', read) == PUBLIC[name]
