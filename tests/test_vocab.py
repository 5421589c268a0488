"""Vocabularies of others: what is kept of them encodes our texts as the whole of them does."""
import hashlib
import inspect
import random
from collections import Counter
from itertools import pairwise

import pytest
import regex
from test_gguf import some_metadata, write
from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

from data.bpe import (
    BOS, PATTERNS, PUBLIC, keep_used, kept_ids, load_encoding, make_encoding, merge, merge_path,
    open_encoding, save_encoding, tokens_of, train_bpe)
from data.corpus import document
from data.files import Refused

BYTES = [bytes([byte]) for byte in range(256)]
UNSEEN = ["Zwölf Boxkämpfer 🙂🙂", "東京都 is not Kyōto", "\x00\r\n\t  ", "",
          random.Random(0).randbytes(300).decode("utf-8", "replace")]


def texts_of(dialect, n):
    """The first documents of a corpus, as one text each."""
    documents = [document(dialect, 0, i) for i in range(n)]
    return ["".join(text for text, _ in pieces).replace(BOS, "") for pieces in documents]


def random_texts(seed):
    """Words of few letters: many merges are equally frequent, and overlap."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcé"[:rng.randint(1, 4)], k=rng.randint(1, 12)))
             for _ in range(60)]
    return [" ".join(rng.choices(words, k=20)) for _ in range(6)]


def split(encoding, text):
    """The tokens of a text as byte strings."""
    return [encoding.decode_single_token_bytes(id) for id in encoding.encode_ordinary(text)]


@pytest.fixture(scope="module")
def original():
    """A vocabulary of which our texts use a part."""
    stories = [f"{a} {b} of {c}" for a in UNSEEN for b in UNSEEN for c in ("elephants", "giraffes")]
    texts = texts_of("source", 200) + texts_of("target", 200) + stories
    encoding = train_bpe(texts, 800, PATTERNS["source"])
    assert encoding.n_vocab > 600
    return encoding


@pytest.fixture(scope="module")
def reduced(original):
    return keep_used(original, texts_of("source", 100), 0, "reduced")


# ---- training ------------------------------------------------------------------------------------

def train_slowly(texts, vocab_size, pattern, seed):
    """The tokens that train_bpe should find; all pairs are counted anew for each of them."""
    byte_order = random.Random(seed).sample(range(256), 256)
    token_bytes = [BYTES[byte] for byte in byte_order]
    words = Counter()
    for text in texts:
        for chunk in regex.findall(pattern, text):
            words[tuple(byte_order.index(byte) for byte in chunk.encode())] += 1
    while len(token_bytes) < vocab_size - 1:
        pairs = Counter()
        for ids, n in words.items():
            for pair in pairwise(ids):
                pairs[pair] += n
        if not pairs:
            break
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        words = {merge(ids, (left, right), len(token_bytes)): n for ids, n in words.items()}
        token_bytes.append(token_bytes[left] + token_bytes[right])
    return token_bytes


@pytest.mark.parametrize("pattern", [*PATTERNS.values(), r"\S+|\s", r"(?s).+"])
def test_keeping_the_counts_of_pairs_makes_the_same_tokens_as_counting_them_anew(pattern):
    for seed in range(5):
        texts = random_texts(seed)
        for vocab_size in (256, 270, 400):
            expected = train_slowly(texts, vocab_size, pattern, seed)
            assert tokens_of(train_bpe(texts, vocab_size, pattern, seed)) == expected


# ---- what is kept of a vocabulary ----------------------------------------------------------------

def test_the_texts_it_was_reduced_on_have_the_same_tokens(original, reduced):
    assert reduced.n_vocab < 0.8 * original.n_vocab
    for text in texts_of("source", 100):
        assert split(reduced, text) == split(original, text)


def test_random_texts_have_the_same_tokens():
    for seed in range(30):
        texts = random_texts(seed)
        whole = train_bpe(texts, 400, r" ?\S+|\s", seed)
        for n in (1, 3):
            part = keep_used(whole, texts[:n], 0, "part")
            for text in texts[:n]:
                assert split(part, text) == split(whole, text)


def test_a_token_that_merging_does_not_reach_is_kept_as_a_chunk():
    tokens = BYTES + [b"bc", b"ab", b"cd", b"abcd", b"zz"]
    whole = make_encoding("whole", r"\w+|\W", tokens)
    assert merge_path(b"abcd", whole._mergeable_ranks) == [b"bc"]
    part = keep_used(whole, ["abcd"], 0, "part")
    assert split(part, "abcd") == split(whole, "abcd") == [b"abcd"]
    assert split(part, "zz") == [b"z", b"z"]


def test_other_texts_are_encoded_in_smaller_pieces(reduced):
    for text in UNSEEN:
        assert reduced.decode(reduced.encode(text)) == text
    assert set(BYTES) <= set(tokens_of(reduced))


def test_the_order_stays_and_bos_comes_last(original, reduced):
    ids = kept_ids(reduced, original)
    assert ids == sorted(ids) and len(ids) == reduced.n_vocab - 1
    assert [original.decode_single_token_bytes(id) for id in ids] == tokens_of(reduced)
    assert reduced.encode(BOS, allowed_special={BOS}) == [reduced.n_vocab - 1]


def test_it_is_filled_up_with_the_most_frequent_of_the_others(original, reduced):
    texts, used = texts_of("source", 100), reduced.n_vocab
    filled = keep_used(original, texts, used + 10, "filled")
    assert filled.n_vocab == used + 10
    added = set(tokens_of(filled)) - set(tokens_of(reduced))
    others = [token for token in tokens_of(original) if token not in set(tokens_of(reduced))]
    assert added == set(others[:10])
    assert tokens_of(keep_used(original, texts, 10 ** 6, "all")) == tokens_of(original)
    assert tokens_of(keep_used(original, texts, used - 10, "more")) == tokens_of(reduced)


def test_a_reduced_vocabulary_can_be_saved(reduced, tmp_path):
    save_encoding(reduced, tmp_path / "tokenizer.json")
    loaded = load_encoding(tmp_path / "tokenizer.json")
    assert tokens_of(loaded) == tokens_of(reduced)
    assert (loaded.name, loaded._pat_str) == ("reduced", PATTERNS["source"])
    for text in UNSEEN + texts_of("target", 3):
        assert loaded.encode(text) == reduced.encode(text)


def test_bytes_that_a_gguf_file_lacks_are_there(tmp_path):
    metadata = some_metadata(without=[4, 200])
    write(tmp_path / "tiny.gguf", metadata, {})
    whole = open_encoding(tmp_path / "tiny.gguf")
    part = keep_used(whole, ["the red circle"], 0, "part")
    assert set(BYTES) <= set(tokens_of(part))
    assert split(part, "the red circle") == split(whole, "the red circle")
    V = len(metadata["tokenizer.ggml.tokens"])
    assert kept_ids(part, whole)[-2:] == [V, V + 1]  # beyond the vocabulary of the file
    assert part.decode(part.encode("\x04 東京")) == "\x04 東京"


# ---- where vocabularies come from ----------------------------------------------------------------

def no_network(url):
    raise ConnectionError(f"no route to {url}")


def some_page(url):
    return b"<html>Log in to use this network</html>"


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("answer", [no_network, some_page])
def test_without_its_files_a_public_vocabulary_is_refused_in_one_line(
        name, answer, tmp_path, monkeypatch):
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setattr("tiktoken.load.read_file", answer)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(Refused) as refusal:
        open_encoding(name)
    said = str(refusal.value)
    assert "\n" not in said and "TIKTOKEN_CACHE_DIR" in said and str(tmp_path) in said
    for url in PUBLIC[name]:
        assert f"{url} as {hashlib.sha1(url.encode()).hexdigest()}" in said


@pytest.mark.parametrize("name", PUBLIC)
def test_the_files_that_are_named_are_those_that_tiktoken_reads(name):
    code = inspect.getsource(ENCODING_CONSTRUCTORS[name])
    assert regex.findall(r'"(https://[^"]+)"', code) == PUBLIC[name]


def test_an_unknown_vocabulary_is_refused_and_the_known_ones_are_named():
    with pytest.raises(Refused, match=r"'gpt5'.*bpe.*gpt2, cl100k_base, o200k_base.*\.gguf"):
        open_encoding("gpt5")
    with pytest.raises(Refused, match="no file 'none.gguf'"):
        open_encoding("none.gguf")
