"""The report of an incident, as text for a log or a terminal."""

from pathlib import Path
from typing import Any

CAUSES_SHOWN = 5


def incident_text(what: str, facts: dict[str, Any], folder: Path, problems: list[str]) -> str:
    """The report of a step that was not finite.

    Args:
        what: names losses or gradients and images.
        facts: the content of ``incident.json``.
        folder: where the incident was saved.
        problems: why parts of it could not be saved; empty: all was.
    """
    norms = facts["gradient_norms"]
    parts = ", ".join(f"{part} {norm:.3g}" for part, norm in norms.items() if part != "total")
    lines = [
        f"{what}.",
        f"iteration {facts['iteration']}, learning rate {facts['learning_rate']:.4g}, gradient norm "
        f"{norms['total']:.4g} ({parts})",
        *finding_lines(facts["ranks"]),
        "likely causes, by evidence (0 to 1):",
    ]
    for cause in facts["causes"][:CAUSES_SHOWN]:
        lines.append(f"  {cause['weight']:.2f} {cause['cause']}: {cause['evidence']}. Try: {cause['remedy']}")
    if not facts["causes"]:
        lines[-1] = "nothing speaks for one of the known causes"
    lines.append("The weights are those before this step.")
    if problems:
        lines.append(f"The incident could not be saved in {folder}: {'; '.join(problems)}")
    else:
        lines.append(f"Saved in {folder}; compute the step again: retinanet-ext replay {folder}")
    return "\n".join(lines)


def finding_lines(ranks: list[dict[str, Any]]) -> list[str]:
    """Where each process first was not finite, one or two lines each."""
    lines = []
    for rank, facts in enumerate(ranks):
        where = f"rank {rank}: " if len(ranks) > 1 else ""
        first = facts["first_output"]
        if first:
            origin = "its input is finite" if first["input_is_finite"] else "the batch itself is not finite"
            if first["before"]:
                origin += f", that of {first['before']} inside it is not"
            weights = "" if first["weights_are_finite"] else ", its weights are not finite"
            output = first["output"]
            lines.append(
                f"{where}first output that is not finite: {_module(first)} ({first['type']}): {output['nan']} NaN, "
                f"{output['infinite']} infinite of {output['numbers']}; {origin}{weights}"
            )
        bad = [level for level, maps in facts["levels"].items() if any(_count(found) for found in maps.values())]
        if bad:
            lines.append(f"{where}levels with values that are not finite: {', '.join(bad)}")
        elif first and not first["level"]:
            lines += [f"{where}{line}" for line in _largest_by_level(facts["levels"])]
        gradient = facts.get("first_gradient")
        if gradient:
            lines.append(f"{where}first gradient that is not finite: {gradient['where']}{_level(gradient)}")
            losses = [name for name, finite in facts["gradient_of_loss"].items() if not finite]
            lines.append(f"{where}losses whose gradient alone is not finite: {', '.join(losses) or 'none'}")
    return lines


def _largest_by_level(levels: dict[str, dict[str, Any]]) -> list[str]:
    """The level with the largest logits and deltas, which a loss that is not finite most probably comes from."""
    found = []
    for kind in ("logits", "deltas"):
        sizes = {level: maps[kind]["largest"] or 0.0 for level, maps in levels.items() if kind in maps}
        if sizes:
            level = max(sizes, key=sizes.get)
            found.append(f"{kind} up to {sizes[level]:.3g} at {level}")
    return [f"largest outputs of the head: {', '.join(found)}"] if found else []


def _module(first: dict[str, Any]) -> str:
    return f"{first['module'] or 'the model, outside its modules'}{_level(first)}"


def _level(found: dict[str, Any]) -> str:
    return f" at level {found['level']}" if found["level"] else ""


def _count(found: dict[str, Any]) -> int:
    return found["nan"] + found["infinite"]
