"""A decoder's forward pass, kept or computed again layer by layer, so that a sweep can walk it backwards one layer at a time.

The decoder runs as it is, once; hooks on its layers note what each one is called with, so masks and position embeddings are its
own. Each walked layer is cut off from the one before: its input is a leaf. Either the layers' graphs are kept, or (streamed)
their inputs only, and a layer is called again, alone, when its turn comes.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from cos_core.errors import InputError
from cos_core.relevance.propagation.attention import ATTENTION, Attended, Tape

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Piece:
    """One layer's graph, cut at the attention's output (`attended`): `entered` (a leaf) and `left`, both (batch, n, hidden)."""

    entered: torch.Tensor
    left: torch.Tensor
    attended: Attended | None


@dataclass(slots=True)
class DecoderPass:
    """One forward pass of `decoder` whose last `count` layers can be walked.

    `tape`: None runs the decoder's own attention implementation, which cuts nothing. `prefix`: keys and values of every layer,
    which the sequences continue. `keep_last`: the last layer's graph is kept even when streaming, being the first one wanted.
    """

    decoder: PreTrainedModel
    count: int
    streamed: bool
    tape: Tape | None
    prefix: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    keep_last: bool = True
    _calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    _pieces: dict[int, Piece] = field(default_factory=dict)
    _end: torch.Tensor | None = None

    @property
    def walked(self) -> range:
        """The layers to walk, the last one first."""
        layers = len(self.decoder.layers)
        return range(layers - 1, layers - self.count - 1, -1)

    def forward(self, embeddings: torch.Tensor, mask: torch.Tensor | None = None, start: int = 0) -> torch.Tensor:
        """Last hidden states (batch, n, hidden), whose graph begins at `end`. The first position counts as `start`.

        Raises InputError for a decoder that does not hand one layer's output to the next.
        """
        options: dict[str, Any] = {} if self.tape is None else {ATTENTION: self.tape}
        if start:
            options["position_ids"] = torch.arange(start, start + embeddings.shape[1], device=embeddings.device)[None]
        with ExitStack() as stack:
            for number, layer in enumerate(self.decoder.layers):
                for handle in self._hooked(number, layer):
                    stack.callback(handle.remove)
            stack.enter_context(torch.enable_grad())
            hidden: torch.Tensor = self.decoder(
                inputs_embeds=embeddings.detach(), attention_mask=mask, use_cache=False, **options
            ).last_hidden_state
        return hidden

    @property
    def end(self) -> torch.Tensor:
        """What the last layer gave, (batch, length, d), as a leaf. Raises InputError when a layer never ran."""
        if self._end is None:
            raise InputError(f"{type(self.decoder).__name__} has layers that it does not run")
        return self._end

    def piece(self, number: int) -> Piece:
        """The layer's graph, kept or computed again; it is handed out once."""
        if number not in self._pieces:
            args, kwargs = self._calls.pop(number)
            entered = args[0].detach().requires_grad_(True)
            self._set_before(number)
            with torch.enable_grad():
                left = _hidden(self.decoder.layers[number](entered, *args[1:], **kwargs))
            self._pieces[number] = Piece(entered, left, self._attended())
        return self._pieces.pop(number)

    def _hooked(self, number: int, layer: nn.Module) -> list[Any]:
        walked, last = number in self.walked, number == len(self.decoder.layers) - 1
        keep = walked and (not self.streamed or (last and self.keep_last))
        leaves: list[torch.Tensor] = []

        def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            kwargs = dict(kwargs)
            if not args:
                args = (kwargs.pop("hidden_states"),)
            self._set_before(number)
            if not walked:
                return args, kwargs
            self._check_chain(number, args[0])
            entered = args[0].detach()
            if keep:
                leaves.append(entered.requires_grad_(True))
            else:
                self._calls[number] = ((entered, *args[1:]), kwargs)
            return (entered, *args[1:]), kwargs

        def after(_module: Any, _args: tuple[Any, ...], output: Any) -> Any:
            left = _hidden(output)
            if keep:
                self._pieces[number] = Piece(leaves.pop(), left, self._attended())
            self._end = left.detach()
            if last:
                self._end.requires_grad_(True)
            return (self._end, *output[1:]) if isinstance(output, tuple) else self._end

        return [
            layer.register_forward_pre_hook(before, with_kwargs=True),
            layer.register_forward_hook(after),
        ]

    def _check_chain(self, number: int, entered: torch.Tensor) -> None:
        if number and number - 1 in self.walked and entered is not self._end:
            raise InputError(f"{type(self.decoder).__name__} does something between its layers; relevance cannot be computed")

    def _set_before(self, number: int) -> None:
        if self.tape is not None and self.prefix is not None:
            self.tape.before = self.prefix[number]

    def _attended(self) -> Attended | None:
        return None if self.tape is None else self.tape.take()


def _hidden(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
