"""Log-likelihoods against one pair at a time, and how pairs become tokens."""

import pytest
import torch
from tiny_models import tiny_language, tiny_tokenizer, wake_lora
from tokenizers import Tokenizer, processors
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from vlmsel.evaluation.engines.likelihood import encode_pairs, joint_ids, loglikelihoods, windows
from vlmsel.models.config import LoraSpec
from vlmsel.models.language import decoder_and_head, load_tokenizer, max_positions
from vlmsel.models.logits import changes_logits
from vlmsel.models.lora import attach_lora, merge_lora

PAIRS = [
    ("In: What color is the circle?\nOut:", " red"),
    ("In: What color is the circle?\nOut:", " yellow and blue"),
    ("In:", " a large green triangle is to the left of a small red square"),
    ("", " yes"),
    ("Is there a circle ", "no"),
    ("the squ", "are or the circle"),  # " squ" is a token of the context, " square" of the whole
    ("A much longer context. " * 4, " It ends."),
]


def shipped():
    return load_tokenizer("assets:llama")


def llama(**changes):
    return tiny_language(vocab_size=643, bos_token_id=640, eos_token_id=642, pad_token_id=641, **changes).double()


def templated(single, **special):
    """The byte-level tokenizer with special tokens around a text: ids are bytes, <s> is 256 and </s> 257."""
    core = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 256), ("</s>", 257)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", **special)


def plain_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_pair(tokenizer, context, continuation, max_length):
    """The ids and the number of continuation tokens of a pair that is one row."""
    ((row,),) = encode_pairs(tokenizer, [(context, continuation)], max_length)
    return row.ids, row.count


def naive(model, tokenizer, context, continuation, max_length=10**6):
    """One pair, the whole log-softmax, token by token, without any of the package's code."""
    while context and context[-1] == " ":
        context, continuation = context[:-1], " " + continuation
    if context:
        ids, start = plain_ids(tokenizer, context + continuation), len(plain_ids(tokenizer, context))
    else:
        ids, start = [tokenizer.bos_token_id, *plain_ids(tokenizer, continuation)], 1
    cut = max(0, len(ids) - max_length)
    ids, start = ids[cut:], start - cut
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
    return sum(logs[t - 1, ids[t]].item() for t in range(start, len(ids))), cut > 0


def require_close(found, expected, tolerance=1e-10):
    values, truncated = found
    assert truncated == [cut for _, cut in expected]
    assert values == pytest.approx([value for value, _ in expected], abs=tolerance)


@pytest.mark.parametrize("batch_tokens", [1, 100, 10**6])
def test_every_pair_is_worth_what_it_is_alone(batch_tokens):
    model, tokenizer = llama(), shipped()
    expected = [naive(model, tokenizer, *pair) for pair in PAIRS]
    require_close(loglikelihoods(model, tokenizer, PAIRS, batch_tokens=batch_tokens), expected)
    backwards = loglikelihoods(model, tokenizer, PAIRS[::-1], batch_tokens=batch_tokens)
    require_close(backwards, expected[::-1])


@pytest.mark.parametrize("max_length", [18, 24, 40])
def test_what_does_not_fit_goes_at_the_left(max_length):
    model, tokenizer = llama(max_position_embeddings=max_length), shipped()
    expected = [naive(model, tokenizer, *pair, max_length) for pair in PAIRS]
    assert any(cut for _, cut in expected) and not all(cut for _, cut in expected)
    require_close(loglikelihoods(model, tokenizer, PAIRS), expected)


def test_a_cut_pair_keeps_its_last_tokens():
    tokenizer = templated("<s> $A", bos_token="<s>")
    text = plain_ids(tokenizer, "abcdef")
    assert encode_pair(tokenizer, "abcd", "ef", 7) == ([256, *text], 2)
    assert encode_pair(tokenizer, "abcd", "ef", 4) == (text[-4:], 2)
    assert encode_pair(tokenizer, "abcd", "ef", 3) == (text[-3:], 2)


def test_blanks_at_the_end_of_the_context_belong_to_the_continuation():
    tokenizer = shipped()
    assert encode_pair(tokenizer, "the circle is ", "red", 99) == encode_pair(tokenizer, "the circle is", " red", 99)
    ids, count = encode_pair(tokenizer, "the circle is \n", "red", 99)
    assert tokenizer.decode(ids[-count:]) == " \nred"
    assert encode_pair(tokenizer, "  ", "red", 99) == encode_pair(tokenizer, "", "  red", 99)


def test_an_empty_context_is_bos_or_eos():
    red = plain_ids(tiny_tokenizer(), " red")
    both = templated("<s> $A", bos_token="<s>", eos_token="</s>")
    assert encode_pair(both, "", " red", 99) == ([256, *red], 4)
    assert encode_pair(templated("$A", eos_token="</s>"), "", " red", 99) == ([257, *red], 4)
    with pytest.raises(ValueError, match="an empty context needs a bos or eos token"):
        encode_pair(templated("$A"), "", " red", 99)


@pytest.mark.parametrize(
    "single, front", [("<s> $A", [256]), ("<s> $A </s>", [256]), ("$A </s>", []), ("$A </s> </s>", []), ("$A", [])]
)
def test_special_tokens_in_front_stay_and_those_behind_go(single, front):
    tokenizer = templated(single, bos_token="<s>", eos_token="</s>")
    ids, count = encode_pair(tokenizer, "ab ", "cd", 99)
    assert ids == [*front, *plain_ids(tokenizer, "ab cd")] and count == 3
    # an end token that the continuation itself spells is scored
    ids, count = encode_pair(tokenizer, "ab", " cd</s>", 99)
    assert ids == [*front, *plain_ids(tokenizer, "ab cd"), 257] and count == 4


def adapted():
    model = attach_lora(llama(), LoraSpec(r=2, alpha=4))
    wake_lora(model)
    return model.double()


def test_adapters_count():
    tokenizer = shipped()
    found = loglikelihoods(adapted(), tokenizer, PAIRS)
    merged = merge_lora(adapted())
    require_close(found, [naive(merged, tokenizer, *pair) for pair in PAIRS])
    without = loglikelihoods(llama(), tokenizer, PAIRS)
    assert all(abs(a - b) > 1e-3 for a, b in zip(found[0], without[0], strict=True))


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=643, n_positions=24, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval().double()


def test_a_row_may_fill_all_positions():
    model, tokenizer = gpt2(), shipped()
    assert max_positions(model, tokenizer) == 24
    found = loglikelihoods(model, tokenizer, PAIRS)
    assert found[1][-1]
    require_close(found, [naive(model, tokenizer, *pair, 24) for pair in PAIRS])


def test_positions_come_from_the_model_then_from_the_tokenizer():
    model, tokenizer = llama(max_position_embeddings=77), shipped()
    assert max_positions(model, tokenizer) == max_positions(attach_lora(model, LoraSpec(r=2)), tokenizer) == 77
    endless = BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=643))
    assert max_positions(endless, tokenizer) == tokenizer.model_max_length == 256
    with pytest.raises(ValueError, match="neither BloomForCausalLM nor its tokenizer has a limit; set max_length"):
        max_positions(endless, templated("$A"))


def test_dropout_is_off_and_the_mode_is_given_back():
    tokenizer = shipped()
    expected = loglikelihoods(llama().eval(), tokenizer, PAIRS)
    model = llama(attention_dropout=0.5).train()
    assert loglikelihoods(model, tokenizer, PAIRS) == expected
    assert model.training and all(p.grad is None for p in model.parameters())


def test_the_head_sees_the_continuations_only():
    model, seen, tokenizer = llama(), [], shipped()
    _, head = decoder_and_head(model)
    assert not changes_logits(model)  # which is tried once
    head.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    loglikelihoods(model, tokenizer, PAIRS)
    assert sum(seen) == sum(row.count for own in encode_pairs(tokenizer, PAIRS, 256) for row in own)


def test_half_precision_is_summed_in_full():
    model, tokenizer = llama(), shipped()
    coarse, _ = loglikelihoods(llama().bfloat16(), tokenizer, PAIRS)
    expected = [naive(model, tokenizer, *pair)[0] for pair in PAIRS]
    assert coarse == pytest.approx(expected, rel=0.05)
    # bfloat16 has 8 bits: a value of its own would be a multiple of 2^-5 beyond 4
    assert all(value * 2**5 % 1 for value in coarse)


def test_no_pairs_no_values():
    assert loglikelihoods(llama(), shipped(), []) == ([], [])


def test_a_choice_without_tokens_is_refused():
    pairs = [("In:", " red"), ("In:", ""), ("", "")]
    with pytest.raises(
        ValueError, match=r"2 of 3 continuations cannot be scored, the first: number 1 \(''\) yields no"
    ):
        loglikelihoods(llama(), shipped(), pairs)
    with pytest.raises(
        ValueError, match="yields no token of its own; give every choice a text that begins with a blank"
    ):
        encode_pair(shipped(), "the squ", "are", 99)


def test_a_choice_longer_than_the_model_is_scored_in_windows():
    """Every token once, with what fits before it; the twin scores each token in a row of its own."""
    tokenizer = shipped()
    context, choice = "In: what is it?\nOut:", " a red circle left of a small blue square and a green star above it"
    for max_length in (4, 7, 12):
        model = llama(max_position_embeddings=max_length)
        ids, count = joint_ids(tokenizer, context, choice, 0)
        assert count >= max_length
        expected = 0.0
        for row in windows(ids, count, max_length):
            assert len(row.ids) <= max_length and 0 < row.count <= max_length // 2
            logs = model(torch.tensor([row.ids])).logits[0].detach().log_softmax(-1)
            expected += sum(float(logs[t - 1, row.ids[t]]) for t in range(len(row.ids) - row.count, len(row.ids)))
        (found,), cut = loglikelihoods(model, tokenizer, [(context, choice)])
        assert found == pytest.approx(expected, abs=1e-9) and cut == [True]


@pytest.mark.parametrize(("length", "count", "most"), [(9, 5, 5), (20, 19, 4), (7, 6, 2), (30, 10, 9), (5, 2, 9)])
def test_windows_score_every_token_of_the_continuation_once(length, count, most):
    ids = list(range(length))
    rows = windows(ids, count, most)
    assert [token for row in rows for token in row.ids[len(row.ids) - row.count :]] == ids[length - count :]
    assert all(row.count < len(row.ids) <= most for row in rows)
    assert len(rows) == 1 or count >= most


def test_results_that_are_not_finite_are_refused():
    model, tokenizer = llama(), shipped()
    poisoned = plain_ids(tokenizer, "In: z")[-1]
    model.model.embed_tokens.weight.data[poisoned] = torch.nan
    pairs = [("In:", " red"), ("In: z", " red"), ("In: z", " blue")]
    with pytest.raises(ValueError, match=r"2 of 3 continuations .*number 1 \(' red'\) has log-likelihood nan"):
        loglikelihoods(model, tokenizer, pairs)


def test_a_wrong_batch_is_refused():
    with pytest.raises(ValueError, match="max_tokens must be at least 1; got None and 0"):
        loglikelihoods(llama(), shipped(), PAIRS, batch_tokens=0)


def test_models_that_change_their_logits_are_scored_by_their_own():
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 643, "head_dim": 8}
    model = Gemma2ForCausalLM(Gemma2Config(**shape, num_attention_heads=2, num_key_value_heads=1))
    model = model.double().eval()
    model.config.final_logit_softcapping = 0.1
    expected = [naive(model, shipped(), *pair) for pair in PAIRS]
    require_close(loglikelihoods(model, shipped(), PAIRS), expected, 1e-7)
