"""Makes the data files that tasks read, and looks at what models make of them."""

import argparse
import logging
import sys
from importlib import import_module
from pickle import UnpicklingError

# Command -> module of this package with `add_arguments(parser)` and `run(args)`; its docstring is the help.
COMMANDS = {
    "digits": "digits.command",
    "digit_tasks": "digits.tasks_command",
    "digit_drawings": "digits.drawings_command",
    "score_by_kind": "digits.scoring_by_kind",
    "presence": "digits.presence",
    "read_captions": "digits.read_captions",
    "read_drawings": "digits.read_drawings",
    "collect_predictions": "collect_predictions",
    "contact_sheet": "contact_sheet",
    "picture_metrics": "picture_metrics",
    "train_tokenizer": "train_tokenizer",
    "image_codes": "image_codes",
    "document_frequencies": "document_frequencies",
    "coco": "coco",
    "vqa": "vqa",
    "refcoco": "refcoco",
    "snli_ve": "snli_ve",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ofa_fairseq.prepare", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, path in COMMANDS.items():
        module = import_module(f".{path}", __package__)
        summary = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except (OSError, ValueError, UnpicklingError) as error:  # unusable input, said in words
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    # fairseq may have set up logging in its own way when it was imported.
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    main()
