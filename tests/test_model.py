"""The GPT and the VLM: causal, cached, and supervised where they should be."""
import pytest
import torch
import torch.nn.functional as F

from adapter import LangBridge, MLPAdapter
from data.corpus import train_tokenizer
from model import GPT, VLM, GPTConfig, Taps, attention, load_llm, same_length, save_llm
from vision import CLIP, ViT, ViTConfig, load_vit, save_vit


@pytest.fixture(scope="module")
def encoding():
    return train_tokenizer("source", 400, 0, documents=300)


@pytest.fixture
def llm(encoding):
    torch.manual_seed(0)
    llm = GPT(GPTConfig(V=encoding.n_vocab, C=32, H=4, layers=2)).eval()
    for p in llm.parameters():  # as if trained: no zeros left that would hide a mistake
        torch.nn.init.normal_(p, std=0.3)
    return llm


def test_a_future_token_cannot_change_past_logits(llm):
    a = torch.randint(0, 300, (2, 20))
    b = a.clone()
    b[:, 12:] = torch.randint(0, 300, (2, 8))
    assert torch.equal(llm(llm.embed(a))[:, :12], llm(llm.embed(b))[:, :12])
    assert not torch.allclose(llm(llm.embed(a))[:, 12:], llm(llm.embed(b))[:, 12:])


def test_attention_written_out_is_the_fused_kernel():
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind(0)
    assert torch.allclose(attention(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True), atol=1e-5)


def test_cached_and_uncached_generation_agree(llm):
    x = llm.embed(torch.randint(0, 300, (3, 7)))
    cached, long = llm.generate(x, stop=-1, max_tokens=10), x
    for _ in range(10):
        long = torch.cat([long, llm.embed(llm(long)[:, -1:].argmax(-1))], dim=1)
    ids = [[int(i) for i in llm(long)[b, 6:16].argmax(-1)] for b in range(3)]
    assert cached == ids


def test_a_text_longer_than_the_context_is_refused(llm):
    with pytest.raises(ValueError, match="513 tokens do not fit"):
        llm(torch.zeros(1, 513, 32))
    assert len(llm.generate(torch.zeros(1, 505, 32), stop=-1)[0]) == 7


def test_generation_stops_at_the_stop_token_of_each_row(llm):
    x = llm.embed(torch.randint(0, 300, (4, 7)))
    free = llm.generate(x, stop=-1, max_tokens=12)
    stop = free[0][5]
    for row, ended in zip(free, llm.generate(x, stop=stop, max_tokens=12)):
        assert ended == (row[:row.index(stop)] if stop in row else row)


def test_a_fresh_llm_knows_nothing(encoding):
    llm = GPT(GPTConfig(V=encoding.n_vocab, C=32, H=4, layers=2))
    ids = torch.randint(0, encoding.n_vocab, (2, 10))
    loss = F.cross_entropy(llm(llm.embed(ids)).flatten(0, 1), ids.flatten())
    assert abs(loss.item() - torch.tensor(float(encoding.n_vocab)).log().item()) < 1e-4


def test_a_saved_llm_is_the_same_llm(llm, encoding, tmp_path):
    save_llm(llm, encoding, tmp_path)
    again, _ = load_llm(tmp_path)
    ids = torch.randint(0, 300, (1, 10))
    assert torch.equal(llm(llm.embed(ids)), again(again.embed(ids)))


def test_batches_of_one_length_hold_every_prompt_once():
    ids = [[1] * n for n in (3, 5, 3, 3, 5)]
    batches = list(same_length(ids, batch=2))
    assert sorted(i for rows, _ in batches for i in rows) == [0, 1, 2, 3, 4]
    assert all(text.shape == (len(rows), len(ids[rows[0]])) for rows, text in batches)


def test_the_last_positions_alone_are_what_they_are_among_all(llm):
    x = torch.randn(2, 40, 32)
    assert torch.allclose(llm.hidden(x, last=7), llm.hidden(x)[:, -7:], atol=1e-5)
    cache, whole = {}, {}  # and what is kept for the tokens that follow is the same
    llm.hidden(x[:, :30], cache, last=1)
    llm.hidden(x[:, :30], whole)
    assert torch.allclose(llm.hidden(x[:, 30:], cache), llm.hidden(x[:, 30:], whole), atol=1e-5)


def test_the_picture_lies_between_prefix_and_text_with_a_newline_after_each_row(llm, encoding):
    vlm = VLM(MLPAdapter(16, 32), llm, encoding)
    features, ids = torch.randn(2, 36, 16), torch.randint(0, 300, (2, 5))
    x = vlm.picture(features)  # (2, prefix + 42, 32)
    start = len(vlm.prefix)
    assert x.shape == (2, start + 42, 32) and torch.equal(x[:, :start], llm.embed(torch.tensor([vlm.prefix] * 2)))
    rows = x[:, start:].view(2, 6, 7, 32)
    assert torch.equal(rows[:, :, 6], llm.embed(torch.tensor([encoding.encode_single_token(b"\n")])).expand(2, 6, 32))
    assert torch.equal(rows[:, :, :6].flatten(1, 2), vlm.adapter(features))
    whole = llm(torch.cat([x, llm.embed(ids)], dim=1))
    wanted = torch.rand(2, 5) < 0.5
    assert torch.allclose(vlm(features, ids, wanted), whole[:, -6:-1][wanted], atol=1e-6)  # each token from all that comes before it


def test_the_picture_matters_and_a_blind_model_has_none(llm, encoding):
    a, b, ids = torch.randn(1, 36, 16), torch.randn(1, 36, 16), torch.randint(0, 300, (1, 5))
    logits = lambda adapter, features: VLM(adapter, llm, encoding)(features, ids, torch.ones_like(ids, dtype=torch.bool))  # (5, V)
    adapter = MLPAdapter(16, 32)
    assert not torch.allclose(logits(adapter, a), logits(adapter, b)) and torch.equal(logits(None, a), logits(None, b))


def test_answers_do_not_depend_on_what_else_is_asked(llm, encoding):
    vlm = VLM(MLPAdapter(16, 32), llm, encoding).eval()
    features = torch.randn(4, 36, 16)
    asked = [(3, "what color is the circle?"), (0, "is there a red star?"), (0, "how many objects are there?"), (1, "is there a red star?")]
    together = vlm.answer(features, asked, batch=2)
    assert together == [vlm.answer(features[i:i + 1], [(0, question)])[0] for i, question in asked]
    for (i, question), answer in zip(asked, together):  # and the shared cache changes nothing
        text = llm.embed(torch.tensor([encoding.encode(f"question: {question}")]))
        tokens = llm.generate(torch.cat([vlm.picture(features[i:i + 1]), text], dim=1), vlm.newline)[0]
        assert encoding.decode(tokens).strip() == answer


@pytest.mark.parametrize("kind", ["mlp", "langbridge"])
def test_frozen_parts_get_no_gradient_and_one_batch_can_be_learned(llm, encoding, kind):
    llm.requires_grad_(False)
    adapter = MLPAdapter(16, 32) if kind == "mlp" else LangBridge(16, [b" .", b" red", b" circle", b" top"], 32, "linear")
    vlm = VLM(adapter.set_basis(llm, encoding), llm, encoding)
    torch.manual_seed(0)
    features, ids, before = torch.randn(2, 36, 16), torch.randint(0, 300, (2, 2)), llm.head.weight.clone()
    wanted = torch.ones_like(ids, dtype=torch.bool)
    optimizer, losses = torch.optim.AdamW(adapter.parameters(), 0.02), []
    for _ in range(60):
        loss = F.cross_entropy(vlm(features, ids, wanted), ids[wanted])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is None for p in llm.parameters()) and torch.equal(before, llm.head.weight)
    assert losses[-1] < 0.5 * losses[0]


def test_the_patches_of_a_vit_are_in_raster_order():
    torch.manual_seed(0)
    vit = ViT(ViTConfig(size=48, patch=8, D=16, H=2, layers=0))  # without blocks, a feature depends on its own patch alone
    a = torch.zeros(1, 48, 48, 3, dtype=torch.uint8)
    b = a.clone()
    b[:, 8:16, 16:24] = 255  # second row of patches, third column
    changed = (vit(a) != vit(b)).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [1 * 6 + 2]


def test_a_saved_vit_is_the_same_vit(tmp_path):
    vit = ViT(ViTConfig(D=16, H=2, layers=1))
    save_vit(vit, tmp_path)
    picture = torch.randint(0, 255, (1, 48, 48, 3), dtype=torch.uint8)
    assert torch.equal(vit(picture), load_vit(tmp_path)(picture))


def test_padding_does_not_change_a_caption():
    clip = CLIP(ViTConfig(D=16, H=2, layers=1), 300)
    picture, ids = torch.randint(0, 255, (1, 48, 48, 3), dtype=torch.uint8), torch.randint(0, 300, (1, 6))
    short = clip(picture, ids, torch.ones(1, 6, dtype=torch.bool))
    padded = clip(picture, F.pad(ids, (0, 4)), F.pad(torch.ones(1, 6, dtype=torch.bool), (0, 4)))
    assert torch.allclose(short, padded, atol=1e-5)


def test_the_taps_of_a_convolution_have_the_right_gradients():
    u, w = torch.randn(2, 9, 3, dtype=torch.double, requires_grad=True), torch.randn(6, 3, dtype=torch.double, requires_grad=True)
    y = sum(w[i] * u[:, 5 - i:9 - i] for i in range(6))  # (2, 4, 3)
    assert torch.allclose(Taps.apply(u, w), y) and torch.autograd.gradcheck(Taps.apply, (u, w))
