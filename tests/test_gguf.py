"""Files of real LLMs: tiny ones, written here byte by byte, against plain arithmetic."""
import math
import random
import re
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import regex
import torch
from conftest import tokenizer

from data.bpe import line_ends, tokens_of
from data.files import Refused
from data.gguf import GGUF, PATTERNS, bytes_of_letters, read_encoding, shapes_of
from results.real import Llama

C, H, G, c, WIDE, LAYERS = 64, 4, 2, 16, 96, 2


# ---- writing a file ------------------------------------------------------------------------------

def text(s):
    return struct.pack("<Q", len(s.encode())) + s.encode()


def value(v):
    if isinstance(v, list):
        kind, one = (8, text) if isinstance(v[0], str) else (5, struct.Struct("<i").pack)
        return struct.pack("<IIQ", 9, kind, len(v)) + b"".join(map(one, v))
    if isinstance(v, str):
        return struct.pack("<I", 8) + text(v)
    return struct.pack("<If", 6, v) if isinstance(v, float) else struct.pack("<II", 4, v)


def write(path, metadata, tensors):
    """tensors: {name: (shape, type, bytes)}"""
    head, body = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)), b""
    for key, v in metadata.items():
        head += text(key) + value(v)
    for name, (shape, kind, raw) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", kind, len(body))
        body += raw + bytes(-len(raw) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + body)


def some_file(path, family="llama", lacks="^output.w|rope|bias", seed=0, **changes):
    """Write a tiny LLM: the vocabulary of our source LLM without the byte 4, random weights but
    those that it lacks, and `changes` in the metadata. Returns its tensors and its tokens."""
    rng, letters = np.random.default_rng(seed), {b: char for char, b in bytes_of_letters().items()}
    tokens = ["".join(letters[byte] for byte in token) for token in tokens_of(tokenizer("source"))]
    tokens = ["<|end|>", *(t for t in tokens if t != letters[4]), "<|more|>"]
    sizes = {"embedding_length": C, "attention.head_count": H, "attention.head_count_kv": G,
             "feed_forward_length": WIDE, "block_count": LAYERS, "context_length": 8192,
             "rope.freq_base": 5000.0, "attention.layer_norm_rms_epsilon": 1e-5}
    vocabulary = {"model": "gpt2", "pre": "smollm", "tokens": tokens,
                  "token_type": [3] + [1] * (len(tokens) - 2) + [4],
                  "merges": [f"{t[:1]} {t[1:]}" for t in tokens[1:-1] if len(t) > 1]}
    metadata = {"general.architecture": family, **{f"{family}.{k}": v for k, v in sizes.items()},
                **{f"tokenizer.ggml.{k}": v for k, v in vocabulary.items()},
                **{k.replace("__", "."): v for k, v in changes.items()}}
    shapes = shapes_of(SimpleNamespace(V=len(tokens), C=C, H=H, G=G, c=c, F=WIDE, layers=LAYERS))
    w = {name: np.float32(rng.standard_normal(shape) / shape[-1] ** 0.5 + 3 * ("rope" in name))
         for name, shape in shapes.items() if not re.search(lacks, name)}
    write(path, metadata, {name: (x.shape, 0, x.tobytes()) for name, x in w.items()})
    return w, tokens


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.gguf"


# ---- its weights ---------------------------------------------------------------------------------

@pytest.mark.parametrize("kind, raw, values", [
    (1, "0038" * 16 + "00c2" * 16, [0.5] * 16 + [-3] * 16),  # F16
    (30, "803f" * 16 + "40c0" * 16, [1] * 16 + [-3] * 16),  # BF16
    (8, "0038" + "00017f80" * 8, [0, 0.5, 63.5, -64] * 8),  # Q8_0
    # Q4_0 and Q4_1: the lower halves of the bytes come first
    (2, "0040" + "0f1e2d3c" * 4, [14, 12, 10, 8] * 4 + [-16, -14, -12, -10] * 4),
    (3, "003400bc" + "0f1e2d3c" * 4, [2.75, 2.5, 2.25, 2] * 4 + [-1, -0.75, -0.5, -0.25] * 4)])
def test_stored_weights_are_those_worked_out_by_hand(path, kind, raw, values):
    write(path, {}, {"w": ((2, 32), kind, bytes.fromhex(raw + raw))})
    assert GGUF(path).read("w").tolist() == [values, values]


def plain_logits(w, ids, family):
    """A LLaMA in plain numpy."""
    T, stretch = len(ids), w.get("rope_freqs.weight", 1.0)
    turns = np.exp(1j * np.outer(range(T), 5000.0 ** (-np.arange(0, c, 2) / c) / stretch))[:, None]
    first = np.arange(c // 2) * (2 if family == "llama" else 1)  # of each rotary pair
    second = first + (1 if family == "llama" else c // 2)

    def norm(x, gain):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain

    def turned(x):  # (T, heads, c)
        y, z = np.empty_like(x), (x[..., first] + 1j * x[..., second]) * turns
        y[..., first], y[..., second] = z.real, z.imag
        return y

    x = w["token_embd.weight"][ids].astype(np.float64)  # (T, C)
    for i in range(LAYERS):
        p = {name.removeprefix(f"blk.{i}."): its for name, its in w.items()}
        h = norm(x, p["attn_norm.weight"])
        q, k, v = ((h @ p[f"attn_{n}.weight"].T + p.get(f"attn_{n}.bias", 0)).reshape(T, -1, c)
                   for n in "qkv")
        k, v = turned(k).repeat(H // G, axis=1), v.repeat(H // G, axis=1)  # two heads share them
        scores = np.einsum("thc,shc->hts", turned(q), k) / math.sqrt(c)
        e = np.exp(scores + np.triu(np.full((T, T), -np.inf), 1))  # no later position is seen
        y = np.einsum("hts,shc->thc", e / e.sum(-1, keepdims=True), v)
        x = x + y.reshape(T, -1) @ p["attn_output.weight"].T
        h = norm(x, p["ffn_norm.weight"])
        gate, up = h @ p["ffn_gate.weight"].T, h @ p["ffn_up.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ p["ffn_down.weight"].T
    return norm(x, w["output_norm.weight"]) @ w.get("output.weight", w["token_embd.weight"]).T


@pytest.mark.parametrize("family, lacks", [("llama", "bias"), ("qwen2", "^output.w|rope")])
def test_logits_are_those_of_plain_arithmetic(path, family, lacks):
    (w, _), ids = some_file(path, family, lacks), random.Random(0).choices(range(300), k=9)
    llm = Llama(GGUF(path))
    logits, expected = llm.forward(llm.embed(torch.tensor([ids])))[0], plain_logits(w, ids, family)
    assert np.abs(logits.numpy() - expected).max() < 1e-4 * np.abs(expected).max()


def test_cached_generation_is_uncached_generation_also_after_a_common_beginning(path):
    some_file(path, "qwen2")
    llm, first = Llama(GGUF(path)), [3, 1, 4]
    x = longer = llm.embed(torch.tensor([[*first, 5, 9, 40], [*first, 7, 7, 8]]))
    uncached = []
    for _ in range(10):
        uncached.append(llm.forward(longer)[:, -1].argmax(-1))  # (2,)
        longer = torch.cat([longer, llm.embed(uncached[-1][:, None])], dim=1)
    llm.begin(first)
    assert llm.generate(x[:, 3:], stops=[], max_tokens=10) == torch.stack(uncached, 1).tolist()


# ---- its tokens ----------------------------------------------------------------------------------

def test_texts_are_cut_as_others_cut_them():
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    rng = random.Random(0)
    for _ in range(300):
        s = "".join(rng.choices("the don't it's we'll  \n\t'123абв東🙂;", k=30))
        assert regex.findall(PATTERNS["gpt-2"], s) == regex.findall(gpt2, s)
        assert regex.findall(PATTERNS["smollm"], s) == [  # first each digit alone
            chunk for part in regex.split(r"(\p{N})", s) for chunk in regex.findall(gpt2, part)]
    for name, digits in (("llama-bpe", ["123", "45"]), ("qwen2", [*"12345"])):
        assert regex.findall(PATTERNS[name], "DON'T  say 12345!\n\n\tx") == [
            "DON", "'T", " ", " say", " ", *digits, "!\n\n", "\tx"]


def test_texts_have_the_tokens_of_the_file_and_special_ones_end_a_line(path):
    (_, tokens), rng, ours = some_file(path), random.Random(0), tokenizer("source")
    encoding = read_encoding(GGUF(path))
    for _ in range(200):
        s = "".join(rng.choices([" the", "re", " circle", "d", " .", "\n", " top"], k=8))
        assert "|".join(tokens[i] for i in encoding.encode(s)) == "|".join(
            ours.decode([i]) for i in ours.encode(s)).replace(" ", "Ġ").replace("\n", "Ċ")
    assert encoding.decode(encoding.encode("naïve 東京 🙂 12")) == "naïve 東京 🙂 12"
    assert encoding.encode("<|end|>", allowed_special="all") == [0]
    assert encoding.encode("\x04") == [len(tokens)]  # a missing byte is beyond the vocabulary
    assert {0, len(tokens) - 1, tokens.index("Ċ")} <= {*line_ends(encoding)}


# ---- what is refused -----------------------------------------------------------------------------

@pytest.mark.parametrize("changes, says", [
    ({"general__architecture": "mamba"}, "'mamba'; known are llama and qwen2"),
    ({"tokenizer__ggml__model": "llama"}, "tokenizer is a 'llama'"),
    ({"tokenizer__ggml__pre": "tekken"}, "'tekken'; known are gpt-2, smollm, llama-bpe, qwen2"),
    ({"llama__block_count": 2 ** 31}, "block_count"),
    ({"llama__block_count": 3}, "3 blocks, 20 tensors"),
    ({"llama__block_count": 1}, "blk.1.attn_k.weight' is not known"),
    ({"llama__embedding_length": 2 ** 20}, "by its sizes"),
    ({"llama__embedding_length": "64"}, "not of type int"),
    ({"llama__attention__head_count_kv": 3}, "numbers of heads"),
    ({"llama__rope__scaling__type": "yarn"}, "('yarn'): not known"),
    ({"llama__expert_count": 8}, "mixture of experts"),
    ({"tokenizer__ggml__token_type": [1, 1]}, "but 2 types"),
    ({"tokenizer__ggml__merges": ["q q"]}, "the merge 'q q'")])
def test_what_is_not_known_is_refused_by_name(path, changes, says):
    some_file(path, **changes)
    with pytest.raises(Refused, match=re.escape(says)):
        Llama(GGUF(path))
        read_encoding(GGUF(path))


@pytest.mark.parametrize("raw", [b"", b"GGUF", b"PK" + bytes(99), b"GGUF\x09" + bytes(99)])
def test_a_file_that_is_missing_empty_or_something_else_is_refused(path, raw):
    with pytest.raises(Refused, match="there is no file"):
        GGUF(path)
    path.write_bytes(raw)
    with pytest.raises(Refused, match=f"cannot read '{path}'"):
        GGUF(path)


def test_other_ways_to_store_weights_are_refused_by_name(path):
    write(path, {}, {"w": ((2, 32), 12, bytes(64))})
    with pytest.raises(Refused, match="'w' is stored as Q4_K; known are F32"):
        GGUF(path)


def test_damaged_files_are_refused_in_one_line_or_whole(path):
    some_file(path)
    raw, rng, accepted = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        at, head = rng.randrange(len(raw)), rng.randrange(20000)
        lie = struct.pack("<Q", rng.choice([0, 1, 2 ** 31, 2 ** 40, 2 ** 63, 2 ** 64 - 1]))
        flipped = bytes([raw[head] ^ 1 << rng.randrange(8)])
        path.unlink()  # a new file: the old one may still be mapped
        path.write_bytes(rng.choice([
            raw[:at], raw[:at] + raw[at + rng.randint(1, 40):], raw[:at] + bytes(9) + raw[at:],
            raw[:head] + lie + raw[head + 8:], raw[:head] + flipped + raw[head + 1:]]))
        try:
            read_encoding(GGUF(path))
            Llama(GGUF(path))
            accepted += 1
            assert path.stat().st_size == len(raw)
        except Refused as refused:
            assert "\n" not in str(refused)
    assert 0 < accepted < 100  # of these, a letter of a token was changed
