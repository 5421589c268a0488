"""What is in a GGUF file: a real LLM in one file, as llama.cpp and its relatives exchange them.

    GGUF            these four letters, then the version: 2 or 3
    two counts      of tensors, and of metadata
    metadata        key, type, value: the LLM's sizes, its vocabulary, how it is cut into tokens
    table           name, shape, type and offset of each tensor
    tensors         one after the other, each padded to a multiple of `alignment` bytes

Numbers are little-endian. A string is its length and its UTF-8 bytes; an array is the type of its
values, their count, and the values. (The format: github.com/ggml-org/ggml, docs/gguf.md)

    >>> file = GGUF("SmolLM2-135M-Instruct.Q4_1.gguf")
    >>> file.metadata["llama.embedding_length"], file.read("token_embd.weight").shape
    (576, (49152, 576))

The file is mapped into memory: opening it reads the head, and `read` one tensor at a time. Nothing
in it is trusted: every count and size is compared with what the file can hold before it is used.
"""
import functools
import math
import re
import struct
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tiktoken

from data.files import Refused

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
           12: "d"}  # types of values, in the notation of struct
STRING, ARRAY = 8, 9
NORMAL, DEFINED, BYTE = 1, 4, 6  # types of tokens; the others are not text
SPELLED = {f"<0x{b:02X}>": bytes([b]) for b in range(256)}  # how SentencePiece writes bytes

NEWER = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")  # of GPT-4, and those after it
PATTERNS = {  # how a text is cut into chunks, by the name of the pre-tokeniser
    "gpt-2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # each digit alone, and no space belongs to a digit
    "smollm": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+",
    "llama-bpe": NEWER % r"\p{N}{1,3}",
    "qwen2": NEWER % r"\p{N}"}


# ---- how weights are stored ---------------------------------------------------------------------
# A function decodes blocks of weights: (blocks, bytes) uint8 -> (blocks, weights) float32

def f16(blocks):
    return blocks.view("<f2").astype(np.float32)


def bf16(blocks):
    """The upper half of a float32."""
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def q8_0(blocks):
    """d (2 bytes), q (32 x 8 bits with sign): w = d q"""
    return f16(blocks[:, :2]) * blocks[:, 2:].view(np.int8)


def nibbles(packed, size=16):
    """Two numbers of 4 bits in each byte, the lower halves of each `size` bytes first."""
    packed = packed.reshape(len(packed), -1, 1, size)
    both = np.concatenate([packed & 15, packed >> 4], axis=2)  # (blocks, .., 2, size)
    return both.reshape(len(packed), -1)  # (blocks, weights)


def fifth_bits(packed):
    """A bit for each weight, as the fifth of a number: 0 or 16."""
    return np.unpackbits(packed, axis=1, bitorder="little") << 4  # (blocks, weights)


def q4_0(blocks):
    """d (2 bytes), q (32 x 4 bits): w = d (q - 8)"""
    return f16(blocks[:, :2]) * (nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def q4_1(blocks):
    """d, m (2 bytes each), q (32 x 4 bits): w = d q + m"""
    return f16(blocks[:, :2]) * nibbles(blocks[:, 4:]) + f16(blocks[:, 2:4])


def q5_0(blocks):
    """d (2 bytes), fifth bits (4 bytes), q (32 x 4 bits): w = d (q - 16)"""
    q = nibbles(blocks[:, 6:]) | fifth_bits(blocks[:, 2:6])  # (blocks, 32)
    return f16(blocks[:, :2]) * (q.astype(np.float32) - 16)


def scaled(blocks, q):
    """8 groups of 32 weights, each with a scale s and an offset m of 6 bits: w = d s q - d' m

    d, d' (2 bytes each), then 12 bytes: s of the first 4 groups, m of the first 4, and 4 bits each
    of the others' s and m. What is missing of these are the upper 2 bits of the first 8 bytes.
    """
    s, m, others = blocks[:, 4:16].reshape(-1, 3, 4).swapaxes(0, 1)  # 3 x (blocks, 4)
    scales = np.concatenate([s & 63, others & 15 | s >> 6 << 4], axis=1)[..., None]
    offsets = np.concatenate([m & 63, others >> 4 | m >> 6 << 4], axis=1)[..., None]
    d, d_offset = f16(blocks[:, :2])[..., None], f16(blocks[:, 2:4])[..., None]  # (blocks, 1, 1)
    return d * scales * q.reshape(-1, 8, 32) - d_offset * offsets  # (blocks, 8, 32)


def q4_k(blocks):
    """16 bytes for `scaled`, q (256 x 4 bits)"""
    return scaled(blocks, nibbles(blocks[:, 16:], 32))


def q5_k(blocks):
    """16 bytes for `scaled`, fifth bits (a byte for the same weight of all groups), q (256 x 4)"""
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # (blocks, 8, 32)
    return scaled(blocks, nibbles(blocks[:, 48:], 32) | fifth.reshape(-1, 256) << 4)


def q6_k(blocks):
    """q (256 x 4 bits), their upper 2 bits, 16 scales s (a byte with sign), d: w = d s (q - 32)"""
    upper = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.uint8([[0], [2], [4], [6]]) & 3
    q = nibbles(blocks[:, :128], 64) | upper.reshape(-1, 256) << 4  # (blocks, 256)
    scales = f16(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8)  # (blocks, 16)
    return scales[..., None] * (q.reshape(-1, 16, 16).astype(np.float32) - 32)


# name of a type: (weights in a block, bytes in a block, how to decode them)
STORED = {"F32": (1, 4, lambda blocks: blocks.view("<f4").copy()), "F16": (1, 2, f16),
          "BF16": (1, 2, bf16), "Q8_0": (32, 34, q8_0), "Q4_0": (32, 18, q4_0),
          "Q4_1": (32, 20, q4_1), "Q5_0": (32, 22, q5_0),
          "Q4_K": (256, 144, q4_k), "Q5_K": (256, 176, q5_k), "Q6_K": (256, 210, q6_k)}
# all types by number, to name those that are not known; 4 and the like are not used any more
TYPES = ("F32 F16 Q4_0 Q4_1 4 5 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS "
         "IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 31 32 33 TQ1_0 "
         "TQ2_0 36 37 38 MXFP4").split()


# ---- the file -----------------------------------------------------------------------------------

class GGUF:
    """An open file: `metadata` {key: value}, `tensors` {name: (shape, blocks, decode)}, and
    read(name).

    A shape is as in PyTorch, (rows, columns): the file has columns first. Blocks are as in the
    file, (blocks, bytes) uint8; decode is how they become numbers.

    Raises Refused, in one line, for a file that is damaged, cut, or of a kind that is not known.
    """

    def __init__(self, path):
        self.path, self.at = Path(path), 0
        if not self.path.is_file():
            raise Refused(f"there is no file {str(path)!r}")
        self.expect(self.path.stat().st_size >= 24, "it is too small for a GGUF file")
        self.memory = memoryview(np.memmap(self.path, mode="r"))  # uint8
        magic, version, tensors, entries = struct.unpack("<4sIQQ", self.take(24))
        self.expect(magic == b"GGUF", "it is no GGUF file: it does not begin with these letters")
        self.expect(version in (2, 3), f"its version is {version}; 2 and 3 are known")
        self.metadata = dict(self.entry() for _ in range(entries))
        self.tensors = self.read_table(tensors)
        self.expect(len(self.metadata) == entries and len(self.tensors) == tensors,
                    "it is damaged: a key or a tensor is there twice")

    def expect(self, ok, why):
        """Raise Refused, and say why the file cannot be read, unless it is as expected."""
        if not ok:
            raise Refused(f"cannot read {str(self.path)!r}: {why}")

    # ---- its parts, in their order; self.at is where the next one begins ----

    def take(self, n):
        """The next n bytes."""
        missing = self.at + n - len(self.memory)
        self.expect(missing <= 0, f"it is damaged or cut: {missing} bytes are missing at its end")
        self.at += n
        return self.memory[self.at - n:self.at]

    def numbers(self, letter, n=1):
        """The next n numbers, of a type in the notation of struct."""
        raw = self.take(n * struct.calcsize(f"<{letter}"))  # refuses an n that lies
        return struct.unpack(f"<{n}{letter}", raw)

    def number(self, letter):
        return self.numbers(letter)[0]

    def string(self):
        try:
            return str(self.take(int.from_bytes(self.take(8), "little")), "utf-8")
        except UnicodeDecodeError:
            self.expect(False, f"it is damaged: no text at byte {self.at}")

    def entry(self):
        """A key, and its value: a number, a string, or an array of either."""
        key, type = self.string(), self.number("I")
        if type == ARRAY:
            return key, self.values(self.number("I"), self.number("Q"))
        return key, self.values(type, 1)[0]

    def values(self, type, n):
        """The next n values of a type: a list."""
        if type == STRING:
            return [self.string() for _ in range(n)]
        self.expect(type in NUMBERS, f"it is damaged: no value is of type {type} (byte {self.at})")
        return list(self.numbers(NUMBERS[type], n))

    def read_table(self, tensors):
        """The table of tensors; they must fill the rest of the file."""
        table = []
        for _ in range(tensors):
            name, dimensions = self.string(), self.number("I")
            self.expect(1 <= dimensions <= 4, f"it is damaged: {dimensions} dimensions in {name!r}")
            shape = self.numbers("Q", dimensions)[::-1]
            table.append((name, shape, self.number("I"), self.number("Q")))
        alignment = self.get("general.alignment", int, 32)
        self.expect(alignment >= 8 and not alignment & (alignment - 1),
                    f"it is damaged: an alignment of {alignment} bytes")
        self.at += -self.at % alignment
        start, found = self.at, {}
        for name, shape, type, offset in table:
            stored = TYPES[type] if type < len(TYPES) else type
            self.expect(stored in STORED, f"{name!r} holds {stored}; known are {', '.join(STORED)}")
            (weights, size, decode), total = STORED[stored], math.prod(shape)
            fits = total > 0 and shape[-1] % weights == 0 and start + offset == self.at
            self.expect(fits, f"it is damaged: the size or the place of {name!r} is wrong")
            raw = self.take(total // weights * size)
            found[name] = shape, np.frombuffer(raw, np.uint8).reshape(-1, size), decode
            self.at += -self.at % alignment
        rest = len(self.memory) - self.at
        self.expect(rest <= 0, f"it is damaged: {rest} bytes follow the last tensor")
        return found

    # ---- what is in it ----

    def get(self, key, type, default=None):
        """A value of the metadata that must have a type; without a default, it must be there."""
        value = self.metadata.get(key, default)
        self.expect(value is not None, f"it does not say {key!r}")
        if not isinstance(value, type) or isinstance(value, bool) != (type is bool):
            self.expect(False, f"{key} is {str(value)[:40]!r}, not of type {type.__name__}")
        return value

    def read(self, name):
        """A tensor as float32."""
        shape, blocks, decode = self.tensors[name]
        with np.errstate(all="ignore"):  # damaged weights are reported below
            values = decode(blocks).reshape(shape)
        self.expect(np.isfinite(values).all(), f"it is damaged: not all of {name!r} is finite")
        return values


# ---- its vocabulary -----------------------------------------------------------------------------

def bytes_of_letters():
    """{letter: byte}: GPT-2's alphabet, which writes every byte as a visible letter."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]  # these stand for themselves
    others = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(others)}


def read_encoding(file):
    """The vocabulary of a GGUF file; every id is kept. Of byte-level BPE (`gpt2`) it becomes a
    tiktoken.Encoding, of SentencePiece (`llama`) a SentencePiece."""
    model = file.get("tokenizer.ggml.model", str)
    file.expect(model in ("gpt2", "llama"), f"its tokenizer is {model!r}, not 'gpt2' or 'llama'")
    tokens = texts_of(file, "tokenizer.ggml.tokens")
    kinds = file.get("tokenizer.ggml.token_type", list)
    file.expect(len(kinds) == len(tokens), "it is damaged: not each of its tokens has one type")
    name = file.get("general.name", str, file.path.stem)
    return (read_bpe if model == "gpt2" else read_sentencepiece)(file, name, tokens, kinds)


def read_bpe(file, name, tokens, kinds):
    """A byte that is no token gets an id beyond the vocabulary: such text can be encoded, but not
    embedded. tiktoken merges in the order of ids, so the file's merges must have that order."""
    pre = file.get("tokenizer.ggml.pre", str)
    file.expect(pre in PATTERNS, f"its pre-tokeniser is {pre!r}; known are {', '.join(PATTERNS)}")
    letters, ranks, special = bytes_of_letters(), {}, {}
    for id, (token, kind) in enumerate(zip(tokens, kinds)):
        if kind == NORMAL:
            file.expect({*token} <= {*letters}, f"it is damaged: token {id} is {token!r}")
            ranks[bytes(letters[letter] for letter in token)] = id
        else:
            special[token] = id
    file.expect(len(ranks) + len(special) == len(tokens) and b"" not in ranks and "" not in special,
                "it is damaged: a token is there twice, or is empty")
    last, ids = -1, {token: id for id, token in enumerate(tokens)}
    for merge in texts_of(file, "tokenizer.ggml.merges"):
        id = ids.get(merge.replace(" ", "", 1), -1)
        file.expect(id >= max(last, 0), f"the merge {merge!r} is damaged, or not in order")
        last = id
    missing = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
    ranks |= {byte: len(tokens) + i for i, byte in enumerate(missing)}
    return tiktoken.Encoding(name, special_tokens=special, pat_str=PATTERNS[pre],
                             mergeable_ranks=ranks)


def read_sentencepiece(file, name, tokens, kinds):
    scores = file.get("tokenizer.ggml.scores", list)
    file.expect(len(scores) == len(tokens) and all(isinstance(score, float) for score in scores),
                "it is damaged: each token needs a score")
    file.expect("" not in tokens and {token for token, kind in zip(tokens, kinds) if kind == BYTE}
                == {*SPELLED}, "a token is empty, or a byte is no token: not known")
    return SentencePiece(name, tokens, kinds, scores)


class SentencePiece:
    """A vocabulary of SentencePiece (arXiv 1808.06226), of the kind that merges by scores, with
    those methods of a tiktoken.Encoding that this project uses.

    What people have defined as tokens is cut out of a text first. In the rest characters merge:
    always the two neighbours whose token has the highest score, the first of equals. A character
    that is no token is spelled in bytes. '▁' stands for a space.
    """

    def __init__(self, name, tokens, kinds, scores):
        texts, ids = [token.replace("▁", " ") for token in tokens], range(len(tokens))
        normal, defined, byte = ({texts[id]: id for id in ids if kinds[id] == kind}
                                 for kind in (NORMAL, DEFINED, BYTE))
        self.name, self.ids, self.defined = name, normal | defined, defined
        self.ranks = {text: -scores[id] for text, id in normal.items()}  # the lowest is the first
        self.spelled = [byte[token] for token in SPELLED]
        self.special_tokens_set = {*texts} - {*self.ids, *byte}
        self.bytes = [SPELLED.get(text) or text.encode() for text in texts]
        # A byte may be a character, too: then that is its token.
        self.single = {self.bytes[id]: id for id in [*self.spelled, *self.ids.values()]}
        self.single |= {texts[id]: id for id in ids if texts[id] in self.special_tokens_set}
        # Cut before a word, too, where no token goes on across it: words are short and come again.
        inner = {text[i - 1] for text in normal for i in range(1, len(text)) if text[i] == " "}
        longest = sorted(map(re.escape, defined), key=len, reverse=True)
        self.cut = re.compile(f"({'|'.join(longest) or '(?!)'})"
                              f"|(?<=[^{re.escape(''.join({' '} | inner))}])(?= )")
        self.merge = functools.cache(self.merge)

    def encode_ordinary(self, text):
        """Special tokens in the text are ordinary text."""
        parts = filter(None, self.cut.split(text.replace("▁", " ")))
        return [id for part in parts for id in self.merge(part)]

    def encode(self, text, **allowed):
        return self.encode_ordinary(text)

    def merge(self, part):
        """The ids of a part, which is cut no further."""
        parts = [part] if part in self.defined else [*part]
        while True:
            ranks = [self.ranks.get(a + b, math.inf) for a, b in pairwise(parts)]
            best = min(ranks, default=math.inf)
            if best == math.inf:
                return [id for text in parts for id in (
                    [self.ids[text]] if text in self.ids else
                    [self.spelled[b] for b in text.encode("utf-8", "replace")])]
            i = ranks.index(best)
            parts[i:i + 2] = [parts[i] + parts[i + 1]]

    def decode(self, ids):
        return b"".join(self.bytes[id] for id in ids).decode("utf-8", "replace")

    def encode_single_token(self, token):
        return self.single[token]

    def token_byte_values(self):
        return self.single.keys() - self.special_tokens_set


def texts_of(file, key):
    texts = file.get(key, list)
    file.expect(texts and all(isinstance(text, str) for text in texts), f"{key} holds no texts")
    return texts


# ---- its LLM ------------------------------------------------------------------------------------

def sizes_of(file):
    """The sizes of the LLM in a file (results/real.py has the LLM):

        V, C, H, layers   vocabulary, width, attention heads, blocks
        G, c              heads that have keys and values of their own, and the width of a head
        F                 width inside the MLP
        context           how many tokens are seen at a time
        base, eps         of the rotary positions, and of the norms
        window, near_base, every   Gemma's local layers see so many tokens, with rotary positions of
                          their own; every sixth layer is global
        begin             the ids, and the text, that everything written for it begins with
    """
    family = file.get("general.architecture", str)
    file.expect(family in ("llama", "qwen2", "gemma3"),
                f"its architecture is {family!r}; known are llama, qwen2, gemma3")
    parts, experts = file.get("split.count", int, 1), file.get(f"{family}.expert_count", int, 0)
    file.expect(parts == 1 and experts == 0, "it is one of several files, or has experts: unknown")
    scaling = file.get(f"{family}.rope.scaling.type", str, "none")
    file.expect(scaling == "none", f"its rotary positions are scaled ({scaling!r}): not known")

    def size(name, default=None):
        n = file.get(f"{family}.{name}", int, default)
        file.expect(1 <= n <= 2 ** 24, f"it is damaged: {family}.{name} is {n}")
        return n

    C, H, context = size("embedding_length"), size("attention.head_count"), size("context_length")
    s = SimpleNamespace(
        V=len(texts_of(file, "tokenizer.ggml.tokens")), C=C, H=H, layers=size("block_count"),
        G=size("attention.head_count_kv", H), c=size("attention.key_length", C // H),
        F=size("feed_forward_length"), window=size("attention.sliding_window", context),
        base=file.get(f"{family}.rope.freq_base", float, 10000.0), near_base=10000.0, every=6,
        eps=file.get(f"{family}.attention.layer_norm_rms_epsilon", float), family=family,
        begin=beginning(file))
    s.context = context if family == "gemma3" else min(context, s.window)
    rotary = size("rope.dimension_count", s.c) == s.c and s.c % 2 == 0 and s.base > 0
    file.expect(H % s.G == 0 and rotary and 0 < s.eps < 1,
                "its numbers of heads, or its rotary positions, are of no known kind")
    file.expect(9 * s.layers <= len(file.tensors), f"it is damaged: no {s.layers} blocks are in it")
    return s


def beginning(file):
    """([the id of BOS], " ") or less: what a text for this LLM begins with, if the file says so."""
    model, pre = (file.get(f"tokenizer.ggml.{name}", str, "") for name in ("model", "pre"))
    spm, last = model == "llama", len(texts_of(file, "tokenizer.ggml.tokens")) - 1
    space = " " * (spm and file.get("tokenizer.ggml.add_space_prefix", bool, True))
    if not file.get("tokenizer.ggml.add_bos_token", bool, spm or pre == "llama-bpe"):
        return [], space
    bos = file.get("tokenizer.ggml.bos_token_id", int)
    file.expect(0 <= bos <= last, f"it is damaged: BOS is token {bos}")
    return [bos], space


def shapes_of(s):
    """The tensors of an LLM of these sizes: {name: shape}"""
    q, kv = s.H * s.c, s.G * s.c
    block = {"attn_norm.weight": (s.C,), "attn_output.weight": (s.C, q),
             "ffn_norm.weight": (s.C,), "ffn_gate.weight": (s.F, s.C),
             "ffn_up.weight": (s.F, s.C), "ffn_down.weight": (s.C, s.F)}
    for part, rows in (("q", q), ("k", kv), ("v", kv)):
        block |= {f"attn_{part}.weight": (rows, s.C), f"attn_{part}.bias": (rows,)}
    if s.family == "gemma3":
        block |= {f"attn_{part}_norm.weight": (s.c,) for part in "qk"}
        block |= {f"post_{part}_norm.weight": (s.C,) for part in ("attention", "ffw")}
    shapes = {"token_embd.weight": (s.V, s.C), "rope_freqs.weight": (s.c // 2,),
              "output_norm.weight": (s.C,), "output.weight": (s.V, s.C)}
    return shapes | {f"blk.{i}.{name}": shape for i in range(s.layers)
                     for name, shape in block.items()}


def read_weights(file, sizes):
    """The weights of the LLM, {name: float32 array}. All names and shapes are compared with its
    sizes before any weight is read.

    It may lack a head (then that is the embedding), biases, and the divisors of the rotary
    frequencies, `rope_freqs`, which LLaMA 3 has.
    """
    shapes, optional = shapes_of(sizes), ("output.weight", "rope_freqs.weight")
    for name in sorted({*shapes} ^ {*file.tensors}):
        file.expect(name in shapes, f"the tensor {name!r} is not known")
        file.expect(name in optional or name.endswith(".bias"), f"the tensor {name!r} is missing")
    for name, (shape, _, _) in file.tensors.items():
        file.expect(shape == shapes[name], f"it is damaged: {name!r} is not {shapes[name]}")
    return {name: file.read(name) for name in file.tensors}
