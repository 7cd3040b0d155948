r"""Instructions: a task's input and output as one line of text.

    [image:picture] which region does the text " [text:phrase] " describe? -> [box:region]

`->` parts the source from the target. `[type:name]` is a slot, filled from the row's value of that name:

    [image:x]    a picture; goes to the visual stem and leaves no tokens (source only, two at most)
    [text:x]     any text
    [label:x]    text out of a closed set of answers
    [box:x]      four coordinate bins x0, y0, x1, y1
    [codes:x]    image codes, row by row

Everything else is literal text. A backslash makes `[`, `->` and itself literal: `\[`, `\->`, `\\`.

White space matters, since " what" and "what" are different tokens. Literal text is taken as it stands, with
one exception: white space at the end of a side (before the arrow, too) and before an image, box or codes slot
only separates and is dropped. So ` -> [text:x]` makes a target that starts with a space, ` ->[text:x]` one
that doesn't.

`python -m ofa_fairseq.instruction` prints the released instructions, with a LINE after it how that one is understood.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..vocabulary import Vocabulary
from .released import RELEASED as RELEASED

SLOT_TYPES = ("image", "text", "label", "box", "codes")
TEXT_TYPES = ("text", "label")
_SYMBOLS = {"box": "bin", "codes": "code"}

Side = Literal["source", "target"]
Value = str | Sequence[int]

_TOKEN = re.compile(
    r"(?P<escape>\\.?)|(?P<slot>\[[^\[\]]*\]?)|(?P<arrow>->)|(?P<text>[^\\\[-]+|-)", re.DOTALL
)


class InstructionError(ValueError):
    """A mistake in an instruction; the message shows the line with a caret under the place."""


@dataclass(frozen=True)
class Slot:
    """A place to fill; `position` is where it stands in the line."""

    type: str
    name: str
    position: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        return f"[{self.type}:{self.name}]"


Part = str | Slot
# A picture, box or codes; or literals and text slots in a row.
Segment = Slot | tuple[Part, ...]


@dataclass(frozen=True)
class Instruction:
    """A parsed line; literals and slots alternate as they are encoded (dropped white space is gone)."""

    line: str
    source: tuple[Part, ...]
    target: tuple[Part, ...]

    def slots(self, side: Side) -> tuple[Slot, ...]:
        """The slots of one side, from left to right."""
        return tuple(part for part in getattr(self, side) if isinstance(part, Slot))

    def segments(self, side: Side) -> list[Segment]:
        """The pieces that are encoded one by one."""
        segments: list[Segment] = []
        for part in getattr(self, side):
            last = segments[-1] if segments else None
            if isinstance(part, Slot) and part.type not in TEXT_TYPES:
                segments.append(part)
            elif isinstance(last, tuple):
                segments[-1] = (*last, part)
            else:
                segments.append((part,))
        return segments

    def check(self, columns: Collection[str]) -> None:
        """Raise InstructionError for the first slot whose name is not a column."""
        for slot in self.slots("source") + self.slots("target"):
            if slot.name not in columns:
                raise _error(
                    self.line, slot.position, f"no column {slot.name!r}: expected one of {', '.join(columns)}"
                )

    def encode_source(self, values: Mapping[str, Value], vocabulary: Vocabulary) -> list[int]:
        """Token ids of the source, without `<s>` and `</s>`.

        Neighbouring literals and text slots are filled first and encoded as one string.

        Args:
            values: for each slot's name a string (text, label), 4 bins (box) or image codes (codes).

        Raises:
            ValueError: a value is missing, of the wrong kind, or out of range.
        """
        return self._encode("source", values, vocabulary)

    def encode_target(self, values: Mapping[str, Value], vocabulary: Vocabulary) -> list[int]:
        """Token ids of the target, without `</s>`; otherwise as `encode_source`."""
        return self._encode("target", values, vocabulary)

    def fill(self, side: Side, values: Mapping[str, Value]) -> str:
        """One filled side as text to look at: what `Vocabulary.decode` shows for its token ids."""
        return "".join(
            run if isinstance(run, str) else "".join(f"<{_SYMBOLS[run[0]]}_{number}>" for number in run[1])
            for run in self._runs(side, values)
        )

    def _encode(self, side: Side, values: Mapping[str, Value], vocabulary: Vocabulary) -> list[int]:
        ids: list[int] = []
        for run in self._runs(side, values):
            if isinstance(run, str):
                ids += vocabulary.encode(run)
            else:
                ids += vocabulary.bin_ids(run[1]) if run[0] == "box" else vocabulary.code_ids(run[1])
        return ids

    def _runs(self, side: Side, values: Mapping[str, Value]) -> Iterator[str | tuple[str, Sequence[int]]]:
        """The filled side as strings to encode whole, and (slot type, numbers) between them."""
        for segment in self.segments(side):
            if isinstance(segment, tuple):
                yield "".join(part if isinstance(part, str) else _text(part, values) for part in segment)
            elif segment.type != "image":
                yield segment.type, _numbers(segment, values)


def _value(slot: Slot, values: Mapping[str, Value]) -> Value:
    if slot.name not in values:
        raise ValueError(f"no value for {slot}: got values for {', '.join(values) or 'nothing'}")
    return values[slot.name]


def _text(slot: Slot, values: Mapping[str, Value]) -> str:
    value = _value(slot, values)
    if not isinstance(value, str):
        raise ValueError(f"{slot} takes a string, got {value!r}")
    return value


def _numbers(slot: Slot, values: Mapping[str, Value]) -> Sequence[int]:
    value = _value(slot, values)
    if isinstance(value, str) or (slot.type == "box" and len(value) != 4):
        raise ValueError(f"{slot} takes {'4 bins' if slot.type == 'box' else 'image codes'}, got {value!r}")
    return value


def parse(line: str) -> Instruction:
    """Parse an instruction in the notation that this module describes.

    Raises:
        InstructionError: the line breaks a rule of the notation.
    """
    if len(line.splitlines()) > 1:
        raise _error(line.splitlines()[0], len(line.splitlines()[0]), "expected a single line")
    sides: list[list[Part]] = [[]]
    for token in _TOKEN.finditer(line):
        if token.lastgroup == "arrow":
            if len(sides) == 2:
                raise _error(
                    line, token.start(), "a second arrow: expected one -> (write \\-> for a literal one)"
                )
            sides.append([])
        elif token.lastgroup == "slot":
            sides[-1].append(_parse_slot(line, token))
        else:
            sides[-1].append(_unescape(line, token) if token.lastgroup == "escape" else token.group())
    if len(sides) == 1:
        raise _error(line, len(line), "no arrow: expected ' -> ' between source and target")
    instruction = Instruction(line, _tidy(sides[0]), _tidy(sides[1]))
    _check_sides(instruction)
    return instruction


def _parse_slot(line: str, token: re.Match) -> Slot:
    start, text = token.start(), token.group()
    if not text.endswith("]"):
        raise _error(
            line, start, "a bracket that is not closed: expected [type:name] (write \\[ for a literal one)"
        )
    kind, colon, name = text[1:-1].partition(":")
    if not colon:
        raise _error(line, start, "expected [type:name] (write \\[ for a literal bracket)")
    if kind not in SLOT_TYPES:
        raise _error(line, start + 1, f"unknown slot type {kind!r}: expected one of {', '.join(SLOT_TYPES)}")
    if not name.isidentifier():
        place = start + 1 + len(kind) + 1
        raise _error(line, place, f"invalid name {name!r}: expected letters, digits and underscores")
    return Slot(kind, name, start)


def _unescape(line: str, token: re.Match) -> str:
    if token.group()[1:] not in ("[", "-", "\\"):
        raise _error(line, token.start(), "expected \\[, \\-> or \\\\ at this backslash")
    return token.group()[1:]


def _tidy(parts: list[Part]) -> tuple[Part, ...]:
    """Join neighbouring literals; drop their white space at the end and before image, box and codes slots."""
    tidy: list[Part] = []
    for part in parts:
        if isinstance(part, str) and tidy and isinstance(tidy[-1], str):
            tidy[-1] += part
        else:
            tidy.append(part)
    for i, part in enumerate(tidy):
        following = tidy[i + 1] if i + 1 < len(tidy) else None
        if isinstance(part, str) and not (isinstance(following, Slot) and following.type in TEXT_TYPES):
            tidy[i] = part.rstrip()
    return tuple(part for part in tidy if part)


def _check_sides(instruction: Instruction) -> None:
    line, source, target = instruction.line, instruction.slots("source"), instruction.slots("target")
    if not instruction.target:
        raise _error(line, len(line), "an empty target: expected text or slots after the arrow")
    types: dict[str, str] = {}
    for slot in source + target:
        if types.setdefault(slot.name, slot.type) != slot.type:
            raise _error(
                line, slot.position, f"{slot.name!r} is used as {types[slot.name]} already: expected one type"
            )
    for slot in target:
        if slot.type == "image":
            raise _error(line, slot.position, "an image in the target: expected it as [codes:name]")
    images = [slot for slot in source if slot.type == "image"]
    if len(images) > 2:
        raise _error(line, images[2].position, "a third image: expected two at most")


def _error(line: str, position: int, problem: str) -> InstructionError:
    # A tab takes a tab's room above and below.
    indent = re.sub(r"[^\t]", " ", line[:position])
    return InstructionError(f"{problem}\n  {line}\n  {indent}^")
