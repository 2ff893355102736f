"""The images and videos below the paths that a user gives, and where the results of each go."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS_FILE = "predictions.json"  # for all images together; each video has its own file
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
# For inputs in other formats, pictures are written as PNG.
_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Source:
    """One input file. `name` is its unique path below the output folder."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    def picture(self, output: Path) -> Path:
        """Path of the annotated picture or video."""
        if self.is_video:
            return (output / self.name).with_suffix(".mp4")
        keeps = self.path.suffix.lower() in _PICTURE_SUFFIXES
        return output / (self.name if keeps else self.name + ".png")

    def results(self, output: Path) -> Path:
        """Path of the detections, for a video."""
        return (output / self.name).with_suffix(".json")


def find_sources(paths: Sequence[str | Path], output: Path | None) -> tuple[list[Source], dict[Path, str]]:
    """The input files: each file in `paths`, and all images and videos below each folder in `paths`.

    Args:
        paths: files and folders.
        output: the output folder; its files are left out if it lies in one of the folders. None: nothing is left out.

    Returns:
        The sources; and path -> reason, for each path without any source.
    """
    sources, problems, names = [], {}, set()
    for path in map(Path, paths):
        if path.is_dir():
            found = [p for p in sorted(path.rglob("*")) if _is_input(p, output)]
            relative = [p.relative_to(path) for p in found]
            if not found:
                problems[path] = "no images or videos in this folder"
        elif path.is_file():
            found, relative = [path], [Path(path.name)]
        else:
            found, relative = [], []
            problems[path] = "no such file or folder"
        for file, name in zip(found, relative, strict=True):
            sources.append(Source(file, _unique(name, names)))
    return sources, problems


def _is_input(path, output):
    suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    is_output = output is not None and output.resolve() in path.resolve().parents
    return path.suffix.lower() in suffixes and path.is_file() and not is_output


def _unique(name, taken):
    """`name`, numbered if taken. Suffixes do not count, because all videos give an ``.mp4`` and a ``.json``."""
    candidate, number = name, 1
    while candidate.with_suffix("") in taken or _is_results_file(candidate):
        number += 1
        candidate = name.with_stem(f"{name.stem}_{number}")
    taken.add(candidate.with_suffix(""))
    return candidate.as_posix()


def _is_results_file(name):
    """Whether `name` is a video whose JSON file would overwrite `RESULTS_FILE`."""
    source = Source(name, name.as_posix())
    return source.is_video and source.results(Path()) == Path(RESULTS_FILE)
