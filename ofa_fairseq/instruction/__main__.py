"""Prints the released instructions, a line each; with a LINE, or the name of a released one, how it is understood.

A segment is what is encoded as one piece: text with its slots filled, a picture, a box, or image codes.
"""

import argparse
import sys

from . import Instruction, InstructionError, Side, Slot, parse
from .released import RELEASED

SIDES: tuple[Side, Side] = ("source", "target")


def describe(instruction: Instruction) -> str:
    """The segments of each side, text in quotation marks, and the columns that fill the slots."""
    lines = []
    for side in SIDES:
        for segment in instruction.segments(side):
            if isinstance(segment, Slot):
                lines.append(f"{side}   {segment.type:6} {segment}")
            else:
                lines.append(f"{side}   text   {''.join(map(str, segment))!r}")
    names = dict.fromkeys(slot.name for side in SIDES for slot in instruction.slots(side))
    return "\n".join([*lines, f"columns  {','.join(['id', *names])}"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ofa_fairseq.instruction", description=__doc__)
    parser.add_argument(
        "line",
        nargs="?",
        metavar="LINE",
        help="'[image:photo] what is it? -> [text:name]', or the name of a released instruction, e.g. caption",
    )
    line = parser.parse_args(arguments).line
    if line is not None:
        if line in RELEASED:
            line = RELEASED[line]
            print(f"line     {line}")
        try:
            print(describe(parse(line)))
        except InstructionError as error:
            sys.exit(str(error))
        return
    width = max(map(len, RELEASED))
    for name, released in RELEASED.items():
        print(f"{name:{width}}  {released}")


if __name__ == "__main__":
    main()
