"""All benchmarks one after another, each in its own process; their tables go to the terminal and to a folder.

On CUDA the sizes are those of training on COCO, and all together take some minutes on a large GPU.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

COCO = ["--height", "800", "--width", "1333"]
ON_CPU = [
    ["floor"],
    ["train_step"],
    ["inference"],
    ["mask_rcnn"],
    ["focal_loss"],
    ["losses"],
    ["matching"],
    ["decoding"],
    ["coco_eval"],
    ["mask_eval"],
    ["gallery_search"],
    ["loader"],
    ["triplets"],
    ["embedding_step"],
    ["scaling", "--height", "240", "--width", "320"],
]
ON_CUDA = [
    ["floor", *COCO, "--images", "16"],
    ["train_step", *COCO, "--images", "16"],
    ["inference", *COCO, "--images", "1", "--repeats", "50"],
    ["inference", *COCO, "--images", "16"],
    ["mask_rcnn", *COCO, "--images", "8", "--tables", "train_step", "inference"],
    ["focal_loss", "--images", "16", "--anchors", "201600", "--dtype", "bfloat16"],
    ["losses", "--images", "16", "--anchors", "201600", "--dtype", "bfloat16"],
    ["matching"],
    ["decoding", *COCO, "--images", "16"],
    ["triplets"],
    ["embedding_step", "--identities", "45", "--images", "8"],
]


def run(words: Sequence[str], device: str, folder: Path) -> int:
    """Run one benchmark and return its exit status. Its output also goes to ``folder``."""
    name = "_".join([words[0], *[word for word in words[1:] if not word.startswith("--")]])
    command = [sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:], "--json", str(folder / f"{name}.json")]
    command += ["--device", device] if device != "cpu" else []
    start = time.perf_counter()
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    report = f"$ python -m benchmarks.{' '.join(words)}\n\n{done.stdout}\n"
    print(f"{report}exit status {done.returncode} after {time.perf_counter() - start:.0f} s\n", flush=True)
    (folder / f"{name}.txt").write_text(report)
    return done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, default=Path("output/benchmarks"), metavar="FOLDER")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    runs = ON_CPU if arguments.device == "cpu" else ON_CUDA
    failed = [" ".join(words) for words in runs if run(words, arguments.device, arguments.output)]
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
