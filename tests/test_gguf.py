"""A real LLM in a file: tiny GGUF files, written here byte by byte, against plain arithmetic."""
import math
import random
import struct
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import regex
import torch

from data.bpe import BOS, line_ends
from data.corpus import document
from data.files import Refused
from data.gguf import GGUF, PATTERNS, bytes_of_letters, read_encoding
from model import load_llm

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}
C, H, G, WIDE, LAYERS = 64, 4, 2, 96, 2
c = C // H
TEXT = ("the red circle, a blue square; don't it's we'll 1234 7 the the circle  circles\n\n"
        " reds ё 東京 🙂 ")
STRINGS = ["", " ", "the red circle", "  3 4  55\n\n x", "it's 12,345.6", "naïve 東京 🙂🙂",
           "a\r\n\tb ", "don't WE'LL", "x  1", "1  x", "\n", " \n 9"]


# ---- writing a file ------------------------------------------------------------------------------

def text(s):
    return struct.pack("<Q", len(s.encode())) + s.encode()


def value(v):
    if isinstance(v, bool):
        return struct.pack("<I?", 7, v)
    if isinstance(v, int):
        return struct.pack("<II", 4, v)
    if isinstance(v, float):
        return struct.pack("<If", 6, v)
    if isinstance(v, str):
        return struct.pack("<I", 8) + text(v)
    kind, one = (8, text) if isinstance(v[0], str) else (5, lambda i: struct.pack("<i", i))
    return struct.pack("<IIQ", 9, kind, len(v)) + b"".join(one(i) for i in v)


def pack(w, kind):
    """The bytes of an array, and the array as these bytes say it, block by block."""
    if kind in ("F32", "F16"):
        stored = w.astype(np.float32 if kind == "F32" else np.float16)
        return stored.tobytes(), stored.astype(np.float32)
    if kind == "BF16":
        stored = torch.from_numpy(w).bfloat16()
        return stored.view(torch.int16).numpy().tobytes(), stored.float().numpy()
    raw, said = b"", []
    for block in w.reshape(-1, 32):
        low, high = block.min(), block.max()
        if kind == "Q8_0":
            d = np.float16(abs(block).max() / 127)
            q = [round(float(x / d)) for x in block]
            raw += d.tobytes() + struct.pack("32b", *q)
            said += [float(d) * i for i in q]
            continue
        if kind == "Q4_0":
            d, m, offset = np.float16(abs(block).max() / 7), np.float16(0), 8
        else:
            d, m, offset = np.float16((high - low) / 15), np.float16(low), 0
        q = [min(15, max(0, round(float((x - m) / d)) + offset)) for x in block]
        raw += d.tobytes() + (m.tobytes() if kind == "Q4_1" else b"")
        raw += bytes(q[i] | q[i + 16] << 4 for i in range(16))
        said += [float(d) * (i - offset) + float(m) for i in q]
    return raw, np.array(said, dtype=np.float32).reshape(w.shape)


def write(path, metadata, tensors):
    """tensors: {name: (array, kind)}. Returns {name: array as it was stored}."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, v in metadata.items():
        head += text(key) + value(v)
    body, stored = b"", {}
    for name, (w, kind) in tensors.items():
        raw, stored[name] = pack(w, kind)
        head += text(name) + struct.pack("<I", w.ndim)
        head += b"".join(struct.pack("<Q", n) for n in w.shape[::-1])
        head += struct.pack("<IQ", TYPES[kind], len(body))
        body += raw + bytes(-len(raw) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + body)
    return stored


def chunks(pre):
    """Another way to cut a text, for the names of which we know one."""
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

    def cut(s):
        if pre == "gpt-2":
            return regex.findall(gpt2, s)
        if pre == "smollm":  # first each digit alone, then the rest
            parts = [part for part in regex.split(r"(\p{N})", s) if part]
            return [chunk for part in parts for chunk in regex.findall(gpt2, part)]
        return regex.findall(PATTERNS[pre], s)
    return cut


def train_merges(cut, letters, text, n):
    """At most n merges of a text, as pairs of strings in GPT-2's letters."""
    words = Counter(tuple(letters[b] for b in chunk.encode()) for chunk in cut(text))
    merges = []
    for _ in range(n):
        pairs = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                pairs[pair] += n
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = Counter({merge_all(word, best): n for word, n in words.items()})
    return merges


def merge_all(word, pair):
    out = []
    for letter in word:
        if out and (out[-1], letter) == pair:
            out[-1] += letter
        else:
            out.append(letter)
    return tuple(out)


def some_metadata(family="llama", pre="smollm", without=(), learned=TEXT, merges=40):
    """The metadata of a tiny file. Its vocabulary lacks the bytes in `without`."""
    letters = {b: letter for letter, b in bytes_of_letters().items()}
    merges = train_merges(chunks(pre), letters, learned, merges)
    tokens = ["<|end|>"] + [letters[b] for b in range(256) if b not in without]
    tokens += [left + right for left, right in merges] + ["<|more|>"]
    return {
        "general.architecture": family, f"{family}.embedding_length": C,
        f"{family}.attention.head_count": H, f"{family}.attention.head_count_kv": G,
        f"{family}.feed_forward_length": WIDE, f"{family}.block_count": LAYERS,
        f"{family}.context_length": 8192, f"{family}.rope.freq_base": 5000.0,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 2) + [4],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges]}


def some_tensors(family, kind, tied, V):
    rng = np.random.default_rng(0)

    def matrix(*shape):
        return (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32), kind

    def vector(n):
        return (1 + 0.3 * rng.standard_normal(n)).astype(np.float32), "F32"

    tensors = {"token_embd.weight": matrix(V, C)}
    for i in range(LAYERS):
        block = {"attn_norm.weight": vector(C), "attn_q.weight": matrix(C, C),
                 "attn_k.weight": matrix(G * c, C), "attn_v.weight": matrix(G * c, C),
                 "attn_output.weight": matrix(C, C), "ffn_norm.weight": vector(C),
                 "ffn_gate.weight": matrix(WIDE, C), "ffn_up.weight": matrix(WIDE, C),
                 "ffn_down.weight": matrix(C, WIDE)}
        if family == "qwen2":
            block |= {"attn_q.bias": vector(C), "attn_k.bias": vector(G * c),
                      "attn_v.bias": vector(G * c)}
        tensors |= {f"blk.{i}.{name}": w for name, w in block.items()}
    tensors["output_norm.weight"] = vector(C)
    if not tied:
        tensors["output.weight"] = matrix(V, C)
    return tensors


def some_file(path, family="llama", kind="Q4_1", tied=True, stretch=None, **changes):
    """Write a tiny LLM; `changes` are made in the metadata. Returns its tensors as stored."""
    metadata = some_metadata(family, changes.pop("pre", "smollm"))
    metadata |= {key.replace("__", "."): v for key, v in changes.items()}
    tensors = some_tensors(family, kind, tied, len(metadata["tokenizer.ggml.tokens"]))
    if stretch is not None:
        tensors["rope_freqs.weight"] = (stretch, "F32")
    return write(path, metadata, tensors)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.gguf"


def some_reader(path):
    """A tiny LLM that has the words of our corpus, and lacks a byte."""
    text = "".join(piece for i in range(60) for piece, _ in document("source", 0, i))
    metadata = some_metadata(without=[4], learned=text.replace(BOS, ""), merges=280)
    V = len(metadata["tokenizer.ggml.tokens"])
    write(path, metadata, some_tensors("llama", "Q8_0", True, V))
    return path


# ---- what it should compute ----------------------------------------------------------------------

def plain_logits(w, ids, family, stretch):
    """A LLaMA in plain numpy, one position and one head at a time."""
    def norm(x, gain):
        return x / np.sqrt((x ** 2).mean() + 1e-5) * gain

    def turned(x, position):  # one head
        y = np.empty_like(x)
        for j in range(c // 2):
            angle = position * 5000.0 ** (-2 * j / c) / stretch[j]
            a, b = (2 * j, 2 * j + 1) if family == "llama" else (j, j + c // 2)
            y[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
            y[b] = x[a] * math.sin(angle) + x[b] * math.cos(angle)
        return y

    x = [w["token_embd.weight"][i].astype(np.float64) for i in ids]
    for block in range(LAYERS):
        p = {name.split(".", 2)[2]: v for name, v in w.items() if name.startswith(f"blk.{block}.")}
        q, k, v = [], [], []
        for t, one in enumerate(x):
            h = norm(one, p["attn_norm.weight"])
            heads = []
            for letter in "qkv":
                y = p[f"attn_{letter}.weight"] @ h + p.get(f"attn_{letter}.bias", 0.0)
                heads.append(y.reshape(-1, c))
            q.append([turned(head, t) for head in heads[0]])
            k.append([turned(head, t) for head in heads[1]])
            v.append(heads[2])
        for t in range(len(x)):
            said = []
            for head in range(H):
                shared = head // (H // G)
                scores = np.array([q[t][head] @ k[s][shared] for s in range(t + 1)]) / math.sqrt(c)
                e = np.exp(scores - scores.max())
                said.append(sum(e[s] * v[s][shared] for s in range(t + 1)) / e.sum())
            x[t] = x[t] + p["attn_output.weight"] @ np.concatenate(said)
            h = norm(x[t], p["ffn_norm.weight"])
            gate = p["ffn_gate.weight"] @ h
            x[t] = x[t] + p["ffn_down.weight"] @ (
                gate / (1 + np.exp(-gate)) * (p["ffn_up.weight"] @ h))
    head = w.get("output.weight", w["token_embd.weight"])
    return np.stack([head @ norm(one, w["output_norm.weight"]) for one in x])


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", TYPES)
def test_logits_are_those_of_plain_arithmetic(path, family, kind):
    tied = kind != "F16"
    stretch = np.linspace(1, 4, c // 2).astype(np.float32) if kind == "Q8_0" else None
    stored = some_file(path, family, kind, tied, stretch)
    llm, _ = load_llm(path)
    ids = random.Random(kind).choices(range(300), k=9)
    with torch.no_grad():
        logits = llm(llm.embed(torch.tensor([ids])))[0].numpy()
    expected = plain_logits(stored, ids, family, np.ones(c) if stretch is None else stretch)
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_cached_generation_is_uncached_generation(path):
    some_file(path)
    llm, _ = load_llm(path)
    x = llm.embed(torch.tensor([[5, 9, 40], [7, 7, 8]]))
    cached, uncached = llm.generate(x, stops=[], max_tokens=10), [[], []]
    for _ in range(10):
        with torch.no_grad():
            ids = llm(x)[:, -1].argmax(-1)  # (2,)
        for answer, id in zip(uncached, ids.tolist()):
            answer.append(id)
        x = torch.cat([x, llm.embed(ids[:, None])], dim=1)
    assert cached == uncached
    assert torch.allclose(llm.hidden(x, last=3), llm.hidden(x)[:, -3:], atol=1e-5)


# ---- its tokens ----------------------------------------------------------------------------------

def plain_encode(s, metadata, cut):
    """BPE as it is defined: of all merges that apply, the earliest in the list goes first."""
    tokens = {token: id for id, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    order = {tuple(m.split(" ")): i for i, m in enumerate(metadata["tokenizer.ggml.merges"])}
    letters = {b: letter for letter, b in bytes_of_letters().items()}
    ids = []
    for chunk in cut(s):
        word = tuple(letters[b] for b in chunk.encode())
        while pairs := [pair for pair in pairwise(word) if pair in order]:
            word = merge_all(word, min(pairs, key=order.get))
        ids += [tokens[letter] for letter in word]
    return ids


@pytest.mark.parametrize("pre", PATTERNS)
def test_ids_are_those_of_the_merges(path, pre):
    some_file(path, pre=pre)
    encoding = read_encoding(GGUF(path))
    rng, cut = random.Random(0), chunks(pre)
    alphabet = TEXT + " \n\t'123абв東"
    strings = STRINGS + ["".join(rng.choices(alphabet, k=30)) for _ in range(300)]
    for s in strings:
        assert encoding.encode(s) == plain_encode(s, some_metadata(pre=pre), cut), repr(s)
        assert encoding.decode(encoding.encode(s)) == s


def test_special_tokens_are_apart_and_end_a_line(path):
    some_file(path)
    encoding = read_encoding(GGUF(path))
    last = len(some_metadata()["tokenizer.ggml.tokens"]) - 1
    assert encoding.special_tokens_set == {"<|end|>", "<|more|>"}
    assert encoding.encode("a<|end|>", disallowed_special=())[1:] != [0]
    assert encoding.encode("<|end|>", allowed_special="all") == [0]
    newline = encoding.encode_single_token(b"\n")
    assert {0, last, newline} <= set(line_ends(encoding))
    assert encoding.encode_single_token(b" red") not in line_ends(encoding)


def test_a_byte_that_is_no_token_is_beyond_the_vocabulary(path):
    metadata = some_metadata(without=[4, 0xf1])
    V = len(metadata["tokenizer.ggml.tokens"])
    write(path, metadata, some_tensors("llama", "F32", True, V))
    llm, encoding = load_llm(path)
    assert llm.config.V == V
    assert encoding.encode("\x04") == [V]


# ---- what is refused -----------------------------------------------------------------------------

@pytest.mark.parametrize("changes, says", [
    ({"general__architecture": "mamba"}, "'mamba'; known are llama and qwen2"),
    ({"tokenizer__ggml__model": "llama"}, "tokenizer is a 'llama'"),
    ({"tokenizer__ggml__pre": "tekken"}, "'tekken'; known are gpt-2, smollm, llama-bpe, qwen2"),
    ({"llama__block_count": 2 ** 31}, "block_count"),
    ({"llama__block_count": 3}, "3 blocks, 20 tensors"),
    ({"llama__block_count": 1}, "blk.1.attn_k.weight' is not known"),
    ({"llama__embedding_length": 2 ** 20}, "do not fit its sizes"),
    ({"llama__embedding_length": "64"}, "not of type int"),
    ({"llama__attention__head_count_kv": 3}, "numbers of heads"),
    ({"llama__rope__scaling__type": "yarn"}, "(yarn): not known"),
    ({"llama__expert_count": 8}, "mixture of experts"),
    ({"tokenizer__ggml__token_type": [1, 1]}, "but 2 types"),
    ({"tokenizer__ggml__merges": ["q q"]}, "the merge 'q q'"),
])
def test_what_is_not_known_is_refused_by_name(path, changes, says):
    some_file(path, **changes)
    with pytest.raises(Refused) as refused:
        load_llm(path)
    assert says in str(refused.value) and str(path) in str(refused.value)


def test_other_ways_to_store_weights_are_refused_by_name(path):
    some_file(path, kind="F32")
    raw, name = path.read_bytes(), b"blk.0.ffn_up.weight"
    at = raw.index(name) + len(name) + 4 + 16  # dimensions, shape
    path.write_bytes(raw[:at] + struct.pack("<I", 12) + raw[at + 4:])
    with pytest.raises(Refused, match="'blk.0.ffn_up.weight' is stored as Q4_K; known are F32"):
        load_llm(path)


def test_a_file_that_is_missing_empty_or_something_else_is_refused(path):
    with pytest.raises(Refused, match="there is no file"):
        load_llm(path)
    for raw in (b"", b"GGUF", b"PK\x03\x04" + bytes(100), b"GGUF\x09" + bytes(100)):
        path.write_bytes(raw)
        with pytest.raises(Refused, match="cannot read"):
            load_llm(path)


def damaged(raw, rng):
    """One of four kinds of damage: cut, bits flipped, a lying size, bytes put in or taken out."""
    kind, at = rng.randrange(4), rng.randrange(len(raw))
    head = rng.randrange(min(len(raw) - 8, 20000))
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw[:head] + bytes([raw[head] ^ 1 << rng.randrange(8)]) + raw[head + 1:]
    if kind == 2:
        lie = rng.choice([0, 1, 2 ** 31, 2 ** 40, 2 ** 63, 2 ** 64 - 1])
        return raw[:head] + struct.pack("<Q", lie) + raw[head + 8:]
    if rng.random() < 0.5:
        return raw[:at] + raw[at + rng.randint(1, 40):]
    return raw[:at] + bytes(rng.randint(1, 40)) + raw[at:]


def test_damaged_files_are_refused_or_whole(path):
    some_file(path, kind="Q8_0")
    raw, rng, accepted = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        path.unlink()  # a new file: the old one may still be mapped
        mutant = damaged(raw, rng)
        path.write_bytes(mutant)
        try:
            load_llm(path)
        except Refused as refused:
            assert "\n" not in str(refused)
            continue
        accepted += 1
        assert len(mutant) == len(raw)
        file = GGUF(path)
        entries = sorted(file.tensors.values(), key=lambda entry: entry.start)
        assert path.stat().st_size - (entries[-1].start + entries[-1].size) in range(32)
        for entry, after in pairwise(entries):
            assert after.start - (entry.start + entry.size) in range(32)
            blocks = math.prod(entry.shape) // entry.storage.weights
            assert blocks * entry.storage.bytes == entry.size
    assert 0 < accepted < 100  # of these, a weight or a letter of a token was changed
