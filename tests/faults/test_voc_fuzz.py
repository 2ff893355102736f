"""Mutated VOC annotations and image files are used, or refused by an error that names the file."""

import faulthandler
import traceback
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import DatasetCatalog, DatasetMapper, MetadataCatalog
from retinanet_ext.data.checked_mapper import CheckedMapper
from retinanet_ext.data.checked_records import load_training_dicts
from retinanet_ext.inference.predictor import read_input

HANGS_AFTER = 60  # seconds
LEGAL_ERRORS = (ValueError, KeyError, TypeError, FileNotFoundError)
OBJECT = (
    "<object><name>cat</name><difficult>0</difficult><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>20</xmax>"
    "<ymax>18</ymax></bndbox></object>"
)
ANNOTATION = (
    "<annotation><filename>{0}.jpg</filename><size><width>40</width><height>30</height><depth>3</depth></size>"
    f"{OBJECT}{OBJECT.replace('cat', 'dog')}</annotation>"
)
WORDS = (
    "", "x", "-1", "0", "1e999", "nan", "inf", "9" * 5000, "5.5", "40.0", "yes", "Unspecified", "\u0661", "é", "../a",
    "<a>" * 30 + "</a>" * 30, "&amp;", "&lol;", "<!-- -->", "]]>", "<bndbox/>", "<name/>", "\x00", " 5 ", "2147483648",
)  # fmt: skip
HEADS = (
    '<?xml version="1.0" encoding="utf-16"?>', '<?xml version="1.0" encoding="latin-1"?>',
    '<?xml version="1.0" encoding="no-such-code"?>', '<!DOCTYPE a [<!ENTITY lol "lol">]>', "\ufeff", "<",
    '<!DOCTYPE a SYSTEM "file:///etc/passwd">',
)  # fmt: skip
mutation = st.one_of(
    st.tuples(st.just("word"), st.integers(0, 10**6), st.sampled_from(WORDS)),
    st.tuples(st.just("head"), st.just(0), st.sampled_from(HEADS)),
    st.tuples(st.sampled_from(("delete", "cut", "byte")), st.integers(0, 10**6), st.just("")),
)


def mutated(text: bytes, kind: str, place: int, what: str) -> bytes:
    place %= len(text) + 1
    match kind:
        case "word":  # in place of the text of one element
            start = text.find(b">", place) + 1
            end = text.find(b"<", start)
            return text[:start] + what.encode("utf-8", "surrogatepass") + text[max(end, start) :]
        case "head":
            return what.encode() + text
        case "delete":
            return text[:place] + text[place + 20 :]
        case "cut":
            return text[:place]
        case "byte":
            return text[:place] + bytes([place % 256]) + text[place + 1 :]


def write(root: Path):
    for name in ("Annotations", "JPEGImages"):
        (root / name).mkdir()
    for stem in ("1", "2"):
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations" / f"{stem}.xml").write_text(ANNOTATION.format(stem))


def run(root: Path, policy: str):
    custom = [{"NAME": "fuzz", "FORMAT": "voc", "ROOT": str(root)}]
    words = ["DATASETS.CUSTOM", repr(custom), "DATASETS.TRAIN", "('fuzz',)", "DATASETS.TEST", "()"]
    words += ["DATASETS.ON_BAD_ANNOTATION", policy, "DATASETS.ON_BAD_IMAGE", "error" if policy == "error" else "drop"]
    cfg = load_config("quick/retinanet.yaml", words)
    mapper = CheckedMapper(DatasetMapper(cfg, is_train=True))
    for record in load_training_dicts(cfg):
        mapper(dict(record))


def check_clean(action, names):
    """Run it; an error must be this package's own and name one of these."""
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    try:
        action()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        named = any(name in str(error) for name in names)
        if not (isinstance(error, LEGAL_ERRORS) and "retinanet_ext" in last.filename and named):
            raise
    finally:
        faulthandler.cancel_dump_traceback_later()
        for catalog in (DatasetCatalog, MetadataCatalog):
            if "fuzz" in catalog.list():
                catalog.remove("fuzz")


def test_mutated_voc_annotations_are_used_or_refused_by_name(tmp_path, times):
    write(tmp_path)

    @seed(0)
    @settings(max_examples=times(150), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(mutation, min_size=1, max_size=2), st.sampled_from(("error", "drop", "clip")))
    def check(mutations, policy):
        content = ANNOTATION.format("1").encode()
        for change in mutations:
            content = mutated(content, *change)
        (tmp_path / "Annotations" / "1.xml").write_bytes(content)
        check_clean(lambda: run(tmp_path, policy), ("1.xml", "1.jpg", "'fuzz'", str(tmp_path)))

    check()


@pytest.fixture
def pictures(tmp_path) -> list[bytes]:
    array = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    contents = []
    for suffix in ("jpg", "png", "bmp", "webp", "gif", "tiff"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(array).save(path)
        contents.append(path.read_bytes())
    return contents


def test_mutated_image_files_are_read_or_refused(tmp_path, pictures, times):
    """The check before a run and the reading of a prediction agree with what the file holds, and end."""
    write(tmp_path)
    path = tmp_path / "JPEGImages" / "1.jpg"

    @seed(0)
    @settings(max_examples=times(150), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(range(6)), st.sampled_from(("cut", "bytes", "none")), st.integers(0, 10**6),
        st.binary(min_size=1, max_size=8),
    )  # fmt: skip
    def check(number, kind, place, new):
        content = pictures[number]
        place %= len(content)
        if kind == "cut":
            content = content[:place]
        elif kind == "bytes":
            content = content[:place] + new + content[place + len(new) :]
        path.write_bytes(content)
        (tmp_path / "Annotations" / "1.xml").write_text(ANNOTATION.format("1"))
        check_clean(lambda: run(tmp_path, "error"), ("1.jpg",))
        try:
            image, _ = read_input(str(path), 10**6)
            assert image.ndim == 3 and image.dtype == np.uint8
        except (OSError, SyntaxError, EOFError, ValueError):
            pass  # the kinds that predict skips a file for

    check()
