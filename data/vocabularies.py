"""The vocabularies of well-known LLMs, cut down to what our texts need.

python train.py --llm_target_tokenizer gpt2 gives an LLM the part of a public vocabulary that its
texts use; the rest would be most of its parameters.
"""
from itertools import pairwise

import tiktoken

from data.bpe import make_encoding
from data.files import Refused

PUBLIC = ["gpt2", "cl100k_base", "o200k_base"]  # vocabularies of OpenAI, as tiktoken calls them


def open_encoding(name):
    """The vocabulary of another LLM, one of PUBLIC. tiktoken looks for its files in a folder, and
    downloads those that it does not find."""
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # no network, or what came is not the file
        raise Refused(f"cannot load {name!r}: tiktoken has no intact copy and cannot download one "
                      f"({type(error).__name__}); data/README.md says which files to save, and "
                      "where") from error


def merge_path(token, ranks):
    """What merging the bytes of a token makes on the way to it, itself included:

    >>> merge_path(b" red", {b"re": 256, b"ed": 257, b" re": 258, b" red": 259})
    [b're', b' re', b' red']
    """
    pieces, path = [bytes([byte]) for byte in token], []
    while True:
        joined = [left + right for left, right in pairwise(pieces)]
        possible = [i for i, piece in enumerate(joined) if piece in ranks]
        if not possible:
            return path
        i = min(possible, key=lambda i: ranks[joined[i]])
        path.append(joined[i])
        pieces[i:i + 2] = [joined[i]]


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
    used = {id for text in texts for id in encoding.encode_ordinary(text)}
    kept = {bytes([byte]) for byte in range(256)}
    for token in encoding.decode_tokens_bytes(list(used)):
        kept.add(token)  # tiktoken takes a chunk that is a token as it is, merged or not
        kept.update(merge_path(token, ranks))
    in_order = sorted(ranks, key=ranks.get)
    others = [token for token in in_order if token not in kept]
    kept.update(others[:max(0, vocab_size - 1 - len(kept))])
    return make_encoding(name, encoding._pat_str, [token for token in in_order if token in kept])
