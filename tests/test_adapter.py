"""The claim of the method, on tiny models: the adapter knows words, and only its basis knows the LLM."""
import pytest
import torch

from adapter import COEFFICIENTS, NOTHING, LangBridge, MLPAdapter, load_adapter, save_adapter
from data.bpe import PATTERNS, make_encoding
from data.corpus import train_tokenizer
from model import GPT, GPTConfig

WORDS = [b" .", b" red", b" blue", b" circle", b" square", b" top"]


def make_llm(dialect, C, seed):
    torch.manual_seed(seed)
    encoding = train_tokenizer(dialect, 512, 0, documents=400)
    return GPT(GPTConfig(encoding.n_vocab, C, 4, 1)), encoding


@pytest.fixture(scope="module")
def source():
    return make_llm("source", 32, 0)


@pytest.fixture(scope="module")
def target():
    return make_llm("target", 48, 1)


def bridge(coefficients="softplus"):
    torch.manual_seed(2)
    adapter = LangBridge(16, WORDS, 24, coefficients)
    torch.nn.init.normal_(adapter.W[-1].weight)  # as if trained
    return adapter


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_every_visual_token_lies_in_the_span_of_the_basis(source, coefficients):
    v = bridge(coefficients).set_basis(*source)(torch.randn(2, 36, 16)).reshape(-1, 32)
    E = source[0].embed(torch.tensor([source[1].encode_single_token(t) for t in WORDS]))
    residual = v.T - E.T @ torch.linalg.lstsq(E.T, v.T).solution
    assert residual.norm() < 1e-4 * v.norm()


def test_a_centered_basis_is_words_without_their_mean(source, target):
    adapter = LangBridge(16, WORDS + [b" xyzzy"], 24, basis="centered").set_basis(*source)
    E = source[0].embed(torch.tensor([source[1].encode_single_token(t) for t in WORDS])).detach()
    assert adapter.missing == [b" xyzzy"] and torch.allclose(adapter.E[:-1], E - E.mean(0)) and not adapter.E[-1].any()
    with pytest.raises(ValueError, match="words, centered"):
        LangBridge(16, WORDS, 24, basis="whitened")


def test_softplus_and_softmax_weights_sum_to_one_and_relu_weights_are_not_negative(source):
    x = torch.randn(2, 36, 16)
    for kind in ("softplus", "softmax"):
        weights = bridge(kind).set_basis(*source).weights(x)
        assert torch.allclose(weights.sum(-1), torch.ones(2, 36)) and (weights >= 0).all()
    assert (bridge("relu").set_basis(*source).weights(x) >= 0).all() and (bridge("linear").set_basis(*source).weights(x) < 0).any()


def test_an_untrained_bridge_says_nothing_here(source):
    for coefficients in COEFFICIENTS:
        weights = LangBridge(16, WORDS, 24, coefficients).set_basis(*source).weights(torch.randn(1, 36, 16))
        assert (weights.argmax(-1) == WORDS.index(NOTHING)).all()


def test_a_swap_changes_the_basis_and_nothing_else(source, target):
    adapter, x = bridge().set_basis(*source), torch.randn(1, 36, 16)
    state, weights = {k: v.clone() for k, v in adapter.state_dict().items()}, adapter.weights(x)
    adapter.set_basis(*target)
    assert adapter(x).shape == (1, 36, 48) and torch.equal(adapter.weights(x), weights)
    assert all(torch.equal(v, state[k]) for k, v in adapter.state_dict().items())


def test_there_and_back_again_is_bit_equal(source, target):
    adapter, x = bridge().set_basis(*source), torch.randn(1, 36, 16)
    before = adapter(x)
    adapter.set_basis(*target)
    assert torch.equal(adapter.set_basis(*source)(x), before)


def test_two_adapters_on_two_llms_do_not_touch_each_other(source, target):
    a, x = bridge().set_basis(*source), torch.randn(1, 36, 16)
    before = a(x)
    bridge().set_basis(*target)
    assert torch.equal(a(x), before)


def test_the_basis_stays_fixed_while_the_llm_is_tuned(source):
    llm, encoding = make_llm("source", 32, 5)
    adapter, x = bridge().set_basis(llm, encoding), torch.randn(1, 36, 16)
    before = adapter(x)
    with torch.no_grad():
        llm.embedding.weight.mul_(-1)
    assert torch.equal(adapter(x), before)


def test_other_ids_give_the_same_words(source):
    """The same LLM with its vocabulary renumbered: another id for each token, the same visual tokens."""
    llm, encoding = source
    n = encoding.n_vocab - 1
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
    renumbered = make_encoding("renumbered", PATTERNS["source"], [encoding.decode_single_token_bytes(i) for i in order])
    other = GPT(llm.config)
    with torch.no_grad():
        other.embedding.weight.copy_(llm.embedding.weight[order + [n]])
    x, adapter = torch.randn(1, 36, 16), bridge().set_basis(llm, encoding)
    before = adapter(x)
    assert torch.equal(adapter.set_basis(other, renumbered)(x), before)


def test_missing_tokens_are_listed_and_get_no_weight(source):
    adapter = LangBridge(16, WORDS + [b" zeppelin"], 24).set_basis(*source)
    assert adapter.missing == [b" zeppelin"]
    assert (adapter.weights(torch.randn(1, 36, 16))[..., -1] == 0).all()


def test_too_few_shared_tokens_are_refused(source):
    with pytest.raises(ValueError, match="only 1 of this adapter's 3 tokens"):
        LangBridge(16, [b" .", b" zeppelin", b" quark"], 24).set_basis(*source)


def test_an_mlp_refuses_an_llm_of_another_width(source, target):
    adapter = MLPAdapter(16, 32).set_basis(*source)
    with pytest.raises(ValueError, match="width 32"):
        adapter.set_basis(*target)


def test_an_unknown_normalisation_names_the_known_ones():
    with pytest.raises(ValueError, match="softmax, relu, linear"):
        LangBridge(16, WORDS, 24, "sigmoid")


def test_a_saved_adapter_is_the_same_adapter(source, tmp_path):
    x = torch.randn(1, 36, 16)
    for adapter in (bridge("relu"), MLPAdapter(16, 32)):
        save_adapter(adapter, tmp_path)
        assert torch.equal(load_adapter(tmp_path).set_basis(*source)(x), adapter.set_basis(*source)(x))


def test_words_are_drawn_by_their_weights_in_training_and_never_afterwards(source):
    adapter, x = bridge().set_basis(*source), torch.randn(1, 36, 16)
    adapter.drawn = 1.0
    expected = adapter.eval()(x)
    assert torch.equal(adapter(x), expected)  # nothing is drawn in evaluation
    adapter.train()
    v = adapter(x)
    distance = torch.cdist(v[0], adapter.E)  # (36, K): each patch is exactly one word
    assert (distance.min(-1).values < 1e-2).all() and not torch.allclose(v, expected)
    mean = torch.stack([adapter(x) for _ in range(2000)]).mean(0)
    assert (mean - expected).abs().mean() < 0.05 * expected.abs().mean() + 0.02
    v.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters())
