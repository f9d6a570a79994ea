"""A forward pass of a whole model, its decoder kept or computed again layer by layer, so that a sweep can walk it backwards.

The model runs as it is, once; hooks on its decoder's layers note what each one is called with, so masks and position embeddings
are its own. Each walked layer is cut off from the one before: its input is a leaf. Either the layers' graphs are kept, or
(streamed) their inputs only, and a layer is called again, alone, when its turn comes. What its attention gave may be kept, too,
and is then not computed again. What a model does between two layers is
kept as a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from cos_core.errors import InputError
from cos_core.relevance.propagation.tape import Attended, Tape

if TYPE_CHECKING:
    from torch import nn
    from transformers import Cache, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sequences of one length, and how a whole model runs them.

    `model`: in eval mode, weights frozen (otherwise the graph holds more than it needs), its decoder inside
    `relevance_attention`. `run`: runs it on (count, length) positions and returns its logits (count, length, vocabulary); given
    a cache, these positions continue what it holds.
    """

    model: PreTrainedModel
    count: int
    length: int
    run: Callable[[Cache | None], torch.Tensor]

    @property
    def decoder(self) -> Any:
        """The language model with its `layers`."""
        return self.model.get_decoder()

    @property
    def tokens(self) -> int:
        """Positions of all sequences."""
        return self.count * self.length


@dataclass(frozen=True, slots=True)
class Piece:
    """One layer's graph, cut at the attention's output (`attended`): `entered` (a leaf) and `left`, both (batch, n, hidden)."""

    entered: torch.Tensor
    left: torch.Tensor
    attended: Attended | None

    def shares(self) -> bool:
        """Whether the graph behind the attention's output and the one in front of it have operations in common.

        They have in blocks that run attention and MLP side by side, and where a gate on the output is made with the queries.
        """
        if self.attended is None:
            return False
        in_front = _operations((self.attended.query, self.attended.key, self.attended.value))
        return not in_front.isdisjoint(_operations((self.left,)))

    def is_whole(self) -> bool:
        """Whether queries, keys and values come of what the layer was given, and of nothing that another layer computed."""
        if self.attended is None:
            return True
        return all(
            _leaves(tensor) == {id(self.entered)} for tensor in (self.attended.query, self.attended.key, self.attended.value)
        )


def _operations(tensors: Iterable[torch.Tensor]) -> set[Any]:
    """The operations of tensors' graph, leaves not counted."""
    return {operation for operation in _nodes(tensors) if operation.next_functions}


def _leaves(tensor: torch.Tensor) -> set[int]:
    """The ids of what a tensor's graph begins with, weights not counted."""
    variables = [operation.variable for operation in _nodes([tensor]) if hasattr(operation, "variable")]
    return {id(variable) for variable in variables if not isinstance(variable, torch.nn.Parameter)}


def _nodes(tensors: Iterable[torch.Tensor]) -> set[Any]:
    """What autograd keeps of how tensors were computed."""
    found: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(before for before, _ in node.next_functions)
    return found


@dataclass(slots=True)
class DecoderPass:
    """One forward pass of `sequences` whose decoder's last `count` layers can be walked.

    `tape`: None runs the decoder's own attention implementation, which cuts nothing. `prefix`: keys and values of every layer,
    which the sequences continue. `keep_last`: the last layer's graph is kept even when streaming, being the first one wanted.
    `keep_outputs`: what the attention of a streamed layer gave is kept for its second run.
    """

    sequences: Sequences
    count: int
    streamed: bool
    tape: Tape | None
    prefix: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    keep_last: bool = True
    keep_outputs: bool = False
    _calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    _outputs: dict[int, torch.Tensor | None] = field(default_factory=dict)
    _pieces: dict[int, Piece] = field(default_factory=dict)
    _bridges: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _end: torch.Tensor | None = None

    @property
    def decoder(self) -> Any:
        return self.sequences.decoder

    @property
    def walked(self) -> range:
        """The layers to walk, the last one first."""
        layers = len(self.decoder.layers)
        return range(layers - 1, layers - self.count - 1, -1)

    def forward(self, positions: torch.Tensor | None = None, cache: Cache | None = None) -> torch.Tensor:
        """Logits at `positions` (batch, T) of the sequences, (batch, T, vocabulary), whose graph begins at `end`.

        None: at the first position, for a prefix, of which none are wanted. Raises InputError for a decoder that does not hand
        one layer's output to the next.
        """
        head: nn.Module = self.sequences.model.get_output_embeddings()
        with ExitStack() as stack:
            for number, layer in enumerate(self.decoder.layers):
                for handle in self._hooked(number, layer):
                    stack.callback(handle.remove)
            stack.callback(head.register_forward_pre_hook(_at(positions)).remove)
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self._on_tape())
            logits = self.sequences.run(cache)
        if positions is not None and logits.shape[:2] != positions.shape:
            raise InputError(f"{type(self.sequences.model).__name__} does not make its logits with its output embeddings")
        return logits

    @property
    def end(self) -> torch.Tensor:
        """What the last layer gave, (batch, length, d), as a leaf. Raises InputError when a layer never ran."""
        if self._end is None:
            raise InputError(f"{self._name} has layers that it does not run")
        return self._end

    def piece(self, number: int) -> Piece:
        """The layer's graph, kept or computed again; it is handed out once."""
        if number not in self._pieces:
            args, kwargs = self._calls.pop(number)
            entered = args[0].detach().requires_grad_(True)
            self._set_before(number)
            if self.tape is not None:
                self.tape.known = self._outputs.pop(number, None)
            with torch.enable_grad(), self._on_tape():
                left = _hidden(self.decoder.layers[number](entered, *args[1:], **kwargs))
            self._keep(number, entered, left)
        return self._pieces.pop(number)

    def across(self, number: int, gradients: torch.Tensor) -> torch.Tensor:
        """dy/d(what layer `number` - 1 gave) from dy/d(what `number` was given), (c, batch, n, d) each, for c scalars y."""
        if number not in self._bridges:
            return gradients
        given, left = self._bridges.pop(number)
        last = len(gradients) - 1
        return torch.stack([torch.autograd.grad(given, left, one, retain_graph=i < last)[0] for i, one in enumerate(gradients)])

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
            if number - 1 in self.walked:
                self._bridge(number, args[0], (*args[1:], *kwargs.values()))
            entered = args[0].detach()
            if keep:
                leaves.append(entered.requires_grad_(True))
            else:
                self._calls[number] = ((entered, *args[1:]), kwargs)
            return (entered, *args[1:]), kwargs

        def after(_module: Any, _args: tuple[Any, ...], output: Any) -> Any:
            left = _hidden(output)
            if keep:
                self._keep(number, leaves.pop(), left)
            elif walked and self.keep_outputs and self.tape is not None:
                self._outputs[number] = self.tape.output
            self._end = left.detach().requires_grad_(walked)
            return (self._end, *output[1:]) if isinstance(output, tuple) else self._end

        return [
            layer.register_forward_pre_hook(before, with_kwargs=True),
            layer.register_forward_hook(after),
        ]

    def _bridge(self, number: int, given: torch.Tensor, others: Iterable[Any]) -> None:
        """Notes what stands between the layer before and layer `number`, which is `given` it; `others`: what else it gets."""
        if any(tensor.requires_grad for tensor in _tensors(others)) or (given is not self._end and not given.requires_grad):
            raise self._more_than_a_chain()
        if given is not self._end:
            self._bridges[number] = (given, self.end)

    def _keep(self, number: int, entered: torch.Tensor, left: torch.Tensor) -> None:
        piece = self._pieces[number] = Piece(entered, left, self._attended())
        if not piece.is_whole():
            raise self._more_than_a_chain()

    def _more_than_a_chain(self) -> InputError:
        return InputError(
            f"{self._name} hands more from layer to layer than one layer's output to the next; relevance cannot be computed"
        )

    def _set_before(self, number: int) -> None:
        if self.tape is not None and self.prefix is not None:
            self.tape.before = self.prefix[number]

    def _attended(self) -> Attended | None:
        return None if self.tape is None else self.tape.take()

    def _on_tape(self) -> Any:
        return nullcontext() if self.tape is None else self.tape.running()

    @property
    def _name(self) -> str:
        return type(self.decoder).__name__


def _at(positions: torch.Tensor | None) -> Callable[..., Any]:
    """A hook on output embeddings: of (batch, n, d), that is at `positions` (batch, T); None: at the first."""

    def gather(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden: torch.Tensor = args[0]
        if positions is None:
            return hidden[:, :1], *args[1:]
        return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1])), *args[1:]

    return gather


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _hidden(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
