"""Files of real LLMs: tiny ones, written here byte by byte, against PyTorch's functions."""
import random
import re
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import regex
import torch
import torch.nn.functional as F
from conftest import tokenizer

from data.bpe import line_ends, tokens_of
from data.files import Refused
from data.gguf import (GGUF, PATTERNS, SPELLED, SentencePiece, bytes_of_letters, read_encoding,
                       shapes_of)
from results.real import OpenLLM

C, H, G, c, WIDE, WINDOW = 64, 4, 2, 16, 96, 5
LAYERS = {"llama": 2, "qwen2": 2, "gemma3": 7}  # the sixth is Gemma's first global one


# ---- writing a file ------------------------------------------------------------------------------

def text(s):
    return struct.pack("<Q", len(s.encode())) + s.encode()


def value(v):
    if isinstance(v, list):
        kind, one = {str: (8, text), int: (5, struct.Struct("<i").pack),
                     float: (6, struct.Struct("<f").pack)}[type(v[0])]
        return struct.pack("<IIQ", 9, kind, len(v)) + b"".join(map(one, v))
    if isinstance(v, (str, bool)):
        return struct.pack("<I", 8) + text(v) if isinstance(v, str) else struct.pack("<I?", 7, v)
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


def bpe_vocabulary():
    """Of our source LLM, without the byte 4."""
    letters = {b: char for char, b in bytes_of_letters().items()}
    tokens = ["".join(letters[byte] for byte in token) for token in tokens_of(tokenizer("source"))]
    tokens = ["<|end|>", *(t for t in tokens if t != letters[4]), "<|more|>"]
    return {"model": "gpt2", "pre": "smollm", "tokens": tokens,
            "token_type": [3] + [1] * (len(tokens) - 2) + [4],
            "merges": [f"{t[:1]} {t[1:]}" for t in tokens[1:-1] if len(t) > 1]}


def sentencepiece_vocabulary():
    """Of our source LLM: the merges of a BPE, as scores."""
    tokens = [token.decode().replace(" ", "▁") for token in tokens_of(tokenizer("source"))
              if token.isascii() and token != b"\n"]
    kinds = [3, 3, *[6] * 256, 4, *[1] * len(tokens)]
    tokens = ["<eos>", "<bos>", *SPELLED, "\n", *tokens]
    return {"model": "llama", "tokens": tokens, "token_type": kinds, "bos_token_id": 1,
            "scores": [-float(id) for id in range(len(tokens))], "add_space_prefix": False}


def some_file(path, family="llama", lacks="^output.w|rope|bias", seed=0, **changes):
    """Write a tiny LLM: random weights but those that it lacks, and `changes` in the metadata.
    Returns its tensors and its tokens."""
    rng, layers = np.random.default_rng(seed), LAYERS[family]
    sizes = {"embedding_length": C, "attention.head_count": H, "attention.head_count_kv": G,
             "feed_forward_length": WIDE, "block_count": layers, "context_length": 8192,
             "rope.freq_base": 5000.0, "attention.layer_norm_rms_epsilon": 1e-5}
    gemma = family == "gemma3"
    sizes |= {"attention.sliding_window": WINDOW} if gemma else {}
    vocabulary = sentencepiece_vocabulary() if gemma else bpe_vocabulary()
    metadata = {"general.architecture": family, **{f"{family}.{k}": v for k, v in sizes.items()},
                **{f"tokenizer.ggml.{k}": v for k, v in vocabulary.items()},
                **{k.replace("__", "."): v for k, v in changes.items()}}
    shapes = shapes_of(SimpleNamespace(V=len(vocabulary["tokens"]), C=C, H=H, G=G, c=c, F=WIDE,
                                       layers=layers, family=family))
    w = {name: np.float32(rng.standard_normal(shape) / shape[-1] ** 0.5 + 3 * ("rope" in name))
         for name, shape in shapes.items() if not re.search(lacks, name)}
    write(path, metadata, {name: (x.shape, 0, x.tobytes()) for name, x in w.items()})
    return w, vocabulary["tokens"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.gguf"


# ---- its weights ---------------------------------------------------------------------------------

LOW, HIGH, BYTES = [15, 14, 13, 12] * 8, [0, 1, 2, 3] * 8, "0f1e2d3c"  # two numbers in each byte
# d = 1, d' = 1/2, then 8 scales, 1 2 3 4 17 18 19 20, and 8 offsets, 1 2 3 4 37 38 39 40
SCALED = "003c0038" + "41424344" + "81828384" + "51627384"
GROUPS = list(zip([1, 2, 3, 4, 17, 18, 19, 20], [1, 2, 3, 4, 37, 38, 39, 40], [LOW, HIGH] * 4))


@pytest.mark.parametrize("kind, raw, values", [
    (1, "0038" * 16 + "00c2" * 16, [0.5] * 16 + [-3] * 16),  # F16
    (30, "803f" * 16 + "40c0" * 16, [1] * 16 + [-3] * 16),  # BF16
    (8, "0038" + "00017f80" * 8, [0, 0.5, 63.5, -64] * 8),  # Q8_0
    # Q4_0 and Q4_1: the lower halves of the bytes come first
    (2, "0040" + "0f1e2d3c" * 4, [14, 12, 10, 8] * 4 + [-16, -14, -12, -10] * 4),
    (3, "003400bc" + "0f1e2d3c" * 4, [2.75, 2.5, 2.25, 2] * 4 + [-1, -0.75, -0.5, -0.25] * 4),
    # Q5_0: the same with a fifth bit, here of the first 16
    (6, "0040" + "ffff0000" + BYTES * 4, [30, 28, 26, 24] * 4 + [-32, -30, -28, -26] * 4),
    # Q4_K, Q5_K (here every other group has the fifth bit), Q6_K (upper bits 0 1 2 3, scales 2 -2)
    (12, SCALED + BYTES * 32, [s * q - m / 2 for s, m, qs in GROUPS for q in qs]),
    (13, SCALED + "aa" * 32 + BYTES * 32,
     [s * (q + 16 * (qs is HIGH)) - m / 2 for s, m, qs in GROUPS for q in qs]),
    (14, BYTES * 32 + "e4" * 64 + "02" * 8 + "fe" * 8 + "0038",
     [sign * (q + 16 * upper - 32) for sign in (1, -1)
      for upper, qs in enumerate([LOW, LOW, HIGH, HIGH]) for q in qs])])
def test_stored_weights_are_those_worked_out_by_hand(path, kind, raw, values):
    write(path, {}, {"w": ((2, len(values)), kind, bytes.fromhex(raw + raw))})
    assert GGUF(path).read("w").tolist() == [values, values]


def plain_logits(w, ids, family):
    """An LLM as it is written down: numbers of 64 bits, no cache, keys and values repeated."""
    w = {name: torch.from_numpy(its).double() for name, its in w.items()}
    gemma, at = family == "gemma3", torch.arange(len(ids))

    def norm(x, name):
        return F.rms_norm(x, x.shape[-1:], w[f"{name}.weight"], 1e-5)

    def turned(x, base):  # (heads, T, c), in an order of the channels that is the same for q and k
        if family == "llama":  # the two channels of a pair are neighbours
            x = x.unflatten(-1, (-1, 2)).mT.flatten(-2)
        y, z = x.chunk(2, dim=-1)
        frequencies = base ** -(torch.arange(0, c, 2) / c) / w.get("rope_freqs.weight", 1.0)
        angles = torch.outer(at, frequencies)  # (T, c/2)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([y * cos - z * sin, y * sin + z * cos], dim=-1)

    x = w["token_embd.weight"][ids] * (C ** 0.5 if gemma else 1)  # (T, C)
    for i in range(LAYERS[family]):
        b, local = f"blk.{i}.", gemma and i != 5
        base, window = (10000.0, WINDOW) if local else (5000.0, len(ids))
        h = norm(x, f"{b}attn_norm")
        q, k, v = (F.linear(h, w[f"{b}attn_{n}.weight"], w.get(f"{b}attn_{n}.bias"))
                   .unflatten(1, (-1, c)).transpose(0, 1) for n in "qkv")  # (heads, T, c)
        if gemma:
            q, k = norm(q, f"{b}attn_q_norm"), norm(k, f"{b}attn_k_norm")
        k, v = (heads.repeat_interleave(H // G, dim=0) for heads in (turned(k, base), v))
        back = at[:, None] - at
        y = F.scaled_dot_product_attention(turned(q, base), k, v, (back >= 0) & (back < window))
        y = y.transpose(0, 1).flatten(1) @ w[f"{b}attn_output.weight"].T
        x = x + (norm(y, f"{b}post_attention_norm") if gemma else y)
        h = norm(x, f"{b}ffn_norm")
        gate, up = h @ w[f"{b}ffn_gate.weight"].T, h @ w[f"{b}ffn_up.weight"].T
        gate = F.gelu(gate, approximate="tanh") if gemma else F.silu(gate)
        y = (gate * up) @ w[f"{b}ffn_down.weight"].T
        x = x + (norm(y, f"{b}post_ffw_norm") if gemma else y)
    return norm(x, "output_norm") @ w.get("output.weight", w["token_embd.weight"]).T  # (T, V)


@pytest.mark.parametrize("family, lacks", [
    ("llama", "bias"), ("qwen2", "^output.w|rope"), ("gemma3", "^output.w|rope|bias")])
def test_logits_and_answers_from_a_cache_are_those_of_plain_arithmetic(path, family, lacks):
    (w, _), rng, first = some_file(path, family, lacks), random.Random(0), [3, 1, 4]
    rows, llm = [[*first, *rng.choices(range(300), k=6)] for _ in range(2)], OpenLLM(GGUF(path))
    x = llm.embed(torch.tensor(rows))  # (2, T, C)
    logits = llm.forward(x)
    llm.begin(first)  # from now on a text is what comes after these
    answers = llm.generate(x[:, 3:], stops=[], max_tokens=10)
    for ids, its_logits, answer in zip(rows, logits, answers):
        expected = plain_logits(w, ids + answer, family)  # (T + 10, V)
        assert (its_logits - expected[:9]).abs().max() < 1e-4 * expected.abs().max()
        assert expected[8:-1].argmax(-1).tolist() == answer


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


def test_a_text_in_sentencepiece_has_the_ids_that_its_makers_give_it():
    """Expected: the ids of their library, version 0.2, for the same vocabulary."""
    rest = ["\n", "\n\n", "<b>", "▁▁", *"▁redx", "re", "ed", "▁re", "▁red", "x▁", "d▁▁"]
    kinds = [3, 3, *[6] * 256, 4, 4, 4, 4, *[1] * 11]
    scores = [0.0] * 262 + [-9.0, -9, -9, -9, -9, -2, -1, -4, -3, -5, -0.5]
    encoding = SentencePiece("", ["<unk>", "<s>", *SPELLED, *rest], kinds, scores)
    for s, ids in {" red red": [262, 263, 268, 262, 263, 268], "x red": [271, 263, 268],
                   "d  red\n\n\nx<b>é": [265, 261, 263, 268, 259, 258, 266, 260, 197, 171],
                   "redd   xred": [263, 268, 265, 261, 262, 266, 263, 268],
                   "🙂 <s>\0": [242, 161, 155, 132, 262, 62, 117, 64, 2]}.items():
        assert encoding.encode(s) == ids and encoding.decode(ids) == s
    assert encoding.encode_single_token(b" red") == 270


# ---- what is refused -----------------------------------------------------------------------------

@pytest.mark.parametrize("changes, says", [
    ({"general__architecture": "mamba"}, "'mamba'; known are llama, qwen2, gemma3"),
    ({"tokenizer__ggml__model": "bert"}, "tokenizer is 'bert'"),
    ({"tokenizer__ggml__model": "llama"}, "does not say 'tokenizer.ggml.bos_token_id'"),
    ({"tokenizer__ggml__pre": "tekken"}, "'tekken'; known are gpt-2, smollm, llama-bpe, qwen2"),
    ({"llama__block_count": 2 ** 31}, "block_count"),
    ({"llama__block_count": 3}, "no 3 blocks"),
    ({"llama__block_count": 1}, "blk.1.attn_k.weight' is not known"),
    ({"llama__embedding_length": 2 ** 20}, "is not (512, 1048576)"),
    ({"llama__embedding_length": "64"}, "not of type int"),
    ({"llama__attention__head_count_kv": 3}, "numbers of heads"),
    ({"llama__rope__scaling__type": "yarn"}, "('yarn'): not known"),
    ({"llama__expert_count": 8}, "has experts"),
    ({"tokenizer__ggml__token_type": [1, 1]}, "not each of its tokens"),
    ({"tokenizer__ggml__merges": ["q q"]}, "the merge 'q q'")])
def test_what_is_not_known_is_refused_by_name(path, changes, says):
    some_file(path, **changes)
    with pytest.raises(Refused, match=re.escape(says)):
        OpenLLM(GGUF(path))
        read_encoding(GGUF(path))


@pytest.mark.parametrize("raw, says", [
    (b"GGUF", "too small"), (b"PK" + bytes(99), "no GGUF"), (b"GGUF\x09" + bytes(99), "is 9;")])
def test_a_file_of_something_else_is_refused(path, raw, says):
    path.write_bytes(raw)
    with pytest.raises(Refused, match=f"cannot read '{path}'.*{says}"):
        GGUF(path)


def test_other_ways_to_store_weights_are_refused_by_name(path):
    write(path, {}, {"w": ((2, 32), 16, bytes(64))})
    with pytest.raises(Refused, match="'w' holds IQ2_XXS; known are F32"):
        GGUF(path)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_damaged_files_are_refused_in_one_line_or_whole(path, family):
    some_file(path, family)
    raw, rng, accepted = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        at, head = rng.randrange(len(raw)), rng.randrange(20000)
        lie = struct.pack("<Q", rng.choice([0, 1, 2 ** 31, 2 ** 40, 2 ** 63, 2 ** 64 - 1]))
        flipped = bytes([raw[head] ^ 1 << rng.randrange(8)])
        at, new, gone = rng.choice([(at, b"", len(raw)), (at, b"", rng.randint(1, 40)),
                                    (at, bytes(9), 0), (head, lie, 8), (head, flipped, 1)])
        path.unlink()  # a new file: the old one may still be mapped
        path.write_bytes(raw[:at] + new + raw[at + gone:])
        try:
            read_encoding(GGUF(path))
            OpenLLM(GGUF(path))
            accepted += 1
            assert path.stat().st_size == len(raw)
        except Refused as refused:
            assert "\n" not in str(refused)
    assert 0 < accepted < 100  # of these, a letter of a token was changed
