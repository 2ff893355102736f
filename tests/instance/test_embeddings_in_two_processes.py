"""The embedding loss of two processes, averaged, and its gradients are those of one process with the joint batch."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from retinanet_ext.d2 import Instances, ShapeSpec
from retinanet_ext.embedding.training_loss import build_training_loss
from retinanet_ext.instance.embedding_head import ConvEmbeddingHead
from retinanet_ext.instance.shared_count import counts_of_this_process
from tests.instance.tiny_rcnn import one_stage_config

# RoIs of the images of each process. Alone, no process has both a positive and a negative pair.
PARTS = [
    ([[0, 0], [0]], [[1], [1, 1]]),
    ([[0, 1], [2]], [[1], [2, 0], []]),
    ([[0, 0, 1], [1]], [[], []]),
    ([[0, 0, 1], [1]], []),
    ([[]], [[0], [0, 1]]),
]


def make_head():
    torch.manual_seed(0)
    # A margin above the largest squared distance: all triplets with a farther negative count.
    loss = build_training_loss(one_stage_config("MODEL.EMBEDDING.LOSS.MARGIN", "5.0"))
    return ConvEmbeddingHead(input_shape=ShapeSpec(channels=4, height=7, width=7), dim=5, loss=loss, conv_dims=[8])


def run(parts, rank=None):
    """Loss and gradients of all images, or of those of a process."""
    counts = [sum(map(len, part)) for part in parts]
    x = torch.randn(sum(counts), 4, 7, 7, generator=torch.Generator().manual_seed(0))
    images = sum(parts, []) if rank is None else parts[rank]
    x = x if rank is None else x.split(counts)[rank]
    rois = [Instances((64, 64), gt_identities=torch.tensor(identities, dtype=torch.int64)) for identities in images]
    head = make_head()
    loss = head(x, rois)["loss_embedding"]
    # Gloo adds memory, and without RoIs a convolution's gradient has another memory format.
    return [t.contiguous() for t in (loss.detach(), *torch.autograd.grad(loss, list(head.parameters())))]


def run_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = [tensor for parts in PARTS for tensor in run(parts, rank)]
    for tensor in results:
        dist.all_reduce(tensor)
        tensor /= 2
    if rank == 0:  # the other process does not take part: in a micro-batch, processes do not wait for each other
        with counts_of_this_process():
            alone = run(PARTS[0], rank)[0]
        torch.save((results, alone), f"{folder}/averaged.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.start_processes(run_process, nprocs=2, args=(str(tmp_path),), start_method="spawn")
    averaged, alone = torch.load(tmp_path / "averaged.pt")
    expected = [tensor for parts in PARTS for tensor in run(parts)]
    for found, joint in zip(averaged, expected, strict=True):
        torch.testing.assert_close(found, joint, rtol=1e-5, atol=1e-7)
    assert all(run(parts)[0] > 0 for parts in PARTS)
    assert alone == 0  # one identity, and so no negatives
