"""Run as a script: processes that write to one gallery. The package is imported once, then they are forked.

``python gallery_writers.py kill FILE LOG ROUNDS`` starts a writer and kills it at a random moment, again and again.
``python gallery_writers.py share FILE LOG ROUNDS`` runs two writers at the same time, each adding ROUNDS times.
A writer writes to LOG what has been stored, after `Gallery.add` has returned. Each addition has FACES faces.

Pages go to the file as soon as they change, and nothing waits for the disk, so that a kill hits a half-written file
more often.
"""

import os
import random
import signal
import sqlite3
import sys
import time

import torch

from retinanet_ext.embedding import gallery_file
from retinanet_ext.embedding.gallery import Gallery

FACES = 100
torch.set_num_threads(1)


def embeddings(seed):
    """Embeddings ``(FACES, 128)`` that follow from the seed."""
    values = torch.randn(FACES, 128, generator=torch.Generator().manual_seed(seed))
    return values / values.norm(dim=1, keepdim=True)


def connect(*args, **kwargs):
    connection = sqlite3.Connection(*args, **kwargs)
    connection.execute("PRAGMA cache_size = 1")
    return connection


def write(file, log, writer, first, count):
    gallery = Gallery(file, fingerprint="model", dim=128, create=True)
    with open(log, "ab", buffering=0) as done:
        for number in range(first, first + count):
            seed = 1000 * writer + number
            gallery.add(f"person {seed % 7}", embeddings(seed), [f"{seed}-{i}" for i in range(FACES)])
            done.write(f"{seed}\n".encode())


def forked(*arguments):
    pid = os.fork()
    if pid == 0:
        try:
            write(*arguments)
        finally:
            os._exit(0)
    return pid


def kill(file, log, rounds):
    delays = random.Random(0)
    for number in range(rounds):
        writer = forked(file, log, number, 0, 1000)
        time.sleep(delays.uniform(0.005, 0.25))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)


def share(file, log, rounds):
    for writer in [forked(file, log, number, 0, rounds) for number in range(2)]:
        os.waitpid(writer, 0)


if __name__ == "__main__":
    sqlite3.connect, gallery_file.SYNCHRONOUS = connect, "OFF"
    {"kill": kill, "share": share}[sys.argv[1]](sys.argv[2], sys.argv[3], int(sys.argv[4]))
