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
import math
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import tiktoken

from data.files import Refused

NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
           10: "<Q", 11: "<q", 12: "<d"}  # types of values, in the notation of struct
STRING, ARRAY = 8, 9

LETTERS, DIGITS, REST = r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+"  # of GPT-2
ENDINGS = r"'(?:[sdmt]|ll|ve|re)"
SPACE = r"\s+(?!\S)|\s+"  # all but the last space, which belongs to the next word
NEWER = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|" + SPACE)  # of GPT-4, and those after it
PATTERNS = {  # how a text is cut into chunks, by the name of the pre-tokeniser
    "gpt-2": "|".join([ENDINGS, LETTERS, DIGITS, REST, SPACE]),
    # each digit alone, and no space belongs to a digit
    "smollm": "|".join([ENDINGS, LETTERS, r"\p{N}", REST, r"\s+(?=\p{N})", SPACE]),
    "llama-bpe": NEWER % r"\p{N}{1,3}",
    "qwen2": NEWER % r"\p{N}"}


# ---- how weights are stored ---------------------------------------------------------------------

def f32(blocks):
    return blocks.view("<f4").astype(np.float32)


def f16(blocks):
    return blocks.view("<f2").astype(np.float32)


def bf16(blocks):
    """The upper half of a float32."""
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def q8_0(blocks):
    """d (2 bytes), q (32 x 8 bits with sign): w = d q"""
    return f16(blocks[:, :2]) * blocks[:, 2:].view(np.int8)


def nibbles(packed):
    """Two numbers of 4 bits in each byte: the lower halves are the first 16 of a block."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)  # (blocks, 32)


def q4_0(blocks):
    """d (2 bytes), q (32 x 4 bits): w = d (q - 8)"""
    return f16(blocks[:, :2]) * (nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def q4_1(blocks):
    """d, m (2 bytes each), q (32 x 4 bits): w = d q + m"""
    return f16(blocks[:, :2]) * nibbles(blocks[:, 4:]) + f16(blocks[:, 2:4])


class Storage(NamedTuple):
    name: str
    weights: int  # in a block
    bytes: int  # of a block
    decode: object  # (blocks, bytes) uint8 -> (blocks, weights) float32


STORED = {0: Storage("F32", 1, 4, f32), 1: Storage("F16", 1, 2, f16),
          30: Storage("BF16", 1, 2, bf16), 8: Storage("Q8_0", 32, 34, q8_0),
          2: Storage("Q4_0", 32, 18, q4_0), 3: Storage("Q4_1", 32, 20, q4_1)}
OTHERS = {6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
          14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
          20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
          27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}


class Entry(NamedTuple):
    """A row of the table."""
    shape: tuple  # as in PyTorch: (rows, columns); the file has columns first
    storage: Storage
    start: int  # in the file
    size: int  # in bytes


# ---- the file -----------------------------------------------------------------------------------

class GGUF:
    """An open file: `metadata` {key: value}, `tensors` {name: Entry}, and read(name).

    Raises Refused, in one line, for a file that is damaged, cut, or of a kind that is not known.
    """

    def __init__(self, path):
        self.path, self.at = Path(path), 0
        if not self.path.is_file():
            raise Refused(f"there is no file {str(path)!r}")
        if self.path.stat().st_size < 24:
            raise self.refusal("it is too small for a GGUF file")
        self.bytes = np.memmap(self.path, mode="r")  # uint8
        self.memory = memoryview(self.bytes)
        if bytes(self.take(4)) != b"GGUF":
            raise self.refusal("it is no GGUF file: it does not begin with these letters")
        version = self.number("<I")
        if version not in (2, 3):
            raise self.refusal(f"its version is {version}; 2 and 3 are known")
        tensors, entries = self.count(24), self.count(13)
        self.metadata = dict(self.entry() for _ in range(entries))
        self.tensors = self.read_table(tensors)
        if len(self.metadata) < entries or len(self.tensors) < tensors:
            raise self.refusal("it is damaged: a key or a tensor is there twice")

    def refusal(self, why):
        return Refused(f"cannot read {str(self.path)!r}: {why}")

    def take(self, n):
        """The next n bytes."""
        if n > len(self.memory) - self.at:
            raise self.refusal(f"it is damaged or cut: {n} bytes are missing at its end")
        self.at += n
        return self.memory[self.at - n:self.at]

    def number(self, form):
        (number,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return number

    def count(self, least):
        """How many things follow, each of `least` bytes or more."""
        n = self.number("<Q")
        if n * least > len(self.memory) - self.at:
            raise self.refusal(f"it is damaged: it promises {n} values, and has no room for them")
        return n

    def string(self):
        try:
            return str(self.take(self.count(1)), "utf-8")
        except UnicodeDecodeError:
            raise self.refusal(f"it is damaged: no text at byte {self.at}")

    def entry(self):
        """A key, and its value: a number, a string, or an array of either."""
        key, type, array = self.string(), self.number("<I"), False
        if type == ARRAY:
            type, array = self.number("<I"), True
        if type == STRING:
            return key, [self.string() for _ in range(self.count(8))] if array else self.string()
        if type not in NUMBERS:
            raise self.refusal(f"it is damaged: no value has the type {type} (byte {self.at})")
        form, size = NUMBERS[type], struct.calcsize(NUMBERS[type])
        if array:
            return key, np.frombuffer(self.take(self.count(size) * size), form).tolist()
        return key, self.number(form)

    def read_table(self, tensors):
        """The table of tensors; they must fill the rest of the file."""
        table = []
        for _ in range(tensors):
            name, dimensions = self.string(), self.number("<I")
            if not 1 <= dimensions <= 4:
                raise self.refusal(f"it is damaged: {name!r} has {dimensions} dimensions")
            shape = tuple(self.number("<Q") for _ in range(dimensions))[::-1]
            table.append((name, shape, self.number("<I"), self.number("<Q")))
        alignment = self.get("general.alignment", int, 32)
        if alignment < 8 or alignment & (alignment - 1):
            raise self.refusal(f"it is damaged: an alignment of {alignment} bytes")
        start = end = padded(self.at, alignment)
        entries, known = {}, ", ".join(storage.name for storage in STORED.values())
        for name, shape, type, offset in table:
            if type not in STORED:
                raise self.refusal(f"{name!r} is stored as {OTHERS.get(type, type)}; known are "
                                   f"{known}")
            storage, weights = STORED[type], math.prod(shape)
            size = weights // storage.weights * storage.bytes
            if weights < 1 or shape[-1] % storage.weights or start + offset != end:
                raise self.refusal(f"it is damaged: the size or the place of {name!r} is wrong")
            if start + offset + size > len(self.memory):
                raise self.refusal(f"it is damaged or cut: {name!r} goes beyond its end")
            entries[name] = Entry(shape, storage, start + offset, size)
            end = padded(start + offset + size, alignment)
        if len(self.memory) > end:
            raise self.refusal(f"it is damaged: {len(self.memory) - end} bytes follow the last "
                               "tensor")
        return entries

    def get(self, key, type, default=None):
        """A value of the metadata that must have a type; without a default, it must be there."""
        if key not in self.metadata:
            if default is None:
                raise self.refusal(f"it does not say {key!r}")
            return default
        value = self.metadata[key]
        if not isinstance(value, type) or isinstance(value, bool) != (type is bool):
            raise self.refusal(f"{key} is {str(value)[:40]!r}, not of type {type.__name__}")
        return value

    def read(self, name):
        """A tensor as float32."""
        shape, storage, start, size = self.tensors[name]
        blocks = self.bytes[start:start + size].reshape(-1, storage.bytes)
        with np.errstate(all="ignore"):  # damaged weights are reported below
            values = np.asarray(storage.decode(blocks), dtype=np.float32).reshape(shape)
        if not np.isfinite(values).all():
            raise self.refusal(f"it is damaged: {name!r} holds values that are not finite")
        return values


def padded(n, alignment):
    return -(-n // alignment) * alignment


# ---- its vocabulary -----------------------------------------------------------------------------

def bytes_of_letters():
    """{letter: byte}: GPT-2's alphabet, which writes every byte as a visible letter."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]  # these stand for themselves
    others = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(others)}


def read_encoding(file):
    """The byte-level BPE vocabulary of a GGUF file as a tiktoken.Encoding; every id is kept.

    A byte that is no token of it gets an id beyond the vocabulary: such text can be encoded, but
    not embedded. tiktoken merges in the order of ids, so the file's merges must have that order.
    """
    model = file.get("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise file.refusal(f"its tokenizer is a {model!r}; only byte-level BPE, 'gpt2', is known")
    pre = file.get("tokenizer.ggml.pre", str)
    if pre not in PATTERNS:
        raise file.refusal(f"its pre-tokeniser is {pre!r}; known are {', '.join(PATTERNS)}")
    tokens = texts_of(file, "tokenizer.ggml.tokens")
    kinds = file.get("tokenizer.ggml.token_type", list)
    if len(kinds) != len(tokens):
        raise file.refusal(f"it is damaged: {len(tokens)} tokens, but {len(kinds)} types of them")
    letters, ranks, special = bytes_of_letters(), {}, {}
    for id, (token, kind) in enumerate(zip(tokens, kinds)):
        if kind != 1:  # 1: an ordinary token
            special[token] = id
        elif {*token} <= {*letters}:
            ranks[bytes(letters[letter] for letter in token)] = id
        else:
            raise file.refusal(f"it is damaged: token {id} is {token!r}")
    if len(ranks) + len(special) < len(tokens) or b"" in ranks or "" in special:
        raise file.refusal("it is damaged: a token is there twice, or is empty")
    check_merges(file, {token: id for id, token in enumerate(tokens)})
    missing = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
    ranks |= {byte: len(tokens) + i for i, byte in enumerate(missing)}
    return tiktoken.Encoding(file.get("general.name", str, file.path.stem), special_tokens=special,
                             pat_str=PATTERNS[pre], mergeable_ranks=ranks)


def texts_of(file, key):
    texts = file.get(key, list)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise file.refusal(f"{key} holds no texts")
    return texts


def check_merges(file, ids):
    """Raises Refused unless each merge makes a token, and later ones make higher ids."""
    last = -1
    for merge in texts_of(file, "tokenizer.ggml.merges"):
        id = ids.get(merge.replace(" ", "", 1), -1)
        if id < max(last, 0):
            raise file.refusal(f"the merge {merge!r} is damaged, or not in the order of the ids")
        last = id


# ---- its LLM ------------------------------------------------------------------------------------

def sizes_of(file):
    """The sizes of the LLM in a file (results/real.py has the LLM):

        V, C, H, layers   vocabulary, width, attention heads, blocks
        G, c              heads that have keys and values of their own, and the width of a head
        F                 width inside the MLP
        context           how many tokens are seen at a time
        base, eps         of the rotary positions, and of the norms
        apart             whether the two channels of a rotary pair are half a head apart; otherwise
                          they are neighbours
    """
    family = file.get("general.architecture", str)
    if family not in ("llama", "qwen2"):
        raise file.refusal(f"its architecture is {family!r}; known are llama and qwen2")
    if file.get("split.count", int, 1) != 1 or file.get(f"{family}.expert_count", int, 0):
        raise file.refusal("it is a part of several files, or a mixture of experts: not known")
    scaling = file.get(f"{family}.rope.scaling.type", str, "none")
    if scaling != "none":
        raise file.refusal(f"its rotary positions are scaled ({scaling!r}): not known")

    def size(name, default=None):
        n = file.get(f"{family}.{name}", int, default)
        if not 1 <= n <= 2 ** 24:
            raise file.refusal(f"it is damaged: {family}.{name} is {n}")
        return n

    C, H, context = size("embedding_length"), size("attention.head_count"), size("context_length")
    s = SimpleNamespace(
        V=len(texts_of(file, "tokenizer.ggml.tokens")), C=C, H=H, layers=size("block_count"),
        G=size("attention.head_count_kv", H), c=size("attention.key_length", C // H),
        F=size("feed_forward_length"),
        context=min(context, size("attention.sliding_window", context)),
        base=file.get(f"{family}.rope.freq_base", float, 10000.0),
        eps=file.get(f"{family}.attention.layer_norm_rms_epsilon", float), apart=family == "qwen2")
    rotary = size("rope.dimension_count", s.c) == s.c and s.c % 2 == 0 and s.base > 0
    if H % s.G or not rotary or not 0 < s.eps < 1:
        raise file.refusal("its numbers of heads, or its rotary positions, are of no known kind")
    if 9 * s.layers > len(file.tensors):
        raise file.refusal(f"it is damaged: {s.layers} blocks, {len(file.tensors)} tensors")
    return s


def shapes_of(s):
    """The tensors of an LLM of these sizes: {name: shape}"""
    q, kv = s.H * s.c, s.G * s.c
    block = {
        "attn_norm.weight": (s.C,), "attn_q.weight": (q, s.C), "attn_q.bias": (q,),
        "attn_k.weight": (kv, s.C), "attn_k.bias": (kv,), "attn_v.weight": (kv, s.C),
        "attn_v.bias": (kv,), "attn_output.weight": (s.C, q), "ffn_norm.weight": (s.C,),
        "ffn_gate.weight": (s.F, s.C), "ffn_up.weight": (s.F, s.C), "ffn_down.weight": (s.C, s.F)}
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
        if name in file.tensors:
            raise file.refusal(f"the tensor {name!r} is not known")
        if name not in optional and not name.endswith(".bias"):
            raise file.refusal(f"the tensor {name!r} is missing")
    for name, entry in file.tensors.items():
        if entry.shape != shapes[name]:
            raise file.refusal(f"it is damaged: {name!r} has the shape {entry.shape}, and by its "
                               f"sizes {shapes[name]}")
    return {name: file.read(name) for name in file.tensors}
