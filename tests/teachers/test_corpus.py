"""Corpora a model writes: each document is what the model alone would write; interruption does not show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from train_toys import toy_model

from wrinklefree.errors import InputError
from wrinklefree.models import sampling
from wrinklefree.models.sampling import sample
from wrinklefree.teachers.corpus import CorpusSettings, document_seed, write_corpus

PROMPTS = [[5, 6, 7], [9], [11, 12], [5, 6, 7, 8, 9]]


def plainly(model: nn.Module, prompt: list[int], seed: int, temperature: float, top_p: float) -> list[int]:
    """One prompt, no cache, no padding; the smallest set of tokens with probability top_p, then one random number."""
    generator, tokens = torch.Generator().manual_seed(seed), list(prompt)
    for _ in range(12):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0, -1].double()
        draw = float(torch.rand((), generator=generator))
        if temperature == 0.0:
            tokens.append(int(logits.argmax()))
        else:
            probs = (logits / temperature).softmax(0).tolist()
            order = sorted(range(len(probs)), key=lambda v: -probs[v])
            kept, mass = [], 0.0
            for v in order:
                kept.append(v)
                mass += probs[v]
                if mass >= top_p:
                    break
            at, chosen = 0.0, kept[-1]
            for v in kept:
                at += probs[v]
                if draw * mass < at:
                    chosen = v
                    break
            tokens.append(chosen)
        if tokens[-1] == 3:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.7, 0.5)])
def test_a_batch_with_a_cache_is_each_prompt_alone(temperature: float, top_p: float) -> None:
    model = toy_model(4)
    seeds = [document_seed(0, i) for i in range(4)]
    found = sample(model, PROMPTS, seeds, 12, temperature, top_p, ends={3})
    for prompt, seed, tokens in zip(PROMPTS, seeds, found, strict=True):
        assert tokens == plainly(model, prompt, seed, temperature, top_p)


def one_of_all(logits: torch.Tensor, temperature: float, top_p: float, draw: float) -> int:
    """One row, in double precision, with the whole vocabulary sorted."""
    scaled = logits.double() / temperature
    order = logits.sort(descending=True, stable=True).indices
    upto = (scaled[order] - torch.logsumexp(scaled, dim=0)).exp().cumsum(dim=0)
    kept = min(int(torch.searchsorted(upto, top_p)) + 1, len(logits)) if top_p < 1.0 else len(logits)
    place = int(torch.searchsorted(upto[:kept], draw * float(upto[kept - 1]), right=True))
    return int(order[min(place, kept - 1)])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.8, 0.9), (1.3, 0.2)])
def test_rows_chosen_together_are_each_row_with_everything_sorted(temperature: float, top_p: float) -> None:
    """Some rows are flat, so that the first look does not find them; every third one is of equal values mostly."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([number % 5 + 0.1 for number in range(300)])[:, None]
    logits = torch.randn(300, 1500, generator=generator) * spread
    logits[::3] = logits[::3].round()
    draws = torch.rand(300, generator=generator).tolist()
    draws[:2] = [0.0, 1.0 - 2**-24]
    found = sampling.choose(logits, temperature, top_p, draws).tolist()
    assert found == [one_of_all(*row) for row in zip(logits, [temperature] * 300, [top_p] * 300, draws, strict=True)]


def test_rows_that_ended_are_left_out_of_the_model() -> None:
    model, widths = toy_model(4), []
    model.register_forward_pre_hook(lambda _, __, given: widths.append(len(given["input_ids"])), with_kwargs=True)
    seeds = list(range(32))
    found = sample(model, [[5, 6]] * 32, seeds, 60, ends=set(range(6)))
    assert widths[0] == 32 and min(widths) < 8 and widths == sorted(widths, reverse=True)
    assert found == [sample(model, [[5, 6]], [seed], 60, ends=set(range(6)))[0] for seed in seeds]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_prompt_that_takes_an_ended_ones_place_is_the_prompt_alone(rows: int) -> None:
    """With long and short prompts, so that those in progress and those that join are widened in turn."""
    model, widths, columns = toy_model(4), [], []

    def watch(_: nn.Module, __: object, given: dict[str, torch.Tensor]) -> None:
        widths.append(len(given["input_ids"]))
        columns.append(given["attention_mask"].shape[1])

    model.register_forward_pre_hook(watch, with_kwargs=True)
    prompts = [[5 + (i + j) % 50 for j in range((i * 7) % 23 + 1)] for i in range(40)]
    ends, seeds = set(range(6)), list(range(40))
    found = sample(model, prompts, seeds, 20, ends=ends, rows=rows)
    assert max(widths) == rows and sum(widths) < 1.3 * sum(map(len, found)) and max(columns) < 3 * 23 + 20
    alone = [sample(model, [p], [seed], 20, ends=ends)[0] for p, seed in zip(prompts, seeds, strict=True)]
    assert found == alone


def test_frequencies_are_the_models() -> None:
    """Chi-squared of 2000 first tokens over the 64 of the vocabulary: 63 expected, 110 is beyond 1 in 5000."""
    model = toy_model(4, initializer_range=0.05)
    found = sample(model, [[5, 6]] * 2000, list(range(2000)), 1)
    probs = model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].softmax(0).detach()
    seen = torch.bincount(torch.tensor(found)[:, 0], minlength=64)
    assert float(((seen - 2000 * probs) ** 2 / (2000 * probs)).sum()) < 110


def test_impossible_prompts_are_refused() -> None:
    with pytest.raises(InputError, match="without any token"):
        sample(toy_model(4), [[]], [0], 4)
    with pytest.raises(InputError, match="3 of a prompt and 126 new ones, the model has 128 places"):
        sample(toy_model(4), [[1, 2, 3]], [0], 126)


SETTINGS = CorpusSettings("toy", tokens=200, max_tokens=9, together=4)


class Interrupted(Exception):
    pass


def write(out: Path, stop_after: int | None = None, settings: CorpusSettings = SETTINGS) -> int:
    model, calls = toy_model(4), 0

    def sampler(prompts: list[list[int]], seeds: list[int], given: CorpusSettings) -> list[list[int]]:
        nonlocal calls
        if calls == stop_after:
            raise Interrupted
        calls += 1
        return sample(model, prompts, seeds, given.max_tokens, given.temperature, given.top_p, ends={3})

    report = write_corpus(out, settings, PROMPTS, sampler, lambda tokens: " ".join(map(str, tokens)))
    assert report.tokens >= 200 and report.documents % 4 == 0
    return report.resumed_documents


def test_an_interrupted_corpus_ends_as_a_whole_one(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole.jsonl", tmp_path / "halves.jsonl"
    assert write(whole) == 0
    with pytest.raises(Interrupted):
        write(halves, stop_after=3)
    assert not halves.exists()
    part = tmp_path / "halves.jsonl.part"
    with part.open("ab") as stream:  # killed in the middle of a group, and of a line
        stream.write(b'{"text": "1", "id": "x", "tokens": 1}\n{"text": "cut')
    with pytest.raises(InputError, match=r"with other settings \(seed\)"):
        write(halves, settings=CorpusSettings("toy", tokens=200, max_tokens=9, together=4, seed=1))
    assert write(halves) == 12
    assert whole.read_bytes() == halves.read_bytes() and not part.exists()
    records = [json.loads(line) for line in whole.read_text(encoding="utf-8").splitlines()]
    assert [r["id"] for r in records] == [f"sampled-{i}" for i in range(len(records))]
    assert all(1 <= r["tokens"] <= 9 for r in records) and len({r["text"] for r in records}) > len(records) // 2
    kept = json.loads((tmp_path / "whole.jsonl.json").read_text(encoding="utf-8"))
    assert kept["documents"] == len(records) and kept["sampled_tokens"] == sum(r["tokens"] for r in records)
    with pytest.raises(InputError, match="exists already"):
        write(whole)
