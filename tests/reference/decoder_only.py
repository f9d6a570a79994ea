"""A sweep begun by the decoder alone, on embeddings: what whole models do around their decoders is not in it."""

from __future__ import annotations

from typing import Any

import torch

from cos_core.relevance.propagation import Sequences


def decoder_only(model: Any, ids: torch.Tensor, features: torch.Tensor, image_token: int) -> Sequences:
    """Ids (1, length) with features (image tokens, hidden) at the image tokens, without position ids and further inputs."""
    decoder = model.get_decoder()
    places = ids == image_token
    with torch.no_grad():
        embeddings = decoder.get_input_embeddings()(ids)
        embeddings = embeddings.masked_scatter(places[..., None].expand_as(embeddings), features)

    def run(cache: Any) -> torch.Tensor:
        out = decoder(inputs_embeds=embeddings, past_key_values=cache, use_cache=False)
        return model.get_output_embeddings()(out.last_hidden_state)  # type: ignore[no-any-return]

    return Sequences(model, *ids.shape, run)
