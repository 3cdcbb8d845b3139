"""Distilling from our own server: `teachers.remote` over a real socket against the same model in this process.

Against the engine's logits: what a client gets is their log-softmax to float32 rounding. Against the checkpoint in
torch: int8 embeddings and a float16 cache lie between them; a shift by one position would be off by whole nats.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toy_checkpoints
from running_server import MODEL, RunningServer

from wrinklefree.data.batch import PADDING_DOCUMENT, TokenBatch
from wrinklefree.export.export import export
from wrinklefree.models.forward import forward
from wrinklefree.models.io import load_checkpoint
from wrinklefree.quant.bitlinear import full_strength
from wrinklefree.teachers.local import LocalTeacher
from wrinklefree.teachers.remote import RemoteServer, RemoteTeacher

K = 8
DOCUMENTS = [(0, 0, 11), (0, 11, 40), (1, 0, 33)]  # row, start, stop; the rest is padding


def batch() -> TokenBatch:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 40)))
    documents = torch.full((2, 40), PADDING_DOCUMENT)
    positions = torch.zeros(2, 40, dtype=torch.long)
    for number, (row, start, stop) in enumerate(DOCUMENTS):
        documents[row, start:stop] = number
        positions[row, start:stop] = torch.arange(stop - start)
    return TokenBatch(ids, ids.clone(), positions, documents)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_checkpoints.write(tmp_path_factory.mktemp("teacher") / "checkpoint")


def test_the_servers_best_tokens_are_the_models_own(checkpoint: Path) -> None:
    packed = checkpoint.with_name("packed")
    export(checkpoint, packed, threads=1, verify=False)
    given = batch()
    with RunningServer(packed, slots=2, context=128) as server:
        teacher = RemoteTeacher(RemoteServer(f"{server.url}/v1", MODEL, K, retries=0), vocabulary=258)
        found = teacher.forward(given, frozenset())
        teacher.release()
        logits = {place: server.engine.logits(given.input_ids[place[0], place[1] : place[2]].numpy().astype(np.int32))
                  for place in DOCUMENTS}  # fmt: skip
    model = load_checkpoint(checkpoint)[0]
    with full_strength(model):
        local = LocalTeacher(lambda: model, forward, top_k=K).forward(given, frozenset())
    for row, start, stop in DOCUMENTS:
        expected = torch.log_softmax(torch.from_numpy(logits[row, start, stop][:-1]).double(), -1)
        best = expected.topk(K)
        here = slice(start, stop - 1)
        torch.testing.assert_close(found.log_probs[row, here].double(), best.values, atol=2e-6, rtol=0)
        assert torch.equal(found.ids[row, here].long(), best.indices)
        assert (found.log_probs[row, here] - local.log_probs[row, here]).abs().mean() < 0.1  # 0.28 if shifted by one
