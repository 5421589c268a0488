"""Byte-pair encoding: training from scratch here, fast encoding by tiktoken.

A tokenizer starts with the 256 bytes and merges the most frequent neighbours into a new token until
the vocabulary is full (Gage 1994; Sennrich et al. 2016, arXiv 1508.07909). A regular expression
cuts the text into chunks first, so a token is at most a word with its leading space:

    >>> texts = ["a red circle, a red square"] * 10
    >>> encoding = train_bpe(texts, vocab_size=290, pattern=PATTERNS["source"])
    >>> [encoding.decode([i]) for i in encoding.encode("a red circle")]
    ['a', ' red', ' circle']
"""
import random
from collections import Counter, defaultdict
from itertools import pairwise

import tiktoken

from data.files import read_json, write_json
from data.words import NUMBER, SIGN, WORD, cut

BOS = "<|bos|>"  # starts every document: the only special token
PATTERNS = {  # the chunks of a text; the two LLMs cut differently, as GPT-2 and GPT-4 do
    "source": rf" ?{WORD}| ?{NUMBER}+| ?{SIGN}+|\s",
    "target": rf":\n| ?{WORD}| ?{NUMBER}{{1,3}}| ?{SIGN}|\s"}


def merge(ids, pair, new_id):
    """Replace each occurrence of a pair:

    >>> merge((1, 1, 1, 2, 1, 1), (1, 1), 9)
    (9, 1, 2, 9)
    """
    out, i = [], 0
    while i < len(ids):
        if ids[i:i + 2] == pair:
            out.append(new_id)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return tuple(out)


def train_bpe(texts, vocab_size, pattern, seed=0, name="bpe"):
    """A tiktoken.Encoding of at most vocab_size tokens, BOS included. `seed` shuffles the ids of
    the 256 bytes, so that two tokenizers number them differently, as real ones do.

    Counting all pairs anew for each token is simpler, and far too slow for thousands of tokens.
    Here the counts are kept, and a merge changes only those of the words that it happens in.
    """
    byte_order = random.Random(seed).sample(range(256), 256)
    token_bytes = [bytes([b]) for b in byte_order]  # id -> bytes
    chunks = Counter(cut(texts, pattern))
    words = [tuple(byte_order.index(b) for b in chunk.encode("utf-8")) for chunk in chunks]
    times = list(chunks.values())  # that each of the words occurs
    pairs = Counter()  # neighbours in the words -> how often they occur
    holders = defaultdict(set)  # neighbours -> the words that have them, or had them once

    def count(i, sign):
        """Add word i to the counts, or, if sign is -1, take it out."""
        for pair in pairwise(words[i]):
            pairs[pair] += sign * times[i]
            holders[pair].add(i)

    for i in range(len(words)):
        count(i, 1)
    while any(pairs.values()) and len(token_bytes) < vocab_size - 1:  # BOS will be the last one
        most = max(pairs.values())
        best = max(pair for pair, n in pairs.items() if n == most)  # the pair itself breaks ties
        for i in holders.pop(best):  # in all other words nothing changes
            count(i, -1)
            words[i] = merge(words[i], best, len(token_bytes))
            count(i, 1)
        left, right = best
        token_bytes.append(token_bytes[left] + token_bytes[right])
    return make_encoding(name, pattern, token_bytes)


def make_encoding(name, pattern, token_bytes):
    """The tiktoken.Encoding of a list of tokens, in id order; BOS comes after the last of them."""
    ranks = {token: i for i, token in enumerate(token_bytes)}
    special = {BOS: len(token_bytes)}
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def tokens_of(encoding):
    """All tokens but BOS as byte strings, in id order."""
    return [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab - 1)]


def save_encoding(encoding, path):
    """Write JSON: its pattern, and its tokens in id order, a character for each byte."""
    tokens = [token.decode("latin-1") for token in tokens_of(encoding)]
    write_json(path, {"name": encoding.name, "pattern": encoding._pat_str, "special": BOS,
                      "tokens": tokens})


def load_encoding(path):
    """The vocabulary that save_encoding wrote."""
    data = read_json(path)
    tokens = [token.encode("latin-1") for token in data["tokens"]]
    return make_encoding(data["name"], data["pattern"], tokens)


def line_ends(encoding):
    """The ids that end a line of text: tokens that hold a newline, and special tokens."""
    ends = {token for token in encoding.token_byte_values() if b"\n" in token}
    return [encoding.encode_single_token(token) for token in ends | encoding.special_tokens_set]
