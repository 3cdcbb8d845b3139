"""The list of models, read by OpenAI's own client."""

from __future__ import annotations

import openai
import pytest
from running_server import MODEL, RunningServer


def test_the_one_model_with_what_it_can_do(server: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    (model,) = client.models.list()
    assert (model.id, model.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL).to_dict() == model.to_dict()
    facts = model.to_dict()["wrinklefree"]
    assert facts == {"context": 512, "vocabulary": 258, "modes": ["ar"], "block_size": None}


def test_another_name_is_not_found(server: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("another/model")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
