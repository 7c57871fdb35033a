"""Command-line parsers and their help. Opens no file and imports neither Ray nor torch."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from mediamill.model.urls import MAX_MESSAGE, safe_text
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import KEYS, describe_keys, parse_overrides
from mediamill.schemas.nearest import nearest

_PAIR = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")

_OVERRIDES = (
    "key=value arguments change the job: keys as in a job file (see below), values in YAML.\n"
    "Write './' in front of a path that contains '='."
)
EXIT_CODES = (
    "exit codes: 0 no new error rows; 3 finished, this run made error rows; 2 wrong usage or job;\n"
    "1 failed; "
    "130 interrupted (Ctrl-C); 143 terminated (SIGTERM)"
)

_MODEL_HELP = (
    "folder of a checkpoint in hub format, hf://ORG/NAME of the hub, or built-in, the tiny model "
    "that ships with this program"
)

TOP_HELP = f"""\
usage: mediamill COMMAND ...

Captions, annotates, scores or embeds the pictures and videos of a Parquet manifest with Qwen2-VL,
and writes a Parquet dataset.

commands:
  demo      draw pictures and clips, caption them with the built-in model, write an HTML report
  caption   caption the media of a manifest, or ask several questions about them
  annotate  cut videos into windows, and caption each
  score     compute how likely given texts are as answers, and rank them
  embed     turn media into vectors
  manifest  make a manifest of a folder, bucket, table, WebDataset or zip archive
  run       run a job file
  plan      forecast the tokens, time, cost and memory of a job, without running it
  preview   try a job on a few rows, and show what the model saw and said
  submit    run a job file on a remote Ray cluster, and follow it
  status    show a submitted job, or list them
  logs      follow the output of a submitted job
  stop      stop a submitted job
  watch     show the progress of a run, from another terminal or machine
  history   list the runs of an output
  retry     do the error rows of an output again
  check     check that the files of an output are what its log says
  report    write a page that shows an output: counts, errors, a sample with pictures
  show      show one row of an output: text, prompt, pictures, tokens, run
  diff      compare two outputs: rows, statuses, texts, lengths, settings
  export    write the rows of an output in another form: text files, JSONL, WebDataset, ...
  compact   rewrite the small files of an output to few large ones

mediamill COMMAND --help describes a command and its options.

examples:
  mediamill demo
  mediamill caption photos/ captions/ --model built-in
  mediamill caption photos.parquet captions/ --model Qwen2-VL-2B/ --prompt "Describe this image."
  mediamill run nightly.yaml resources.replicas=4

{EXIT_CODES}
options: --help, --version
"""

# Per kind of job: a description and examples.
JOB_HELP = {
    "caption": (
        "Caption the pictures and videos of a Parquet manifest.",
        """\
  mediamill caption photos.parquet captions/ --model Qwen2-VL-2B/ --prompt "Describe this image."
  mediamill caption s3://bucket/manifest/ s3://bucket/captions/ --config job.yaml \\
      partition_by=[date] generation.max_new_tokens=64
  mediamill caption photos.parquet answers/ --model Qwen2-VL-2B/ \\
      'prompts={caption: Describe this image., indoors: "Indoors, yes or no?"}'""",
    ),
    "annotate": (
        "Cut the videos of a Parquet manifest into windows, and caption each.",
        """\
  mediamill annotate videos.parquet timelines/ --model Qwen2-VL-7B/ --prompt "What happens?" \\
      annotate.window_s=10 annotate.videos=true
  mediamill annotate videos.parquet scenes/ --model Qwen2-VL-7B/ --prompt "What happens?" \\
      annotate.windows=scenes""",
    ),
    "score": (
        "Compute how likely given texts are as answers about each row's media, and rank them.",
        """\
  mediamill score photos.parquet scores/ --model Qwen2-VL-2B/ --prompt "Describe this image." \\
      score.column=caption
  mediamill score photos.parquet indoors/ --model Qwen2-VL-2B/ --prompt "Indoors?" \\
      score.texts=[yes,no]""",
    ),
    "embed": (
        "Turn each row's media into a vector.",
        """\
  mediamill embed photos.parquet vectors/ --model Qwen2-VL-2B/
  mediamill embed photos.parquet vectors/ --model Qwen2-VL-2B/ embed.pool=last \\
      --prompt "Describe this image." """.rstrip(),
    ),
}

SOURCE_KINDS = ("folder", "table", "imagefolder", "webdataset", "zip", "lance", "iceberg")
SOURCE_KINDS_HELP = f"what SOURCE is, if it is not what it looks like: {', '.join(SOURCE_KINDS)}"
MANIFEST_DESCRIPTION = (
    "Make a Parquet manifest of pictures and videos where they are. A second run adds what is new. "
    "Jobs also take such a SOURCE in place of a manifest."
)
MANIFEST_EXAMPLES = """\
examples:
  mediamill manifest photos/ photos-manifest/
  mediamill manifest "s3://bucket/shards/*.tar" s3://bucket/manifest/
  mediamill manifest list.csv manifest/ --uri-column url --id-column key
"""

_RUN_HELP = f"""\
{_OVERRIDES}
Relative paths in a job file are relative to the current directory.

examples:
  mediamill run job.yaml
  mediamill run job.yaml resources.dtype=float32 output=captions-fp32/

{EXIT_CODES}
"""


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        ending = f" (see {self.prog} --help)"
        text = safe_text(f"error: {self.prog}: {message}", MAX_MESSAGE - len(ending))
        print(text + ending, file=sys.stderr)
        raise SystemExit(2)


def parse_job(kind: str, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, object]]:
    """Parses the arguments of a kind of job in JOB_HELP.

    Returns the options, and the job's overrides by dotted key. Raises JobError when a key is given
    twice, and SystemExit(2) after it has printed a usage error.
    """
    description, examples = JOB_HELP[kind]
    parser = job_parser(
        kind,
        "MANIFEST|SOURCE OUTPUT --model DIR [--prompt TEXT] [options] [key=value ...]",
        description,
        f"{_OVERRIDES}\n\nexamples:\n{examples}\n\n{EXIT_CODES}\n",
    )
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)  # the usage has them
    parser.add_argument("--model", metavar="DIR", help=_MODEL_HELP)
    parser.add_argument(
        "--prompt", metavar="TEXT", help="prompt of the rows that have none of their own"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument(
        "--config", metavar="JOB.yaml", help="job file; the command line overrides it"
    )
    options = parse(parser, argv)
    paths, pairs = paths_and_pairs(parser, options.arguments)
    if len(paths) > 2 or len(paths) == 1 or (not paths and options.config is None):
        given = ", ".join(paths) or "neither"
        parser.error(f"expected two paths, MANIFEST and OUTPUT, found {given}")
    named: dict[str, object] = dict(zip(("manifest", "output"), paths, strict=False))
    texts = {key: getattr(options, key) for key in ("model", "prompt", "system")}
    named |= {key: text for key, text in texts.items() if text is not None}
    return options, _merge(named, pairs)


def parse_run(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, object]]:
    """Parses `mediamill run`. The job file is `options.config`; else see `parse_job`."""
    parser = job_parser("run", "JOB.yaml [key=value ...]", "Run a job file.", _RUN_HELP)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)  # the usage has them
    options = parse(parser, argv)
    options.config, overrides = job_arguments(parser, options.arguments)
    return options, overrides


def job_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[str, dict[str, object]]:
    """Splits positional arguments into one job file and its overrides by dotted key.

    Raises JobError when a key is given twice, and SystemExit(2) after it has printed a usage error.
    """
    paths, pairs = paths_and_pairs(parser, arguments)
    if len(paths) != 1:
        parser.error(f"expected one job file, found {', '.join(paths) or 'none'}")
    return paths[0], _merge({}, pairs)


def parse_manifest(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `mediamill manifest`. Prints a usage error, then raises SystemExit(2)."""
    parser = new_parser(
        "manifest", "SOURCE OUTPUT [options]", MANIFEST_DESCRIPTION, MANIFEST_EXAMPLES
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder, bucket, glob, table or archive")
    add("output", metavar="OUTPUT", help="folder of the manifest")
    add("--as", dest="kind", metavar="KIND", choices=SOURCE_KINDS, help=SOURCE_KINDS_HELP)
    add("--id-column", metavar="NAME", help="of a table: column with the ids (default: id, if any)")
    add("--uri-column", metavar="NAME", help="of a table: column with the media's addresses")
    add("--base", metavar="FOLDER", help="of a table: folder of relative paths (default: its own)")
    add("--encoding", metavar="NAME", help="of a table: encoding of its text (default: utf-8)")
    add("--glob", metavar="PATTERN", help="only files whose path below SOURCE matches, with **")
    for name, text in (
        ("include", "files to list, whatever their suffix; may be repeated"),
        ("exclude", "files to leave out; may be repeated"),
    ):
        add(f"--{name}", action="append", default=[], metavar="PATTERN", help=text)
    add("--probe", action="store_true", help="add size, kind, height, width and duration")
    add("--json", action="store_true", help="print the summary as one JSON object")
    return parse(parser, argv)


def parse_demo(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `mediamill demo`."""
    parser = new_parser(
        "demo",
        "[--dir DIR] [--model DIR]",
        "Draw 200 pictures and 40 clips, caption them, and write an HTML report.",
        "A second run only processes the rows that are not finished yet.",
    )
    parser.add_argument(
        "--dir", default="demo", metavar="DIR", help="output folder (default: demo)"
    )
    parser.add_argument("--model", metavar="DIR", help="checkpoint (default: the built-in one)")
    return parse(parser, argv)


def new_parser(command: str, usage: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Returns a parser for one command. `epilog` is printed below the options, unchanged."""
    parser = _Parser(
        prog=f"mediamill {command}",
        usage=f"mediamill {command} {usage}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="print tracebacks, and messages of Ray"
    )
    return parser


def at_least_one(text: str) -> int:
    """Parses the number of an option. Raises ArgumentTypeError, which becomes a usage error."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a whole number from 1")
    return int(text)


def job_parser(command: str, usage: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Returns a parser for a command that runs a job, whose help describes all job keys."""
    kind = command if command in JOB_HELP else None
    parser = new_parser(command, usage, description, f"{epilog}\nkeys:\n{describe_keys(kind)}")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    if command != "retry":
        parser.add_argument(
            "--retry-errors", action="store_true", help="also do the output's error rows again"
        )
        parser.add_argument(
            "--plan",
            action="store_true",
            help="forecast the job instead; see mediamill plan --help",
        )
        parser.add_argument(
            "--preview", metavar="N", help="try N rows instead; see mediamill preview --help"
        )
    if command != "submit":
        parser.add_argument(
            "--limit",
            type=at_least_one,
            metavar="N",
            help="do only the first N rows that are to do, the others in a later run",
        )
        parser.add_argument(
            "--sample",
            type=at_least_one,
            metavar="N",
            help="do only N rows, drawn from the manifest at random by the key seed (the same ones "
            "each time), the others in a later run",
        )
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster to run on (auto: this machine's); default: $RAY_ADDRESS, or a local "
        "cluster for the duration of the job",
    )
    return parser


def is_preview(argv: Sequence[str]) -> bool:
    """Whether a command that runs a job has the option --preview."""
    return any(word == "--preview" or word.startswith("--preview=") for word in argv)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parses `argv`. Raises SystemExit(2) after it has printed a usage error."""
    options, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        names = [name for name in parser._option_string_actions if name.startswith("--")]
        guess = nearest(unknown[0].partition("=")[0], names)
        hint = f", did you mean '{guess}'?" if guess else ""
        parser.error(f"unknown option '{unknown[0]}'{hint}")
    return options


def paths_and_pairs(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Splits positional arguments into paths and `key=value` texts."""
    pairs = [argument for argument in arguments if _PAIR.match(argument)]
    for pair in pairs:
        key, _, value = pair.partition("=")
        if (option := f"--{key}") in parser._option_string_actions and key not in KEYS:
            parser.error(f"found {pair}, expected the option {option} {value}")
        if "/" in value and key not in KEYS:
            guess = nearest(key, KEYS)
            hint = f" (did you mean '{guess}'?)" if guess else ""
            parser.error(f"unknown key '{key}'{hint}; a path that holds '=' is written ./{pair}")
    return [argument for argument in arguments if argument not in pairs], pairs


def _merge(named: dict[str, object], pairs: Sequence[str]) -> dict[str, object]:
    overrides = parse_overrides(pairs)
    for key in named:
        if key in overrides:
            option = key.upper() if key in ("manifest", "output") else f"--{key}"
            raise JobError(
                f"command line: {key}: found {key}=... besides {option}, expected it once"
            )
    return named | overrides
