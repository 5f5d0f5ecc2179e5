"""The generated blocks of README files: `python -m tests.readme_blocks --write` writes them anew.

A block is between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; tests/unit/test_readme.py holds it to its source.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from largebatch.cli.catalogue.files import description
from largebatch.records.metric_keys import markdown_table

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"


def conf_tree() -> str:
    """Groups of conf/, their choices, and the first sentence of each file's comment."""
    lines = ["```"]
    for folder in (CONF, *sorted(one for one in CONF.rglob("*") if one.is_dir())):
        lines += [f"{folder.relative_to(CONF)}/"] if folder != CONF else []
        files = sorted(folder.glob("*.yaml"))
        indent, width = "  " * (folder != CONF), max((len(file.stem) for file in files), default=0)
        lines += [f"{indent}{file.stem:{width}}  {description(file)}" for file in files]
    return "\n".join((*lines, "```"))


# Block -> (its file, what makes it).
BLOCKS = {
    "metric keys": ("largebatch/records/README.md", markdown_table),
    "conf tree": ("conf/README.md", conf_tree),
}


def with_block(text: str, name: str, content: str) -> str:
    """The text with the content of one block replaced."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    assert found, f"no {begin}"
    assert closed, f"no {end}"
    return f"{before}{begin}\n{content}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the blocks; otherwise print them")
    write = parser.parse_args().write
    for name, (path, make) in BLOCKS.items():
        file = ROOT / path
        if write:
            file.write_text(with_block(file.read_text(encoding="utf-8"), name, make()), encoding="utf-8")
        print(file if write else make())


if __name__ == "__main__":
    main()
