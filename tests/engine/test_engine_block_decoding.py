"""Block decoding with its cache, against decoding that computes everything anew in each pass, bit for bit; and what
does not depend on the model: the limit, the end, what may come out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusion_models import KINDS, MASK, PAD, make_diffusion_toy, marker_of

from wrinklefree.engine import Batch, BatchItem, DecodingSettings, Engine, SamplingParams
from wrinklefree.engine.block_decoding import BlockDecoder
from wrinklefree.engine.decoding import JointPasses, Turn
from wrinklefree.engine.generation import Generation
from wrinklefree.errors import InputError

SIZE, CONTEXT = 8, 100
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]
RULES: dict[str, dict[str, Any]] = {
    "one": {"threshold": 1.0},
    "some": {"threshold": 0.06},
    "all": {"threshold": 0.0},
    "three": {"tokens_per_forward": 3},
    "entropy": {"entropy_bound": 9.0},
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    root = tmp_path_factory.mktemp("diffusion")
    return {
        kind: Engine.load(make_diffusion_toy(root / kind, kind, SIZE), threads=1, context=CONTEXT, slots=4)
        for kind in KINDS
    }


def plain(count: int, **changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": count, "temperature": 0.0, "ignore_eos": True, "seed": 1, **changes})


def block(**changes: Any) -> DecodingSettings:
    return DecodingSettings(mode="block", **changes)


def answer(engine: Engine, prompt: list[int], count: int, **changes: Any) -> Generation:
    return engine.generate(prompt, plain(count), block(**changes)).run()


def anew(engine: Engine, kind: str, prompt: list[int], count: int, rule: dict[str, Any]) -> tuple[list[int], int]:
    """The same text without cache and sub-blocks: the finished blocks, then the whole current one, in each pass."""
    marker = marker_of(kind, SIZE)
    clean = 1 if marker.clean_half == "causal" else SIZE
    noised = 1 if marker.rule.noised == "causal" else SIZE
    stop = min(len(prompt) + count, CONTEXT // SIZE * SIZE)
    ids, passes = list(prompt), 0
    while len(ids) < stop:
        start = len(ids) // SIZE * SIZE
        known = {position: token for position, token in enumerate(ids) if position >= start}
        while waiting := [i for i in range(start, min(start + SIZE, stop)) if i not in known]:
            tokens = [known.get(i, MASK) for i in range(start, start + SIZE)]
            with Batch(engine) as batch:
                slot = batch.open()
                items = [BatchItem(slot, tokens, "all", start, noised)]
                if start:
                    items.insert(0, BatchItem(slot, ids[:start], "last", 0, clean))
                found = batch.choose(items)
            best, sure, entropy = (
                np.concatenate([np.zeros(1)] * (start == 0) + [getattr(rows, name) for rows in found])
                for name in ("tokens", "probability", "entropy")
            )
            rows = [i - start + 1 - marker.token_shift for i in waiting]  # row 0 is the clean state before the block
            for place in chosen([sure[r] for r in rows], [entropy[r] for r in rows], **rule):
                known[waiting[place]] = int(best[rows[place]])
            passes += 1
        ids = (ids[:start] + [known[i] for i in sorted(known)])[:stop]
    return ids[len(prompt) :], passes


def chosen(
    sure: list[float],
    entropy: list[float],
    threshold: float = 0.9,
    tokens_per_forward: int | None = None,
    entropy_bound: float | None = None,
) -> list[int]:
    order = np.argsort(-np.array(sure), kind="stable").tolist()
    if entropy_bound is not None:
        order = np.argsort(entropy, kind="stable").tolist()
        fit = [k for k in range(1, len(order) + 1) if sum(entropy[i] for i in order[: k - 1]) <= entropy_bound]
        return order[: max(fit)]
    if tokens_per_forward is not None:
        return order[:tokens_per_forward]
    return order[: max(1, sum(value > threshold for value in sure))]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_changes_nothing(engines: dict[str, Engine], kind: str, rule: str) -> None:
    for length in (1, 7, 8, 19):
        wanted, passes = anew(engines[kind], kind, PROMPT[:length], 30, RULES[rule])
        found = answer(engines[kind], PROMPT[:length], 30, sub_block=SIZE, **RULES[rule])
        assert found.tokens == wanted
        assert passes / 2 < found.forwards <= passes
        if kind == "llada":  # no position whose row stays as it is
            assert found.forwards == passes
        assert found.mode == "block" and found.finish_reason == "length"


def test_the_rules_differ(engines: dict[str, Engine]) -> None:
    # else the test above would say little
    forwards = {rule: answer(engines["fast_dllm"], PROMPT[:9], 40, **RULES[rule]).forwards for rule in RULES}
    assert forwards["all"] < forwards["some"] < forwards["one"] and forwards["all"] < forwards["entropy"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_a_pass_is_threshold_one(engines: dict[str, Engine], kind: str) -> None:
    for sub_block in (3, 8):
        one = answer(engines[kind], PROMPT, 50, sub_block=sub_block, tokens_per_forward=1)
        assert one.tokens == answer(engines[kind], PROMPT, 50, sub_block=sub_block, threshold=1.0).tokens
        assert one.forwards <= 50


@pytest.mark.parametrize("kind", KINDS)
def test_sub_blocks_of_one_are_decided_from_left_to_right(engines: dict[str, Engine], kind: str) -> None:
    seen: list[int] = []
    engine = engines[kind]
    settings = block(sub_block=1, threshold=0.0)
    made = engine.generate(PROMPT, plain(30), settings, lambda turn, _: seen.extend(d.position for d in turn.decided))
    made.run()
    assert seen == list(range(len(PROMPT), len(PROMPT) + 30))


def test_causal_blocks_one_by_one_from_the_left_are_autoregressive(engines: dict[str, Engine]) -> None:
    # With causal attention and token shift the first open position is predicted by the text before it alone.
    made = engines["causal"].generate(PROMPT, plain(60), DecodingSettings(mode="ar")).run()
    assert answer(engines["causal"], PROMPT, 60, sub_block=1, threshold=0.0).tokens == made.tokens


@pytest.mark.parametrize("sub_block", [3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_finished_blocks_are_as_computed_from_nothing(engines: dict[str, Engine], kind: str, sub_block: int) -> None:
    # The cache after several blocks, and one made from the final tokens alone: the next row is the same, to the bit.
    engine, marker = engines[kind], marker_of(kind, SIZE)
    clean = 1 if marker.clean_half == "causal" else SIZE
    with Batch(engine) as batch:
        used, fresh = batch.open(), batch.open()
        decoder = BlockDecoder(marker, np.array(PROMPT, np.int32), 60, block(sub_block=sub_block, threshold=0.05),
                               frozenset())  # fmt: skip
        passes = JointPasses(engine._model)
        passes.add(used, decoder)
        known = dict(enumerate(PROMPT))
        while len(known) < 60 or decoder._commit < 48:
            known |= {one.position: one.token for turn in passes.run() for one in turn.decided}
        batch.truncate(used, 48)
        tokens = [known[position] for position in range(48)]
        batch.step([BatchItem(fresh, tokens, "none", 0, clean)])
        rows = [[9, 9, 9, 9, 9, 9, 9, 9]] * 2
        one, other = batch.step([BatchItem(slot, row, "all", 48, SIZE) for slot, row in zip((used, fresh), rows,
                                                                                             strict=True)])  # fmt: skip
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rule", ["one", "three"])
@pytest.mark.parametrize("kind", ["fast_dllm", "fast_dllm_causal_text", "llada"])
def test_a_pass_computes_the_open_sub_block(engines: dict[str, Engine], kind: str, rule: str) -> None:
    # The rows of each pass, worked out from what was known before it: 19 tokens, sub-blocks of 3 in blocks of 8.
    turns: list[Turn] = []
    settings = block(sub_block=3, **RULES[rule])
    engines[kind].generate(PROMPT, plain(40), settings, lambda turn, _: turns.append(turn)).run()
    shift = int(marker_of(kind, SIZE).token_shift)
    known, before = set(range(len(PROMPT))), (-1, -1)
    for turn in turns:
        waiting = min(set(range(len(PROMPT) + 40)) - known)
        start = waiting // SIZE * SIZE
        sub = start + (waiting - start) // 3 * 3
        first, end = max(start, sub - shift), min(sub + 3, start + SIZE)
        if (start, sub) != before:
            first, end = start, start + SIZE
        if start != before[0]:
            first = 0 if before[0] < 0 else start - SIZE
        assert (turn.first, turn.last) == (first, end - 1)
        assert all(sub <= one.position < sub + 3 for one in turn.decided)
        known |= {one.position for one in turn.decided}
        before = (start, sub)


def test_causal_blocks_compute_what_changed_and_never_one_row(engines: dict[str, Engine]) -> None:
    # One row alone goes through attention in another way, and would leave other bits in a finished block.
    for rule in ("one", "three"):
        turns: list[Turn] = []
        settings = block(sub_block=4, **RULES[rule])
        engines["causal"].generate(PROMPT, plain(60), settings, lambda turn, _, to=turns: to.append(turn)).run()
        changed = 0
        for turn in turns:
            assert turn.last > turn.first and turn.first >= changed - 1
            changed = min(one.position for one in turn.decided)
        assert sum(turn.last - turn.first + 1 for turn in turns) < 6 * len(turns)


@pytest.mark.parametrize("kind", KINDS)
def test_passes_never_exceed_the_positions(engines: dict[str, Engine], kind: str) -> None:
    for length in (3, 16, 21):
        for count in (1, 9, 40):
            assert answer(engines[kind], PROMPT[:length], count, threshold=1.0, sub_block=3).forwards <= count


@pytest.mark.parametrize("kind", ["fast_dllm", "causal"])
def test_max_tokens_is_exact(engines: dict[str, Engine], kind: str) -> None:
    whole = answer(engines[kind], PROMPT[:11], 70, threshold=0.05).tokens
    for count in range(1, 71):
        made = answer(engines[kind], PROMPT[:11], count, threshold=0.05)
        assert len(made.tokens) == count and made.finish_reason == "length"
        # up to the last block nobody knows of the limit
        same = (11 + count) // SIZE * SIZE - 11
        assert made.tokens[: max(0, same)] == whole[: max(0, same)]


def test_the_context_ends_a_text_at_its_last_whole_block(engines: dict[str, Engine]) -> None:
    made = answer(engines["fast_dllm"], PROMPT, 500, threshold=0.0)
    assert len(made.tokens) == CONTEXT // SIZE * SIZE - len(PROMPT) == 77
    assert len(answer(engines["fast_dllm"], [5] * 95, 500).tokens) == 1
    with pytest.raises(InputError, match="96 tokens fill the 12 whole blocks of 8 positions that the context of 100"):
        engines["fast_dllm"].generate([5] * 96, plain(1), block())


def test_t16_mask_and_padding_never_come_out(engines: dict[str, Engine]) -> None:
    for kind in KINDS:
        for seed in range(3):
            params = plain(60, temperature=2.0, top_p=1.0, seed=seed)
            for settings in (block(threshold=0.02), DecodingSettings(mode="ar")):
                tokens = engines[kind].generate([5, 6, 7], params, settings).run().tokens
                assert len(tokens) == 60 and not {MASK, PAD} & set(tokens)


def test_an_end_token_inside_a_block_ends_the_text(engines: dict[str, Engine]) -> None:
    engine = engines["fast_dllm"]
    settings = block(threshold=0.05, sub_block=SIZE)
    whole = engine.generate(PROMPT[:9], plain(40), settings).run().tokens
    for end in dict.fromkeys(whole):
        stopped = engine.generate(PROMPT[:9], plain(40, stop_tokens=(end,)), settings)
        stopped.run()
        # A decided end token closes what is behind it, not what is before: that is decided as without it, but in other
        # company, so that only the blocks before its own are sure to be the same.
        assert stopped.finish_reason == "stop" and stopped.tokens[-1] == end and end not in stopped.tokens[:-1]
        same = (9 + whole.index(end)) // SIZE * SIZE - 9
        assert stopped.tokens[: max(0, same)] == whole[: max(0, same)]


def test_stop_strings_end_the_text_inside_a_block_and_across_blocks(engines: dict[str, Engine]) -> None:
    engine = engines["causal"]
    settings = block(threshold=0.0)
    whole = engine.generate(PROMPT[:9], plain(40), settings).run()
    for begin in range(len(whole.text) - 5):
        stop = whole.text[begin : begin + 5]
        made = engine.generate(PROMPT[:9], plain(40, stop=(stop,)), settings).run()
        assert made.text == whole.text[: whole.text.index(stop)] and made.finish_reason == "stop"
        assert made.tokens == whole.tokens[: len(made.tokens)]


def test_text_comes_in_order_and_the_pieces_join(engines: dict[str, Engine]) -> None:
    engine = engines["llada"]
    for tokens in ({"threshold": 1.0}, {"tokens_per_forward": 2}):
        made = engine.generate(PROMPT[:9], plain(40), block(sub_block=SIZE, **tokens))
        steps = list(made)
        assert "".join(step.text for step in steps) == engine.tokenizer.decode(made.tokens) == made.text
        passes = [step.forwards for step in steps]
        assert passes == sorted(passes) and passes[-1] == made.forwards


def test_logprobs_of_blocks(engines: dict[str, Engine]) -> None:
    steps = list(engines["fast_dllm"].generate(PROMPT, plain(20, logprobs=2), block(threshold=0.05)))
    for step in steps:
        assert step.logprob is not None and step.best[0] == (step.token, step.logprob) and len(step.best) == 2
    bare = answer(engines["fast_dllm"], PROMPT, 20, threshold=0.05)
    assert [step.token for step in steps] == bare.tokens


def test_same_seed_same_text_and_a_penalty_counts(engines: dict[str, Engine]) -> None:
    engine = engines["fast_dllm"]
    drawn = [
        engine.generate(PROMPT, plain(30, temperature=1.0, seed=seed), block(threshold=0.05)).run().tokens
        for seed in (3, 3, 4)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    penalised = engine.generate(PROMPT, plain(30, repetition_penalty=50.0), block(threshold=0.05)).run().tokens
    assert len(set(penalised)) > len(set(answer(engine, PROMPT, 30, threshold=0.05).tokens))
