"""`transformers serve` with the processors that `cos` builds, for an environment without torchvision.

There its AutoProcessor refuses every processor that can also read videos (models/processor.py says why). Everything else is the
server's own: the protocol, the decoding of pictures, the chat template, the network, its generation.
"""

import sys
from typing import Any

from transformers import AutoProcessor
from transformers.cli.transformers import main

from cos_core.models import processor


def from_pretrained(where: str, **_options: Any) -> Any:
    return processor.processor(where)


if __name__ == "__main__":
    AutoProcessor.from_pretrained = from_pretrained
    sys.argv = ["transformers", "serve", *sys.argv[1:]]
    main()
