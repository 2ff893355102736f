"""Harmonic embeddings from v1's run to a search in v1's gallery, through the trainer of either engine."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import retinanet_ext
from retinanet_ext.config.loading import load_config
from retinanet_ext.embedding.gallery import Gallery, GalleryError
from retinanet_ext.training.trainer import Trainer
from tests.data.conftest import catalogs  # noqa: F401
from tests.embedding import tiny_facenet  # noqa: F401

pytestmark = pytest.mark.usefixtures("catalogs")
HARMONIC = ["MODEL.META_ARCHITECTURE", "HarmonicFaceNet", "MODEL.EMBEDDING.LOSS.SELECTION", "batch_all"]


def run(cfg):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of 6 training and 3 test identities, and finished runs of a v1 and a v2."""
    folder = tmp_path_factory.mktemp("harmonic")
    random = np.random.RandomState(0)
    for name in [f"train/p{i}" for i in range(6)] + [f"val/q{i}" for i in range(3)]:
        (folder / name).mkdir(parents=True)
        face = random.randint(0, 256, (12, 12, 3))
        for index in range(4):
            pixels = np.clip(face + random.normal(0, 30, face.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def config(folder, output, *opts):
    (folder / output).mkdir(exist_ok=True)
    custom = [{"NAME": f"harmonic_{s}", "FORMAT": "identities", "ROOT": str(folder / s)} for s in ("train", "val")]
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "FaceNet", "MODEL.WEIGHTS", ""]
    overrides += ["MODEL.BACKBONE.NAME", "build_two_convolutions", "MODEL.EMBEDDING.DIM", "8"]
    overrides += ["DATASETS.CUSTOM", str(custom), "DATASETS.TRAIN", "('harmonic_train',)"]
    overrides += ["DATASETS.TEST", "('harmonic_val',)", "DATALOADER.NUM_WORKERS", "0"]
    overrides += ["DATALOADER.IMAGES_PER_IDENTITY", "2", "INPUT.FACE.SIZE", "[12, 12]", "SOLVER.IMS_PER_BATCH", "8"]
    overrides += ["SOLVER.MAX_ITER", "4", "SOLVER.WARMUP_ITERS", "0", "SOLVER.STEPS", "()", "SOLVER.BASE_LR", "0.05"]
    return load_config(None, [*overrides, "OUTPUT_DIR", str(folder / output), *opts])


@pytest.fixture
def v1_and_v2(folder):
    """The finished runs; the datasets' registration is that of this test."""
    for name, seed in (("v1", "1"), ("v2", "2")):
        cfg = config(folder, name, "SEED", seed)
        if not (folder / name / "model_final.pth").exists():
            run(cfg)
            (folder / name / "config.yaml").write_text(cfg.dump())
    return folder


def harmonic(folder, output, weights, *opts):
    v1 = ["MODEL.EMBEDDING.HARMONIC.V1", str(folder / "v1"), "MODEL.WEIGHTS", str(weights)]
    return config(folder, output, *HARMONIC, *v1, *opts)


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def test_two_stages_three_tables_and_a_search_in_the_gallery_of_v1(v1_and_v2):
    folder = v1_and_v2
    start = folder / "v2" / "model_final.pth"
    cfg = harmonic(folder, "one", start)
    trainer = Trainer(cfg)
    random_projection = trainer.model.projection.weight.detach().clone()
    trainer.resume_or_load(resume=False)
    assert torch.equal(trainer.model.projection.weight, random_projection)
    trainer.train()
    one, v2 = weights(folder / "one" / "model_final.pth"), weights(start)
    assert one.keys() == v2.keys()
    assert all(torch.equal(one[name], v2[name]) == name.startswith("backbone.") for name in v2)

    trainer = run(harmonic(
        folder, "two", folder / "one" / "model_final.pth", "MODEL.EMBEDDING.HARMONIC.STAGE", "network"
    ))  # fmt: skip
    two = weights(folder / "two" / "model_final.pth")
    assert not any(torch.equal(two[name], one[name]) for name in one)
    results = json.loads((folder / "two" / "results.json").read_text())
    assert {"verification", "verification_v1", "verification_v1_v2"} <= results.keys()
    alone = Trainer.test(config(folder, "alone"), trainer.model.v1.model)
    assert alone["verification"]["AUC"] == pytest.approx(results["verification_v1"]["AUC"])
    logged = [json.loads(line) for line in (folder / "two" / "metrics.json").read_text().splitlines()]
    assert all("distance/v1_v2" in line for line in logged if "total_loss" in line)

    # The checkpoint names v1, so its gallery takes v2's queries, and those of no other model.
    (folder / "two" / "config.yaml").write_text(trainer.cfg.dump())
    first, second = retinanet_ext.load(folder / "v1"), retinanet_ext.load(folder / "two")
    assert second.compatible_with == (first.fingerprint,) and first.compatible_with == ()
    image = str(folder / "val" / "q0" / "0.png")
    gallery = Gallery(folder / "g", fingerprint=first.fingerprint, dim=8, codes=False, create=True)
    gallery.add("q0", first([image]), [image])
    known = Gallery(folder / "g", fingerprint=second.fingerprint, compatible=second.compatible_with)
    [[match]] = known.search(second([image]))
    expected = (first([image]) - second([image])).square().sum().item()
    assert match.name == "q0" and match.distance == pytest.approx(expected, abs=1e-5)
    other = retinanet_ext.load(folder / "v2")
    with pytest.raises(GalleryError, match="cannot be compared"):
        Gallery(folder / "g", fingerprint=other.fingerprint, compatible=other.compatible_with)


def test_evaluation_alone_reports_the_three_tables(v1_and_v2):
    folder = v1_and_v2
    cfg = harmonic(folder, "evaluated", folder / "v2" / "model_final.pth")
    model = Trainer.build_model(cfg)
    assert {"verification", "verification_v1", "verification_v1_v2"} <= Trainer.test(cfg, model).keys()


@pytest.mark.parametrize(
    ("opts", "error", "message"),
    [
        (["HARMONIC.V1", ""], ValueError, "MODEL.EMBEDDING.HARMONIC.V1 is empty"),
        (["HARMONIC.V1", "{folder}/nowhere"], FileNotFoundError, "HARMONIC.V1 is '.*nowhere'"),
        (["HARMONIC.V1", "configs/quick/retinanet.yaml"], ValueError, "is FocalRetinaNet, which does not embed faces"),
        (["HARMONIC.V1", "{folder}/bare"], FileNotFoundError, "whose checkpoint was not found"),
        (["HARMONIC.V1_WEIGHTS", "{folder}/gone.pth"], FileNotFoundError, "gone.pth"),
        (["HARMONIC.V1_WEIGHTS", "{folder}/v2/model_final.pth"], ValueError, "is v1 itself"),
        (["DIM", "16"], ValueError, "v1 gives 8 numbers per embedding, and MODEL.EMBEDDING.DIM of v2 is 16"),
        (["INPUT.FACE.CENTER_CROP", "0.5"], ValueError, "CENTER_CROP is 0.5 and 1.0 for v1"),
        (["INPUT.FACE.SIZE", "[12, 8]", "INPUT.FACE.DETECTOR", "cascade"], ValueError, "SIZE is .12, 8. and .12, 12."),
    ],
)
def test_a_v1_that_cannot_be_used_is_named(v1_and_v2, opts, error, message):
    folder = v1_and_v2
    (folder / "bare").mkdir(exist_ok=True)
    (folder / "bare" / "config.yaml").write_text(config(folder, "bare").dump())
    opts = [opt.format(folder=folder) for opt in opts]
    if not opts[0].startswith("INPUT"):
        opts[0] = f"MODEL.EMBEDDING.{opts[0]}"
    with pytest.raises(error, match=message):
        Trainer.build_model(harmonic(folder, "wrong", folder / "v2" / "model_final.pth", *opts))


def test_a_start_that_makes_no_sense_is_refused(v1_and_v2):
    folder = v1_and_v2
    trainer = Trainer(harmonic(folder, "wrong", ""))
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty, but MODEL.EMBEDDING.HARMONIC.STAGE 'embedding'"):
        trainer.resume_or_load(resume=False)
    copied = folder / "copy.pth"
    copied.write_bytes((folder / "v1" / "model_final.pth").read_bytes())
    trainer = Trainer(harmonic(folder, "wrong", copied))
    with pytest.raises(ValueError, match="copy.pth is v1 itself"):
        trainer.resume_or_load(resume=False)
