"""Packaging. Pure Python: nothing is compiled, and torch is not imported to build."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    for line in (ROOT / "retinanet_ext" / "__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise RuntimeError("retinanet_ext/__init__.py states no __version__")


setup(
    name="retinanet_ext",
    version=read_version(),
    description="RetinaNet, Mask R-CNN and FaceNet for Detectron2, with an embedded engine for machines without it",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # The configs and studies are installed inside the package.
    packages=[*find_packages(include=["retinanet_ext", "retinanet_ext.*"]), "retinanet_ext.configs"],
    package_dir={"retinanet_ext.configs": "configs"},
    package_data={"retinanet_ext.configs": ["**/*.yaml"]},
    # Lower bounds only. The two caps are Detectron2's own, so that both install together.
    install_requires=[
        # weights_only loading is safe from 2.6 on (CVE-2025-32434).
        "torch>=2.6",
        "torchvision>=0.21",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.7,<0.1.10",
        "pycocotools>=2.0.8",
        "faster-coco-eval>=1.8",
        # OpenCV 5 has no cascade of faces, which INPUT.FACE.DETECTOR offers (tests/embedding).
        "opencv-python-headless>=4.8,<5",
        "numpy>=1.26",
        "pillow>=10.0",
        "matplotlib>=3.8",
        "scipy>=1.11",
        "tensorboard>=2.14",
        "tqdm>=4.64",
        "tabulate>=0.9",
        "safetensors>=0.4",
        # fvcore cuts polygons with it, where a crop is part of the augmentation.
        "shapely>=2.0",
    ],
    extras_require={
        # Losses that classify identities.
        "embedding": ["pytorch-metric-learning>=2.5", "scikit-learn>=1.3"],
        "dev": [
            "pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6", "ruff>=0.6", "setuptools>=70.1",
            "pytorch-metric-learning>=2.5", "scikit-learn>=1.3",
        ],
        "scale": ["ray>=2.9"],
    },
    entry_points={"console_scripts": ["retinanet-ext = retinanet_ext.cli.main:main"]},
)
