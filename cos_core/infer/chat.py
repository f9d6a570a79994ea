"""Questions about one picture, and one loaded model: the picture's keys and values stay warm between them."""

from __future__ import annotations

from collections.abc import Callable

from cos_core.errors import InputError
from cos_core.files.images import open_image
from cos_core.infer.answers_file import was_skipped
from cos_core.infer.config import InferConfig
from cos_core.infer.passes import Question, TwoPass
from cos_core.infer.settings import build_engine, finder, note_dtype, note_family, note_served, setting
from cos_core.interfaces import Engine, Reporter
from cos_core.types import UNUSABLE_BOXES, Example, Prediction


class Conversation:
    """Answers questions about `config.image`, each independent of the others; writes nothing.

    `listen` is called with each new piece of an answer. Raises InputError or MissingError when the picture, the model or the
    settings cannot be used.
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
        self._image = config.image
        resolved = setting(config)
        note_dtype(config, reporter)
        note_family(config, reporter)
        # The engine keeps what it computed for as long as this picture lives.
        self._picture = open_image(None, str(config.image))
        if engine is None:
            note_served(config, reporter)
            if config.engine == "hf":
                reporter.note(f"loading {config.model} ...")
        engine = engine or build_engine(config)
        if engine.remark:
            reporter.note(engine.remark)
        self._chain = TwoPass(engine, resolved, listen=listen, finder=finder(config, engine))

    def ask(self, question: str) -> Prediction:
        """The answer, or a Prediction with `error`."""
        example = Example(id=self._image.name, dataset="single", image=str(self._image), question=question)
        return self._chain.predict([Question(example, self._picture)])[0]


def answer_one(
    config: InferConfig, reporter: Reporter, engine: Engine | None = None, listen: Callable[[str], None] | None = None
) -> Prediction:
    """Answers `config.question` about `config.image`; as a Conversation of one question.

    Raises InputError when the picture cannot be used or the model gave no answer; a question left unanswered because of its box
    (`on_bad_box="skip"`) comes back with `error`.
    """
    if config.image is None or not config.question:
        raise InputError("one answer needs an image and a question")
    prediction = Conversation(config, reporter, engine, listen).ask(config.question)
    if prediction.error is not None and not was_skipped(prediction):
        raise InputError(prediction.error)
    if prediction.box_status in UNUSABLE_BOXES and config.on_bad_box != "skip" and prediction.gate != "closed":
        reporter.warn(f"the first pass named no usable region ({prediction.box_status}); looked at: {config.on_bad_box}")
    return prediction
