"""What stands between detectron2 0.6 as `pb1-detectron2` packs it and today's libraries; imported before detectron2.

  detectron2._C            the package holds detectron2's Python without the C++ sources of its own operators. Faster R-CNN uses
                           none of them (RoIAlign, RoIPool and NMS are torchvision's, compiled); other modules import the name.
  PIL.Image.LINEAR         a name that Pillow dropped in version 10 for BILINEAR.
  setuptools < 81          brings `pkg_resources`, by which the model zoo finds its files (requirements.txt).
An installation of detectron2's main branch needs none of this.
"""

import sys
import types

from PIL import Image

sys.modules.setdefault("detectron2._C", types.ModuleType("detectron2._C"))
if not hasattr(Image, "LINEAR"):
    Image.LINEAR = Image.Resampling.BILINEAR
