"""The command that runs a study again."""

import shlex
from pathlib import Path

from retinanet_ext.config.yaml_files import shipped_configs
from retinanet_ext.report.formats import readable_path

from .study import BUILT_IN_STUDIES, Origin, Study, built_in_studies, read_study_file


def repeat_command(study: Study, folder: Path) -> str | None:
    """The command line; None if neither ``study.json`` nor a built-in study of that name says how the study was called.

    Args:
        study: with the arms and seeds of all calls, as in ``study.json``.
        folder: the output folder; its name is kept if it is not the default.
    """
    origin = study.origin or _origin_by_comparison(study)
    if origin is None:
        return None
    file = origin.file if origin.file in built_in_studies() else readable_path(Path(origin.file))
    words = ["retinanet-ext", "ablate", "run", file]
    words += ["--config-file", config_path(Path(origin.base))] if origin.base else []
    names = [arm.name for arm in study.arms]
    if set(names) != set(origin.arms):
        words += [word for name in names for word in ("--arm", name)]
    words += ["--seeds", *map(str, study.seeds)]
    name = folder.resolve().name  # also of "."
    words += ["--output", f"output/ablations/{name}"] if name != study.name else []
    return shlex.join([*words, *(word for pair in origin.overrides.items() for word in pair)])


def config_path(path: Path) -> str:
    """The path as a reader elsewhere can use it: ``configs/...`` for a config that comes with the package.

    The config may lie in another checkout than this one.
    """
    parts = path.parts
    for start in (index + 1 for index, part in enumerate(parts) if part == "configs"):
        if (shipped_configs() / Path(*parts[start:])).is_file():
            return Path("configs", *parts[start:]).as_posix()
    return readable_path(path)


def _origin_by_comparison(study: Study) -> Origin | None:
    """For a folder whose ``study.json`` has no origin: what differs from the built-in study of the same name."""
    if study.name not in built_in_studies():
        return None
    original = read_study_file(BUILT_IN_STUDIES / f"{study.name}.yaml")
    base = None if config_path(study.base) == config_path(original.base) else str(study.base)
    given = {
        key: value if isinstance(value, str) else repr(value)
        for key, value in study.overrides.items()
        if key not in original.overrides or original.overrides[key] != value
    }
    return Origin(study.name, original.origin.arms, base, given)
