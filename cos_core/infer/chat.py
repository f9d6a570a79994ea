"""One picture, many questions, one loaded model: the picture's keys and values stay warm between them."""

from __future__ import annotations

from collections.abc import Callable

from cos_core.errors import InputError
from cos_core.files.images import open_image
from cos_core.infer.passes import TwoPass
from cos_core.infer.settings import InferConfig
from cos_core.infer.stage import build_engine, finder, setting, tell_served
from cos_core.interfaces import Engine, Reporter
from cos_core.types import Example, Prediction


class Conversation:
    """Answers questions about `config.image` one after the other, each on its own (no question hears of another).

    `listen` hears each answer as it comes. Raises InputError or MissingError when picture, model or settings cannot be used.
    """

    def __init__(
        self,
        config: InferConfig,
        reporter: Reporter,
        engine: Engine | None = None,
        listen: Callable[[str], None] | None = None,
    ) -> None:
        if config.image is None:
            raise InputError("a conversation needs an image")
        self._name = config.image.name
        # The engine keeps what it computed for as long as this picture lives.
        self._picture = open_image(None, str(config.image))
        made = setting(config)
        if engine is None:
            tell_served(config, reporter)
        engine = engine or build_engine(config)
        self._chain = TwoPass(engine, made, listen=listen, finder=finder(config, engine))

    def ask(self, question: str) -> Prediction:
        """The answer, or a Prediction with `error`."""
        example = Example(id=self._name, dataset="chat", image=self._name, question=question)
        return self._chain.predict([(example, self._picture)])[0]
