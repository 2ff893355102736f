import logging
import random

import numpy as np
import pytest
import torch

from retinanet_ext.lite.env import collect_env_info, seed_all_rng
from retinanet_ext.lite.logger import setup_logger


@pytest.fixture
def name(request):
    name = f"test_logger.{request.node.name}"
    yield name
    logger = logging.getLogger(name)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def test_a_second_setup_does_not_double_the_lines(name, tmp_path, capsys):
    for _ in range(2):
        setup_logger(str(tmp_path), name=name)
    logging.getLogger(name).info("hello")
    assert capsys.readouterr().out.count("hello") == 1
    assert (tmp_path / "log.txt").read_text().count("hello") == 1


def test_a_second_run_has_a_file_of_its_own(name, tmp_path):
    for run in ("a", "b"):
        setup_logger(str(tmp_path / run), name=name)
        logging.getLogger(name).info("run %s", run)
    assert "run b" not in (tmp_path / "a" / "log.txt").read_text()
    assert "run b" in (tmp_path / "b" / "log.txt").read_text()


def test_other_ranks_write_beside_the_main_one_and_not_to_the_terminal(name, tmp_path, capsys):
    setup_logger(str(tmp_path), 2, name=name)
    logging.getLogger(name).warning("careful")
    assert capsys.readouterr().out == ""
    assert "WARNING: careful" in (tmp_path / "log.txt.rank2").read_text()


def test_levels_other_than_info_are_shown(name, capsys):
    setup_logger(name=name)
    logging.getLogger(name).info("plain")
    logging.getLogger(name).warning("careful")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("[") and first.endswith("]: plain")
    assert second.startswith("WARNING [")


def test_one_seed_seeds_all():
    draws = []
    for _ in range(2):
        seed_all_rng(11)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]


def test_environment_names_the_libraries():
    text = collect_env_info()
    assert torch.__version__.split("+")[0] in text
    assert "pycocotools" in text
