"""The sections of a run's report on its origin: config, environment, warnings of the log, incidents."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from retinanet_ext.report.document import (
    Block,
    Bullets,
    Command,
    Details,
    Facts,
    Heading,
    Paragraph,
    Subheading,
    Table,
)

from .config_difference import Change, config_difference
from .run_folder import RunFolder

_LONGEST = 160
_MESSAGES = 20
_INCIDENTS = 10
_BAD_IMAGES = 20


def origin_sections(run: RunFolder) -> list[Block]:
    return [*_config(run), *_environment(run), *_log(run), *_incidents(run)]


def _config(run: RunFolder) -> list[Block]:
    blocks: list[Block] = [Heading("Config")]
    if run.config is None:
        return [*blocks, Paragraph("There is no readable config.yaml, so no change of the config can be shown.")]
    difference = config_difference(run)
    if difference.base is None:
        blocks.append(Paragraph(f"{difference.problem} All changes are against the defaults."))
    else:
        changed = [change for change in difference.from_base if not change.filled_in]
        filled = [change for change in difference.from_base if change.filled_in]
        what = f"{len(changed)} key(s) differ from {difference.base}, by overrides or because it was edited since."
        blocks.append(Paragraph(what))
        if changed:
            blocks.append(_changes(changed, "in the config file"))
        if filled:
            blocks.append(
                Details(f"{len(filled)} key(s) were filled in from the data", [_changes(filled, "in the file")])
            )
    table = _changes(difference.from_defaults, "default")
    summary = f"All {len(difference.from_defaults)} keys that differ from the defaults"
    return [*blocks, Details(summary, [table])]


def _changes(changes: Sequence[Change], base: str) -> Table:
    rows = [(change.key, _value(change.base), _value(change.run)) for change in changes]
    return Table(("key", base, "in this run"), rows, numbers=())


def _value(value: Any) -> str:
    text = f"{value:.8g}" if isinstance(value, float) else str(value) if value != "" else "(empty)"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _environment(run: RunFolder) -> list[Block]:
    record = run.record
    if not record:
        text = "There is no readable run.json (Detectron2's own trainer writes none), so the versions are unknown; "
        return [Heading("Environment"), Paragraph(text + "log.txt of such a run lists them at its beginning.")]
    versions = _mapping(record.get("versions"))
    machine = _mapping(record.get("machine"))
    facts = [
        ("Engine", str(record.get("engine", "unknown"))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
        ("Machine", ", ".join(str(value) for value in machine.values() if value)),
        ("Processes", str(record.get("processes", "unknown"))),
        ("Seed", _seed(record.get("seed"))),
        ("Code", _code(record.get("git"))),
        ("Started", str(record.get("started", "unknown"))),
        ("Working directory", str(record.get("working_directory", "unknown"))),
        ("Output folder", str(run.path.resolve())),
    ]
    earlier = [start for start in record.get("earlier_starts") or () if isinstance(start, dict)]
    blocks = [Heading("Environment"), Facts([fact for fact in facts if fact[1]])]
    command = record.get("command")
    if isinstance(command, list):
        blocks += [Paragraph("The command:"), Command(shlex.join(map(str, command)))]
    if earlier:
        rows = [
            (str(s.get("started")), _code(s.get("git")), shlex.join(map(str, s.get("command") or ()))) for s in earlier
        ]
        table = Table(("started", "code", "command"), rows, numbers=())
        blocks.append(Details(f"{len(earlier)} earlier start(s) in this folder", [table]))
    return blocks


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _seed(seed: Any) -> str:
    return "-1: drawn anew at each start, so that the run cannot be repeated exactly" if seed == -1 else str(seed)


def _code(git: Any) -> str:
    if not isinstance(git, dict):
        return "not in a git checkout"
    lines = len(str(git.get("diff") or "").splitlines())
    changes = f", with uncommitted changes ({lines} lines of diff in run.json)" if lines else ""
    return f"git {str(git.get('commit'))[:12]}{changes}"


def _log(run: RunFolder) -> list[Block]:
    log = run.log
    if not log.files:
        return []
    blocks: list[Block] = [Heading("Warnings in the log")]
    files = ", ".join(log.files)
    if not log.messages:
        return [*blocks, Paragraph(f"None in {files}.")]
    errors = sum(message.count for message in log.messages if message.level != "WARNING")
    warnings = sum(message.count for message in log.messages if message.level == "WARNING")
    text = f"{errors} error(s) and {warnings} warning(s) in {files}. "
    text += "Messages that differ in numbers and names only are one row."
    if log.skipped_bytes:
        text += f" The first {log.skipped_bytes / 2**20:.0f} MB were not read."
    rows = [(str(m.count), m.level.lower(), m.time, _shortened(m.text)) for m in log.messages[:_MESSAGES]]
    blocks += [Paragraph(text), Table(("times", "level", "first", "message"), rows, numbers=(0,))]
    if len(log.messages) > _MESSAGES:
        blocks.append(Paragraph(f"{len(log.messages) - _MESSAGES} further kinds of messages are not shown."))
    return blocks


def _shortened(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:299]}…"


def incident_folders(run: RunFolder) -> list:
    """Folders that the guard against non-finite losses has left, by iteration."""
    folder = run.path / "incidents"
    return sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def _incidents(run: RunFolder) -> list[Block]:
    blocks: list[Block] = []
    folders = incident_folders(run)
    if folders:
        lines = [f"{folder.name}: {_summary(folder / 'incident.json')}" for folder in folders[:_INCIDENTS]]
        more = [f"{len(folders) - _INCIDENTS} more in {run.path / 'incidents'}"] if len(folders) > _INCIDENTS else []
        blocks += [
            Subheading("Losses or gradients that were not finite"),
            Bullets(lines + more),
            Paragraph("Each folder holds the batch; “retinanet-ext replay FOLDER” repeats the step."),
        ]
    bad = bad_images(run)
    if bad:
        more = [f"{len(bad) - _BAD_IMAGES} more in bad_images.json"] if len(bad) > _BAD_IMAGES else []
        blocks += [
            Subheading("Images that could not be read during training"),
            Bullets([_line(entry) for entry in bad[:_BAD_IMAGES]] + more),
        ]
    return [Heading("Incidents"), *blocks] if blocks else []


def bad_images(run: RunFolder) -> list:
    """Entries of ``bad_images.json``, a list or an object with one."""
    content = _json(run.path / "bad_images.json")
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, (list, dict)) and value]
        content = lists[0] if lists else []
    if isinstance(content, dict):
        return [f"{name}: {value}" for name, value in content.items()]
    return content if isinstance(content, list) else []


def _summary(path) -> str:
    content = _json(path)
    if not isinstance(content, dict):
        return "incident.json is missing or cannot be read"
    facts = {key: value for key, value in content.items() if isinstance(value, (str, int, float))}
    causes = content.get("causes")
    if isinstance(causes, list) and causes and isinstance(causes[0], dict):  # the likeliest comes first
        facts["likely cause"] = f"{causes[0].get('cause')} ({causes[0].get('evidence')})"
    return _line(facts)


def _line(entry: Any) -> str:
    text = ", ".join(f"{key} {value}" for key, value in entry.items()) if isinstance(entry, dict) else str(entry)
    return _shortened(text) or "no details"


def _json(path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
