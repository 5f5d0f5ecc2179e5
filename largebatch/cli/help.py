"""`largebatch help [VERB | KEY | GROUP | GROUP=CHOICE | WORD]`: tells about one thing, from the comments of conf/."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from largebatch import conf_dir
from largebatch.cli.catalogue.composed import Catalogue
from largebatch.cli.pages.key_page import NoChoiceError, Topics
from largebatch.cli.pages.layout import page_width
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_WRONG_INPUT
from largebatch.cli.verbs import VERBS

USAGE = """usage: largebatch help VERB           the same as largebatch VERB --help
       largebatch help KEY            batch.total, or its last word where that is enough: max_micro
       largebatch help GROUP          optimizer: its choices
       largebatch help GROUP=CHOICE   optimizer=lars: all that it sets
       largebatch help WORD           every key, choice and comment with that word"""


def main(arguments: Sequence[str]) -> int:
    """Print the page; returns 0, or 2 if nothing has such a name."""
    words = [one.lstrip("-") for one in arguments]
    if not words or words == ["help"]:
        print(USAGE)
        return EXIT_DONE if words else EXIT_WRONG_INPUT
    if words[0] in VERBS and words[0] != "help":
        verb = importlib.import_module(f"largebatch.cli.{words[0].replace('-', '_')}")
        return int(verb.main([*words[1:], "--help"]))
    folder = Path(conf_dir())
    primaries = sorted(path.stem for path in folder.glob("*.yaml"))
    topics = Topics(Catalogue((folder,)), primaries, page_width())
    try:
        pages = [topics.page(word) for word in words]
    except NoChoiceError as error:
        print(f"largebatch help: {error}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    if missing := [word for word, page in zip(words, pages, strict=True) if not page]:
        print(
            f"largebatch help: no key, choice or comment has {' or '.join(map(repr, missing))}. `largebatch train "
            "--help` lists all.",
            file=sys.stderr,
        )
        return EXIT_WRONG_INPUT
    print("\n\n".join(pages))
    return EXIT_DONE
