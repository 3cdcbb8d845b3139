"""Several answers in joint passes against each of them alone, bit for bit; coming, leaving, waiting for a slot."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusion_models import make_diffusion_toy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from toy_models import make_toy

from wrinklefree.engine import DecodingSettings, Engine, Generation, SamplingParams, Together, greedy
from wrinklefree.engine.decoding import PIECE_TOKENS, Decided, JointPasses, Request, _piece_end
from wrinklefree.engine.rows import Rows
from wrinklefree.errors import FormatError, InputError

AR = DecodingSettings(mode="ar")
BLOCK = DecodingSettings(mode="block", threshold=0.05)
SPECULATIVE = DecodingSettings(mode="speculative", window=3)


@pytest.fixture(scope="module", params=["causal", "fast_dllm", "fast_dllm_causal_text"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    directory = tmp_path_factory.mktemp("together") / request.param
    return Engine.load(make_diffusion_toy(directory, request.param, 8), threads=1, context=512, slots=6)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(make_toy(tmp_path_factory.mktemp("plain") / "toy", "llama_tensor"), threads=1, slots=3)


def prompt(length: int, seed: int = 0) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed + 1000 * length).integers(2, 200, length).tolist()
    return tokens


def endless(count: int) -> SamplingParams:
    return SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True, seed=0)


def mixed(engine: Engine) -> list[tuple[list[int], SamplingParams, DecodingSettings]]:
    """Prompts of one token to several pieces, drawn and greedy, in every mode the model has, one with logprobs."""
    drawn = SamplingParams(max_tokens=20, temperature=1.0, seed=5, ignore_eos=True, repetition_penalty=1.2)
    modes = [AR, BLOCK, SPECULATIVE] if (engine.config["wrinklefree"]["dlm"]["variant"] == "causal") else [AR, BLOCK]
    lengths = itertools.cycle([1, 300, 17, 64, 257, 40, 2, 259])
    kinds = [greedy(25), drawn, SamplingParams(max_tokens=9, temperature=0.0, logprobs=2, seed=1)]
    return [(prompt(next(lengths)), params, mode) for params in kinds for mode in modes]


def steps_of(generation: Generation) -> list[Any]:
    return [(step.token, step.text, step.logprob, step.best, step.forwards, step.finish_reason) for step in generation]


def test_the_pass_finds_the_token_that_the_sampler_would_find(engine: Engine) -> None:
    """A plain greedy answer, and the same beside one that needs logits, against one whose logprobs make it sampled."""
    for length in (1, 17, 300):
        sampled = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True, logprobs=0, seed=0)
        expected = engine.generate(prompt(length), sampled, AR).run().tokens
        assert engine.generate(prompt(length), endless(20), AR).run().tokens == expected
        together = engine.generate_together([prompt(length)] * 2, [endless(20), sampled], AR)
        assert [one.run().tokens for one in together] == [expected] * 2


def test_a_row_without_a_most_likely_token_is_refused(plain: Engine) -> None:
    """-1 is how a pass says that a row has NaN or infinity."""
    decoder = plain.generate(prompt(3), greedy(5))._seat.decoder
    with pytest.raises(FormatError, match="NaN or infinity"):
        decoder.take(
            Rows(np.array([-1], np.int32), np.array([np.nan], np.float32), np.array([np.nan], np.float32), None)
        )


def test_each_answer_is_as_alone(engine: Engine) -> None:
    # more answers than slots: the last ones wait
    requests = mixed(engine)
    assert len(requests) >= 6
    alone = [steps_of(engine.generate(*request)) for request in requests]
    prompts, params, decoding = (list(part) for part in zip(*requests, strict=True))
    together = engine.generate_together(prompts, params, decoding)
    assert [steps_of(generation) for generation in together] == alone
    backwards = engine.generate_together(prompts, params, decoding)
    assert [steps_of(generation) for generation in reversed(backwards)] == alone[::-1]


def test_passes_are_shared(engine: Engine) -> None:
    passes: list[int] = []
    forward = engine._model.forward_batch

    class Counting:
        vocab_size = engine.vocab_size

        def forward_batch(self, slots: list[int], *arguments: Any) -> None:
            passes.append(len(set(slots)))
            forward(slots, *arguments)

    joint = engine.generate_together([prompt(9, seed) for seed in range(5)], endless(12), AR)
    joint[0]._together._passes._model = Counting()
    for generation in joint:
        generation.run()
    assert passes == [5] * 12


def test_answers_come_and_leave_between_passes(engine: Engine) -> None:
    alone = engine.generate(prompt(30), greedy(20), BLOCK).run().tokens
    first, leaves, queued = engine.generate_together([prompt(30), prompt(8), prompt(5)], greedy(20), [BLOCK, AR, AR])
    next(leaves)
    slots = engine.slots - len(engine._free)
    assert slots == 3 and next(first).token == alone[0]
    leaves.close()
    assert engine.slots - len(engine._free) == 2
    leaves.close()
    with pytest.raises(StopIteration):
        next(leaves)
    del queued
    assert [alone[0], *(step.token for step in first)] == alone
    assert len(engine._free) == engine.slots


def test_a_server_runs_passes_and_takes_what_is_ready(engine: Engine) -> None:
    # Requests arrive one pass after the other, more than there are slots; each gets what it gets alone.
    requests = mixed(engine)
    together = Together(engine)
    waiting, running, texts = list(enumerate(requests)), [], {}
    while waiting or running:
        if waiting:
            number, request = waiting.pop(0)
            running.append((number, together.add(*request)))
        together.run()
        for number, generation in list(running):
            texts.setdefault(number, []).extend(step.token for step in generation.ready())
            if generation.finish_reason is not None:
                running.remove((number, generation))
    assert not together.run() and len(engine._free) == engine.slots
    for number, request in enumerate(requests):
        assert texts[number] == engine.generate(*request).run().tokens


def test_steps_that_are_ready_need_no_pass(engine: Engine) -> None:
    one, other = engine.generate_together([prompt(5), prompt(6)], endless(6), AR)
    assert one.ready() == [] and next(one).finish_reason is None
    step = other.ready()
    assert len(step) == 1 and other.tokens == [step[0].token] and other.ready() == []
    one.run()
    assert len(other.ready()) == 5 and other.finish_reason == "length"
    assert other.first_token_seconds is not None and other.tokens_per_second is not None
    assert list(other) == []


def test_a_long_prompt_shares_its_passes(plain: Engine) -> None:
    # The short prompt leaves room in the first pass; the rest of the long one is a second piece beside its next row.
    short, long = plain.generate_together([prompt(4), prompt(500)], greedy(8))
    order = [len(long.ready()) for _ in range(5) if next(short)]
    assert order == [0, 1, 1, 1, 1] and long.tokens == plain.generate(prompt(500), greedy(8)).run().tokens[:4]


def test_prompts_of_a_pass_are_bounded(plain: Engine) -> None:
    sizes: list[int] = []
    forward = plain._model.forward_batch

    class Counting:
        vocab_size = plain.vocab_size

        def forward_batch(self, slots: list[int], tokens: list[NDArray[Any]], *arguments: Any) -> None:
            sizes.append(sum(map(len, tokens)))
            forward(slots, tokens, *arguments)

    joint = plain.generate_together([prompt(400), prompt(200), prompt(100)], greedy(2))
    joint[0]._together._passes._model = Counting()
    alone = [plain.generate(prompt(length), greedy(2)) for length in (400, 200, 100)]
    joint[0].run(), joint[1].run(), joint[2].run()
    assert max(sizes) <= PIECE_TOKENS + 3 and sum(sizes) == 700 + 3
    for mine in joint:
        assert len(plain._free) == plain.slots and mine.finish_reason == "length"
    assert [mine.tokens for mine in joint] == [each.run().tokens for each in alone]


def test_pieces_end_on_blocks_and_give_all_wanted_rows(engine: Engine) -> None:
    """A request of several pieces with wanted rows in each of them, against one forward over all of it."""

    class Once:
        def __init__(self) -> None:
            self.forwards = 0
            self.found: list[NDArray[np.float32]] = []

        def request(self) -> Request:
            tokens = np.array(prompt(410), np.int32)
            return Request(tokens, (0, 247, 248, 255, 256, 399, 400, 409), 0, 1, head=400, head_block=8)

        def take(self, rows: Rows) -> list[Decided]:
            assert rows.logits is not None
            self.forwards = 1
            self.found.append(np.concatenate([rows.logits, rows.tokens[:, None]], axis=1))
            return []

        def waiting(self) -> list[Decided]:
            return []

    decoder, passes = Once(), JointPasses(engine._model)
    with engine._slot() as slot:
        passes.add(slot, decoder)
        turns = [turn for _ in range(3) for turn in ([] if decoder.forwards else passes.run())]
        assert [(turn.first, turn.last) for turn in turns][-1][1] == 409
        want = np.array([0, 247, 248, 255, 256, 399], np.int32), np.array([0, 9], np.int32)
        logits = np.empty((8, engine.vocab_size), np.float32)
        tokens = np.array(prompt(410), np.int32)
        engine._model.truncate(slot, 0)
        engine._model.forward_batch([slot, slot], [tokens[:400], tokens[400:]], list(want), logits, [0, 400], [8, 1],
                                    [False, False])  # fmt: skip
    np.testing.assert_array_equal(decoder.found[0][:, :-1], logits)
    assert decoder.found[0][:, -1].tolist() == logits.argmax(axis=1).tolist()


def test_pieces_of_any_size_give_all_rows(plain: Engine) -> None:
    class All:
        forwards = 0
        found: NDArray[np.float32]

        def request(self) -> Request:
            return Request(np.array(prompt(50), np.int32), "all", 0, choices=False)

        def take(self, rows: Rows) -> list[Decided]:
            assert rows.logits is not None
            self.forwards, self.found = 1, rows.logits.copy()
            return []

    with plain._slot() as slot:
        decoder, passes = All(), JointPasses(plain._model, most=1)  # of which 2 are made
        passes.add(slot, decoder)  # type: ignore[arg-type]
        while not decoder.forwards:
            passes.run()
    np.testing.assert_array_equal(decoder.found, plain.logits(prompt(50)))


@given(
    st.integers(0, 60), st.sampled_from([1, 5, 12, 32, 256, 300]), st.booleans(), st.booleans(), st.integers(1, 300),
    st.lists(st.integers(1, 256), min_size=1, max_size=9),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_no_piece_cuts_a_block_or_is_one_row(
    blocks: int, size: int, head: bool, tail: bool, more: int, rooms: list[int]
) -> None:
    finished = blocks * size
    count = finished + (size if tail and size > 1 else more)
    request = Request(np.zeros(count, np.int32), "none", 0, size if tail else 1, head=finished,
                      head_block=size if head else 1)  # fmt: skip
    begin = 0
    for room in itertools.cycle([*rooms, PIECE_TOKENS]):
        end = _piece_end(request, begin, room)
        assert begin <= end <= min(count, begin + max(room, size, 3))
        assert end > begin or (room == 1 and count > 1)
        for first, last, rule in (
            (begin, min(end, finished), request.head_block),
            (max(begin, finished), end, request.block),
        ):
            if first >= last:
                continue
            border = finished if last <= finished else count
            assert last == border or last % rule == 0
            assert rule > 1 or last - first > 1 or border - (0 if border == finished else finished) == 1
        begin = end
        if begin == count:
            break


@pytest.mark.parametrize("error", [FormatError, KeyboardInterrupt])
def test_a_decoder_that_fails_leaves_and_the_others_go_on(plain: Engine, error: type[BaseException]) -> None:
    class Failing:
        forwards = 0

        def request(self) -> Request:
            return Request(np.array([3], np.int32), "last", 0)

        def take(self, rows: Rows) -> list[Decided]:
            raise error("numbers that are none")

        def waiting(self) -> list[Decided]:
            return []

    bad, good = plain.generate_together([prompt(5), prompt(6)], greedy(6))
    bad._seat.decoder = Failing()
    with pytest.raises(error, match="numbers that are none"):
        bad.run()
    assert list(bad) == [] and good.run().tokens == plain.generate(prompt(6), greedy(6)).run().tokens
    assert len(plain._free) == plain.slots


def test_what_was_drawn_is_not_drawn_again_behind_an_interruption(plain: Engine) -> None:
    """The samplers of a pass work before its results are handed out; Ctrl-C may come in between."""

    class Interrupting:
        forwards = 0

        def request(self) -> Request:
            return Request(np.array([3], np.int32), "last", 0)

        def take(self, rows: Rows) -> list[Decided]:
            raise KeyboardInterrupt

        def waiting(self) -> list[Decided]:
            return []

    drawn = [SamplingParams(max_tokens=12, temperature=1.5, top_p=1.0, seed=seed, ignore_eos=True) for seed in (1, 2)]
    alone = [plain.generate(prompt(6), params).run().tokens for params in drawn]
    bad, *answers = plain.generate_together([prompt(6)] * 3, [greedy(6), *drawn])
    bad._seat.decoder = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        bad.run()
    assert [one.run().tokens for one in answers] == alone


def test_parameters_are_one_for_all_or_one_each(plain: Engine) -> None:
    with pytest.raises(InputError, match="found 2 prompts, 1 params and 2 decoding"):
        plain.generate_together([[3], [4]], [greedy(2)])
    assert plain.generate_together([]) == []
    with plain._slot(), plain._slot(), plain._slot():
        waits = plain.generate_together([[3]], greedy(2))[0]
        with pytest.raises(InputError, match="all 3 slots are in use"):
            next(waits)
    assert len(waits.run().tokens) == 2


def modes_of(kind: str) -> list[DecodingSettings]:
    return [AR, BLOCK] + [SPECULATIVE] * (kind == "causal")


@pytest.mark.parametrize("kind", ["causal", "fast_dllm"])
def test_t13_fifty_requests_one_after_the_other_on_one_slot(tmp_path: Path, kind: str) -> None:
    # Nothing of an earlier text is left in the slot: a repeated prompt gets the same greedy answer in every mode.
    engine = Engine.load(make_diffusion_toy(tmp_path / "toy", kind, 8), threads=1, context=96, slots=1)
    seen: dict[tuple[int, str], list[int]] = {}
    lengths = [1, 65, 7, 8, 9, 31, 64, 2, 80, 1, 8, 65]
    settings = modes_of(kind)
    for number in range(50):
        length, decoding = lengths[number % len(lengths)], settings[number // 2 % len(settings)]
        made = engine.generate(prompt(length), greedy(8), decoding).run().tokens
        assert 1 <= len(made) <= 8
        assert seen.setdefault((length, decoding.mode), made) == made
        if number % 10 == 0:
            for mode in settings:
                with pytest.raises(InputError, match="97 tokens are more than the context of 96"):
                    engine.generate(prompt(97), greedy(1), mode)
    assert len(seen) < 50
