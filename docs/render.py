"""Writes the pages and tables of this folder that follow from the code.

    python docs/render.py            # writes keys.md, errors.md, api.md and the tables of pixels.md
    python docs/render.py --check    # exits with 1 if a file differs

Signatures and docstrings are read from the source files, without importing them.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from error_help import ERROR_HELP
from pixel_tables import frame_table, picture_table

from mediamill.schemas.errors import FAILS_AGAIN, ErrorCode
from mediamill.schemas.job_help import KEYS, SECTIONS, expected, to_json

DOCS = Path(__file__).parent
ROOT = DOCS.parent
_NOTE = "<!-- Written by docs/render.py (`make docs`): change the code, or that file. -->"

# The public Python API: page heading, file, and the names in it.
API: Sequence[tuple[str, str, Sequence[str]]] = (
    ("Ask a model", "model/chat.py", ("Chat", "Answer", "ChatError")),
    ("What is asked, and how", "model/sampling.py", ("Sampling",)),
    ("", "model/media/frame_sampling.py", ("VideoRules",)),
    ("", "model/media/media_source.py", ("SourceRules",)),
    ("", "model/media/receipt.py", ("Receipt",)),
    ("Processor and engine", "model/processor.py", ("Processor",)),
    ("", "model/inputs.py", ("VisualInput",)),
    ("", "model/requests.py", ("Request", "Completion", "Score")),
    ("", "model/engine.py", ("Engine",)),
    ("The network alone", "model/weights.py", ("load_model", "check_weights")),
    ("Jobs", "schemas/job.py", ("load_job", "parse_overrides", "job_dict", "render_job")),
    ("", "pipeline/run.py", ("run",)),
    ("", "pipeline/coordinator/drain.py", ("Stop",)),
    ("", "schemas/result.py", ("Summary",)),
    ("Errors", "schemas/errors.py", ("JobError",)),
    ("", "pipeline/faults.py", ("RunError", "Drained")),
    ("", "model/errors.py", ("ModelError", "MediaError", "PromptError")),
)

_KEYS_INTRO = """\
# Every key of a job file

A job file is YAML. The command line takes the same keys, and overrides the file: `mediamill run
job.yaml generation.max_new_tokens=64`. Keys of a section are written below its name in a file
(`generation: {max_new_tokens: 64}`), and with a dot on the command line. Values are YAML. An
unknown key, or a value out of its range, is an error before anything starts; it names the nearest
known key.

The keys that decide the text of an answer make its *fingerprint*: `prompt`, `prompts`, `system`,
`json_schema`, `generation`, `image`, `video`, `resources.dtype`, the checkpoint's content, and a
few more of the same kind. An output has one fingerprint, so a job that changes them needs a new
output folder; only `mediamill retry` may change them, for the rows that it does again. The other
keys (`fetch`, `resources`, `limits`, `alarms`, ...) may change from run to run.
"""
_ERRORS_INTRO = """\
# Every error code

A row that cannot be answered becomes a row of the result with `status = "error"`, a code in
`error_code` and a sentence in `error_message`. It never stops the job. The list is closed, and
the names are stable: filter on them.

```bash
mediamill show captions/ --where "error_code == 'fetch_timeout'"       # what exactly is wrong
mediamill retry captions/                                              # all that can succeed now
mediamill retry captions/ --where "error_code == 'fetch_timeout'"      # exactly these
```

"Again" says what a plain `mediamill retry` does with such rows: *yes*, or *if changed*: only if
the file is newer or a key changes, since it would fail again. `--where` does the rows that it
chooses in any case ([retry.md](retry.md)). Within a run, requests that may succeed later are
repeated by themselves, up to `fetch.tries` times.
"""
_API_INTRO = """\
# The Python API

What a program imports; everything else may change. [README](../README.md#from-python) and
[qwen2-vl.md](qwen2-vl.md) have examples that run. `mediamill.model` needs neither Ray nor
pyarrow. The package is typed (`py.typed`).
"""


def keys_page() -> str:
    """Returns the page of all keys of a job file."""
    lines = [_NOTE, "", _KEYS_INTRO, "## The job itself", ""]
    lines += _key_table([name for name in KEYS if "." not in name])
    for section, model in SECTIONS.items():
        [first, *rest] = _paragraphs(model.__doc__ or "")
        lines += ["", f"## {section}", "", first, *(f"\n{text}" for text in rest), ""]
        lines += _key_table([name for name in KEYS if name.partition(".")[0] == section])
    return "\n".join(lines) + "\n"


def _key_table(names: Sequence[str]) -> list[str]:
    rows = ["| key | default | meaning | values |", "| --- | --- | --- | --- |"]
    for name in names:
        field = KEYS[name]
        default = "required" if field.is_required() else f"`{to_json(field.default)}`"
        cells = (f"`{name}`", default, field.description or "", expected(name))
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return rows


def errors_page() -> str:
    """Returns the page of all error codes. Raises KeyError for a code without help."""
    lines = [_NOTE, "", _ERRORS_INTRO]
    lines += ["| code | what it means | what to do | again |", "| --- | --- | --- | --- |"]
    for code in ErrorCode:
        meaning, advice = ERROR_HELP[code]
        again = "if changed" if code in FAILS_AGAIN else "yes"
        lines.append(f"| `{code}` | {meaning} | {advice} | {again} |")
    return "\n".join(lines) + "\n"


def api_page() -> str:
    """Returns the page of the Python API, from the source files."""
    lines = [_NOTE, "", _API_INTRO]
    for heading, file, names in API:
        if heading:
            lines += [f"## {heading}", ""]
        module = "mediamill." + file.removesuffix(".py").replace("/", ".")
        definitions = _definitions(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        for name in names:
            if name not in definitions:
                raise LookupError(f"{file}: found no {name}, expected it: change API of {__file__}")
            lines += _described(definitions[name], module)
    return "\n".join(lines).rstrip() + "\n"


_Definition = ast.ClassDef | ast.FunctionDef


def _definitions(tree: ast.Module | ast.ClassDef) -> Mapping[str, _Definition]:
    return {
        node.name: node
        for node in tree.body
        if isinstance(node, _Definition)
        and not any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)
    }


def _described(node: _Definition, module: str) -> Iterator[str]:
    yield f"### {node.name}"
    yield ""
    yield from ("```python", f"from {module} import {node.name}", *_signature(node), "```", "")
    yield from _docstring(node)
    if isinstance(node, ast.FunctionDef):
        return
    for method in _definitions(node).values():
        if not method.name.startswith("_") and isinstance(method, ast.FunctionDef):
            yield from (f"#### {node.name}.{method.name}", "")
            yield from ("```python", *_signature(method, node.name), "```", "")
            yield from _docstring(method)


def _signature(node: _Definition, owner: str = "") -> list[str]:
    """Returns the call of a function, or the fields of a class, one a line."""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if isinstance(node, ast.ClassDef):
        fields = [ast.unparse(line) for line in node.body if isinstance(line, ast.AnnAssign)]
        public = [field for field in fields if not field.startswith("_")]
        return ["", f"{node.name}(", *(f"    {field}," for field in public), ")"] if public else []
    name = f"{owner}.{node.name}" if owner else node.name
    returns = f" -> {_type(node.returns)}" if node.returns else ""
    if "property" in decorators:
        return [f"{name}{returns.replace(' ->', ':')}"]
    arguments = _arguments(node.args, skip_first=bool(owner) and "staticmethod" not in decorators)
    line = f"{name}({', '.join(arguments)}){returns}"
    if len(line) > 100:
        line = "\n".join([f"{name}(", *(f"    {text}," for text in arguments), f"){returns}"])
    return [*([] if owner else [""]), *line.splitlines()]


def _type(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def _arguments(arguments: ast.arguments, skip_first: bool) -> list[str]:
    def text(argument: ast.arg, default: ast.expr | None) -> str:
        shown = ast.unparse(argument)
        return shown if default is None else f"{shown} = {ast.unparse(default)}"

    plain = [*arguments.posonlyargs, *arguments.args]
    blanks: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults))
    defaults = [*blanks, *arguments.defaults]
    shown = [text(*pair) for pair in zip(plain, defaults, strict=True)][skip_first:]
    if arguments.kwonlyargs:
        shown.append("*")
        pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        shown += [text(*pair) for pair in pairs]
    return shown


def _docstring(node: _Definition) -> list[str]:
    """Returns the docstring: its first paragraph as text, the rest as it stands."""
    text = ast.get_docstring(node) or ""
    first, _, rest = text.partition("\n\n")
    lines = [" ".join(first.split()), ""] if first else []
    return [*lines, "```text", *rest.strip("\n").splitlines(), "```", ""] if rest.strip() else lines


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.strip().split("\n\n")]


def pixels_page(page: str) -> str:
    """Returns the page with its tables computed again."""
    for name, table in (("pictures", picture_table()), ("frames", frame_table())):
        pattern = rf"(<!-- table: {name}, by docs/render.py -->\n).*?(<!-- end -->)"
        page, count = re.subn(
            pattern, lambda found, table=table: found[1] + table + found[2], page, flags=re.DOTALL
        )
        if count != 1:
            raise LookupError(f"pixels.md: found {count} tables '{name}', expected one")
    return page


def pages() -> dict[str, str]:
    """Returns the text of each page that this program writes, by file name."""
    return {
        "keys.md": keys_page(),
        "errors.md": errors_page(),
        "api.md": api_page(),
        "pixels.md": pixels_page((DOCS / "pixels.md").read_text(encoding="utf-8")),
    }


def main(arguments: Sequence[str]) -> int:
    """Writes the pages, or with --check compares them. Returns the exit code."""
    wrong = []
    for name, text in pages().items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            wrong.append(name)
            if "--check" not in arguments:
                path.write_text(text, encoding="utf-8")
    word = "differs" if "--check" in arguments else "written"
    print("\n".join(f"docs/{name}: {word}" for name in wrong) or "docs: nothing changed")
    return int("--check" in arguments and bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
