"""The embedded data set: scenes composed of real handwritten digits, whose full truth is known.

In this order: `handwriting.py` (the digits), `scenes.py` (what is where), `drawing.py` (the picture),
`captions.py` (the texts), `reading.py` (how texts are judged), `command.py` (the files).
"""

from .captions import captions
from .drawing import draw
from .scenes import PlacedDigit, Scene, random_scenes, read_scenes

__all__ = ["PlacedDigit", "Scene", "captions", "draw", "random_scenes", "read_scenes"]
