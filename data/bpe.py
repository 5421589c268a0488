"""Byte-pair encoding: training from scratch here, fast encoding by tiktoken.

A tokenizer starts with the 256 bytes and merges the most frequent neighbours into a new token until
the vocabulary is full (Gage 1994; Sennrich et al. 2016, arXiv 1508.07909). A regular expression
cuts the text into chunks first, so a token is at most a word with its leading space:

    >>> texts = ["a red circle, a red square"] * 10
    >>> encoding = train_bpe(texts, vocab_size=290, pattern=PATTERNS["source"])
    >>> [encoding.decode([i]) for i in encoding.encode("a red circle")]
    ['a', ' red', ' circle']

The vocabularies of well-known LLMs can be read as well, and cut down to what our texts need.
"""
import hashlib
import os
import random
import re
import tempfile
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import tiktoken

from data.files import Refused, read_json, write_json

BOS = "<|bos|>"  # starts every document: the only special token
PATTERNS = {  # the chunks of a text; the two LLMs cut differently, as GPT-2 and GPT-4 do
    "source": r" ?[a-z]+| ?[0-9]+| ?[^\sa-z0-9]+|\s",
    "target": r":\n| ?[a-z]{1,12}|[0-9]{1,3}| ?[^\sa-z0-9]|\s"}
SITE = "https://openaipublic.blob.core.windows.net"
PUBLIC = {  # vocabularies of OpenAI, and the files from which tiktoken makes them
    "gpt2": [f"{SITE}/gpt-2/encodings/main/vocab.bpe", f"{SITE}/gpt-2/encodings/main/encoder.json"],
    "cl100k_base": [f"{SITE}/encodings/cl100k_base.tiktoken"],
    "o200k_base": [f"{SITE}/encodings/o200k_base.tiktoken"]}


def merge(ids, pair, new_id):
    """Replace each occurrence of a pair: merge((1, 2, 3, 1, 2), (1, 2), 9) -> (9, 3, 9)"""
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
    chunks = Counter()
    for text in texts:
        chunks.update(re.findall(pattern, text))
    words = [tuple(byte_order.index(b) for b in chunk.encode("utf-8")) for chunk in chunks]
    times = list(chunks.values())  # that each of the words occurs
    pairs = Counter()  # neighbours in the words -> how often they occur
    holders = defaultdict(set)  # neighbours -> the words that have them, or had them once
    for i, ids in enumerate(words):
        for pair in pairwise(ids):
            pairs[pair] += times[i]
            holders[pair].add(i)
    while pairs and len(token_bytes) < vocab_size - 1:  # BOS will be the last one
        most = max(pairs.values())
        best = max(pair for pair, n in pairs.items() if n == most)  # the pair itself breaks ties
        for i in holders.pop(best):  # in all other words nothing changes
            for pair in pairwise(words[i]):
                pairs[pair] -= times[i]
                if pairs[pair] == 0:
                    del pairs[pair]
            words[i] = merge(words[i], best, len(token_bytes))
            for pair in pairwise(words[i]):
                pairs[pair] += times[i]
                holders[pair].add(i)
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
    """Write JSON that people can read: tokens in id order, as {"hex": ".."} if not valid UTF-8."""
    tokens = []
    for token in tokens_of(encoding):
        try:
            tokens.append(token.decode("utf-8"))
        except UnicodeDecodeError:
            tokens.append({"hex": token.hex()})
    write_json(path, {"name": encoding.name, "pattern": encoding._pat_str, "special": BOS,
                      "tokens": tokens})


def load_encoding(path):
    """The vocabulary that save_encoding wrote."""
    data = read_json(path)
    tokens = []
    for token in data["tokens"]:
        is_text = isinstance(token, str)
        tokens.append(token.encode("utf-8") if is_text else bytes.fromhex(token["hex"]))
    return make_encoding(data["name"], data["pattern"], tokens)


def line_ends(encoding):
    """The ids that end a line of text: tokens that hold a newline, and special tokens."""
    ends = [token for token in encoding.token_byte_values() if b"\n" in token]
    return [encoding.encode_single_token(token)
            for token in [*ends, *encoding.special_tokens_set]]


# ---- vocabularies of others ---------------------------------------------------------------------

def open_encoding(name):
    """The vocabulary of another LLM, one of PUBLIC. tiktoken looks for its files in a folder, and
    downloads those that it does not find."""
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # no network, or what came is not the file
        default = Path(tempfile.gettempdir()) / "data-gym-cache"
        folder = os.environ.get("TIKTOKEN_CACHE_DIR") or default
        files = [f"{url} as {hashlib.sha1(url.encode()).hexdigest()}" for url in PUBLIC[name]]
        raise Refused(f"cannot load {name!r}: tiktoken has no intact copy in {str(folder)!r} and "
                      f"cannot download one ({type(error).__name__}); save {' and '.join(files)} "
                      "in a folder, and set TIKTOKEN_CACHE_DIR to it") from error


def merge_path(token, ranks):
    """What merging the bytes of a token makes on the way to it, itself included:

    >>> merge_path(b" red", {b"re": 256, b"ed": 257, b" re": 258, b" red": 259})
    [b're', b' re', b' red']
    """
    pieces = [bytes([byte]) for byte in token]
    path = []
    while True:
        joined = [left + right for left, right in pairwise(pieces)]
        possible = [piece for piece in joined if piece in ranks]
        if not possible:
            return path
        path.append(min(possible, key=ranks.get))
        i = joined.index(path[-1])
        pieces[i:i + 2] = [path[-1]]


def keep_used(encoding, texts, vocab_size, name):
    """The part of another's vocabulary that our texts need, numbered anew, as a tiktoken.Encoding:
    an LLM of a few million parameters has no room for 200,000 tokens.

    It holds the 256 bytes, the tokens of the texts, and all that is merged on the way to them; then
    the most frequent others, until vocab_size tokens are reached, BOS included. (If more are
    needed, it holds more.) The order of the tokens stays as it was.

    The texts have the same tokens in both. Byte-pair merging always makes the merge of the lowest
    rank that is possible. As long as a text has been merged alike in both, the full vocabulary's
    next merge leads to a token of the text: it was kept. It is the lowest of the smaller vocabulary
    too, whose merges are some of the same, in the same order. So both make the same merge, until
    nothing is left to merge in either. Other texts may come out in smaller pieces, down to bytes.

    The texts are to be cut as they will be later: a chunk does not cross from one into the next.
    """
    ranks = encoding._mergeable_ranks  # bytes -> id; the lower, the earlier it is merged
    used = set()
    for text in texts:
        used.update(encoding.encode_ordinary(text))
    kept = {bytes([byte]) for byte in range(256)}
    for id in used:
        token = encoding.decode_single_token_bytes(id)
        kept.add(token)  # tiktoken takes a chunk that is a token as it is, merged or not
        kept.update(merge_path(token, ranks))
    in_order = sorted(ranks, key=ranks.get)
    others = [token for token in in_order if token not in kept]
    kept.update(others[:max(0, vocab_size - 1 - len(kept))])
    return make_encoding(name, encoding._pat_str, [token for token in in_order if token in kept])
