"""Sparse attention vectors against loops in numpy on activations read by plain hooks, one prompt at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import steer
from steer.prompts import Prompt
from steer_vectors._nearest import class_means, cosines, head_accuracy
from tests.engine.families import FAMILIES
from tests.engine.helpers import tiny_llama

from .subjects import SUBJECTS, passing, subject, word_tokenizer

ANSWERS = ("w6", "w7", "w8", "w6", "w7", "w8", "w6", "w7")


def labelled(one) -> list[steer.Example]:
    return [replace(example, answer=answer) for example, answer in zip(one.examples, ANSWERS, strict=True)]


def features(one, example) -> np.ndarray:
    """(L, H, d_v) in fp64: what enters every output projection at the last token of the bare query."""
    inputs = one.by_hand(Prompt(replace(example, answer="")))
    attention = steer.inspect(one.model).tower().layers[0].attention
    rows = [passing(layer.self_attn.o_proj, one.model, inputs, before=True)[0, -1] for layer in one.layers]
    return torch.stack(rows).double().view(len(rows), attention.num_heads, attention.value_dim).numpy()


def cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def by_hand(one, examples, queries, kept, leave_one_out=False):
    """Accuracy (L, H), the kept heads in order, and each query's label and votes: everything in loops."""
    labels = sorted({example.answer for example in examples})
    read = [features(one, example) for example in examples]
    layers, heads, _ = read[0].shape
    accuracy = np.zeros((layers, heads))

    def mean(layer, head, label, without=None):
        rows = [read[i][layer, head] for i, example in enumerate(examples) if example.answer == label and i != without]
        return sum(rows) / len(rows)

    for layer in range(layers):
        for head in range(heads):
            for i, example in enumerate(examples):
                alike = [
                    cos(read[i][layer, head], mean(layer, head, label, i if leave_one_out else None))
                    for label in labels
                ]
                accuracy[layer, head] += (labels[int(np.argmax(alike))] == example.answer) / len(examples)
    places = [(layer, head) for layer in range(layers) for head in range(heads)]
    best = sorted(places, key=lambda place: (-round(accuracy[place], 6), place))[:kept]
    answers = []
    for query in queries:
        x = features(one, query)
        votes, sums = Counter(), Counter()
        for layer, head in best:
            alike = {label: cos(x[layer, head], mean(layer, head, label)) for label in labels}
            votes[max(alike, key=alike.get)] += 1
            sums.update(alike)
        answers.append((max(labels, key=lambda label: (votes[label], sums[label])), [votes[label] for label in labels]))
    return accuracy, best, answers


def count_hooks(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("kept", [2, 5])
@pytest.mark.parametrize("name", SUBJECTS)
def test_heads_votes_and_labels_are_those_of_a_loop(name, kept, leave_one_out):
    """Two heads and three classes make ties; the queries are given in batches of 3, padded."""
    one = subject(name)
    examples = labelled(one)
    queries = [replace(e, question=e.question) for e in (*examples[5:], *examples[:3])]
    accuracy, best, truth = by_hand(one, examples, queries, kept, leave_one_out)
    method = steer.create("savs", heads=kept, leave_one_out=leave_one_out)
    method.fit(one.model, one.processor, examples, batch_size=3)
    assert method.tensors["accuracy"].tolist() == [pytest.approx(list(row), abs=1e-6) for row in accuracy]
    assert method.tensors["heads"].long().tolist() == [list(place) for place in best]
    labels, votes = method.classify(one.model, one.processor, queries, batch_size=3)
    assert votes.tolist() == [counted for _, counted in truth]
    assert labels == [label for label, _ in truth]
    assert method.answer(one.model, one.processor, queries) == labels


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_accuracy_on_random_rows_is_that_of_a_loop_in_fp64(leave_one_out):
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 2])
    rows = torch.randn(10, 6, 4, generator=generator) + 0.7 * torch.eye(4)[classes][:, None]
    found = head_accuracy(rows, classes, leave_one_out=leave_one_out)
    for head in range(6):
        right = 0
        for i in range(10):
            alike = []
            for c in range(3):
                used = [j for j in range(10) if classes[j] == c and not (leave_one_out and j == i)]
                alike.append(cos(rows[i, head].double().numpy(), rows[used, head].double().mean(0).numpy()))
            right += int(np.argmax(alike)) == int(classes[i])
        assert float(found[head]) == pytest.approx(right / 10)
    assert torch.allclose(class_means(rows, classes)[2, 1], rows[classes == 1, 2].mean(0))
    assert cosines(rows, class_means(rows, classes)).shape == (10, 6, 3)


def test_equal_votes_are_decided_by_the_sum_of_cosines():
    """Two heads, each sure of another class; the second is surer of its own."""
    one = subject("llama")
    method = steer.create("savs", heads=2).fit(one.model, one.processor, labelled(one))
    query = one.examples[0]
    x = torch.from_numpy(features(one, query)).float()
    (first, second) = (tuple(place) for place in method.tensors["heads"].long().tolist())
    flat = {}
    for place, near in ((first, 0), (second, 2)):
        side = torch.randn(len(x[place]), generator=torch.Generator().manual_seed(1))
        means = torch.stack([-x[place]] * 3)
        means[near] = x[place] + (0.5 * side * x[place].norm() / side.norm() if place == first else 0)
        flat.setdefault(place[0], []).append(means)
    method.tensors |= {f"means.{layer}": torch.stack(rows) for layer, rows in flat.items()}
    labels, votes = method.classify(one.model, one.processor, [query])
    assert votes.tolist() == [[1, 0, 1]]
    assert labels == ["w8"]


def test_the_model_is_only_read_and_saved_it_says_the_same(tmp_path):
    one = subject("tiny-vlm")
    examples = steer.zoo.examples("colour", "demo", n=12)
    # the first time that it sees a picture, transformers hangs up hooks of its own
    steer.create("savs").fit(one.model, one.processor, examples)
    hooks = count_hooks(one.model)
    method = steer.create("savs").fit(one.model, one.processor, examples)
    assert method.interventions(steer.inspect(one.model)) == []
    assert count_hooks(one.model) == hooks
    method.save_pretrained(tmp_path)
    loaded = steer.load(tmp_path, one.model)
    queries = steer.zoo.examples("colour", "dev", n=10)
    labels, votes = loaded.classify(one.model, one.processor, queries)
    assert labels == method.answer(one.model, one.processor, queries)
    assert votes.sum(-1).tolist() == [20] * 10
    assert set(labels) <= {example.answer for example in examples}
    other = FAMILIES["mllama"].model()
    with pytest.raises(steer.errors.FingerprintError, match="made for model type"):
        loaded.answer(other, one.processor, queries)


def test_more_examples_classify_tiny_vlm_pictures_better_than_the_commonest_answer():
    one = subject("tiny-vlm")
    method = steer.create("savs").fit(one.model, one.processor, steer.zoo.examples("colour", "demo", n=60))
    queries = steer.zoo.examples("colour", "dev", n=60)
    answers = method.answer(one.model, one.processor, queries)
    commonest = max(Counter(query.answer for query in queries).values())
    assert sum(said == query.answer for said, query in zip(answers, queries, strict=True)) > 1.5 * commonest


def test_half_precision_and_an_encoder_decoder():
    from transformers import T5Config, T5ForConditionalGeneration

    one = subject("llama")
    half = tiny_llama(pad_token_id=None).to(torch.bfloat16)
    assert all(
        value.dtype in (torch.float32, torch.uint8)
        for value in steer.create("savs").fit(half, one.processor, labelled(one)).tensors.values()
    )
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 99}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, initializer_factor=3.0)).eval()
    tokenizer = word_tokenizer(padded=True)
    method = steer.create("savs", heads=3).fit(model, tokenizer, labelled(one))
    assert len(method.answer(model, tokenizer, one.examples)) == 8


def test_errors_say_what_is_wrong():
    one = subject("llama")
    alike = [replace(example, answer="w6") for example in one.examples]
    lonely = [*labelled(one), steer.Example("w20", "w9")]
    for make, facts in [
        (lambda: steer.create("savs").fit(one.model, one.processor, alike), "'w6'"),
        (lambda: steer.create("savs", leave_one_out=True).fit(one.model, one.processor, lonely), "'w9' has 1"),
        (lambda: steer.create("savs", heads=0), "at least 1 head"),
        (lambda: steer.create("savs").answer(one.model, one.processor, alike), "must be fitted first"),
        (lambda: steer.attach(one.model, steer.create("savs")), "must be fitted first"),
    ]:
        with pytest.raises(steer.SteerError, match=facts):
            make()
    fitted = steer.create("savs").fit(one.model, one.processor, labelled(one))
    labels, votes = fitted.classify(one.model, one.processor, [])
    assert (labels, votes.shape) == ([], (0, 3))
