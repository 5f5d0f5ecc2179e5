"""`python -m largebatch VERB [KEY=VALUE ...]`, also as the console script `largebatch`."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from largebatch.cli.verbs import VERBS

# These write their results to files: a closed stdout does not change their exit code.
_LONG = (
    ["train"],
    ["study"],
    ["textbook"],
    ["measure"],
    ["find-lr"],
    ["find-micro"],
    ["verify"],
    ["attribute"],
    ["advise"],
)
_SHOWING = {"--help", "-h", "--cfg", "-c", "--info", "-i"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code, see leaving.py."""
    from largebatch.cli.process.leaving import EXIT_WRONG_INPUT, report_interrupted
    from largebatch.cli.process.surroundings import AnotherRunError, restored_surroundings

    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with restored_surroundings() as screens:
            try:
                code = _run_verb(given)
            except KeyboardInterrupt as error:
                code = report_interrupted(error)
            is_in_files = given[:1] in _LONG and not _SHOWING.intersection(given)
            return code if is_in_files else screens.exit_code(code)
    except AnotherRunError:
        print(
            "largebatch: another thread of this process is running a verb. Both would share arguments, random "
            "generators and the process group. Wait for it, or use another process.",
            file=sys.stderr,
        )
        return EXIT_WRONG_INPUT


def _run_verb(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        from largebatch.cli.version import version_lines

        print("\n".join(version_lines()))
        return 0
    if arguments[:1] in (["-h"], ["--help"]) and arguments[1:]:
        arguments = ["help", *arguments[1:]]  # as git reads it
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    verb, *rest = arguments
    from largebatch.cli.process.refusing import refuse
    from largebatch.records.credentials import argument_problems

    if problems := argument_problems(arguments):
        return refuse("\n".join(problems))
    if verb not in VERBS:
        from largebatch.records.renamed import VERBS as RENAMED
        from largebatch.run.config.did_you_mean import did_you_mean

        if verb in RENAMED:
            code = refuse(f"{verb!r} is called {RENAMED[verb]} now. Write largebatch {RENAMED[verb]}.")
            if not rest:
                main([RENAMED[verb]])  # starts nothing: each of them prints what it can be asked for
            return code
        said = f"largebatch: {verb!r} is not a verb.{did_you_mean(verb, VERBS)}"
        # Without a near one the list is the remedy; with one it would only scroll the answer away.
        print(f"{said}\n\n{_usage()}" if not did_you_mean(verb, VERBS) else said, file=sys.stderr)
        return 2
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # as under `python -m`: makes the user's own models and data sets importable
    # Heavy imports wait until a verb needs them, so that --help answers in under a second.
    command = importlib.import_module(f"largebatch.cli.{verb.replace('-', '_')}")
    return int(command.main(rest))


def run() -> None:
    """Run one verb and end the process with its exit code; end early if the launcher dies."""
    from largebatch.cli.process.leaving import leave, report_interrupted
    from largebatch.cli.process.surroundings import enter_utf8_mode
    from largebatch.distributed.signals import end_with_launcher, stop_at_once

    enter_utf8_mode()
    end_with_launcher()
    try:
        stop_at_once()
        code = main()
    except KeyboardInterrupt as error:  # outside of main's own handler
        code = report_interrupted(error)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    leave(code)


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {what}" for verb, what in VERBS.items())
    return (
        "usage: largebatch VERB [KEY=VALUE ...]\n\n"
        f"{verbs}\n\n"
        "`largebatch VERB --help` shows every key of a verb with its value and meaning, `largebatch help WORD` finds "
        "one.\n`largebatch --version` shows the versions that matter, `largebatch completion bash` completes by TAB."
    )


if __name__ == "__main__":
    run()
