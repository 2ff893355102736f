"""Jobs on threads of their own: results, modes, errors, and the caller's number of threads."""

import threading

import pytest
import torch

from retinanet_ext.instance import single_threads
from retinanet_ext.instance.roi_layers import ROIAlignV2


@pytest.fixture(params=[1, 2])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_all_jobs_run_without_gradient_and_autocast_on_one_thread_each(num_threads):
    modes = [None] * 20

    def job(i):
        torch.mm(torch.ones(2, 2), torch.ones(2, 2))
        modes[i] = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_num_threads()

    with torch.autocast("cpu", torch.bfloat16):
        single_threads.run_single_threaded([lambda i=i: job(i) for i in range(20)])
    assert modes == [(False, False, 1)] * 20


def test_the_number_of_threads_of_others_stays(num_threads):
    single_threads.run_single_threaded([lambda: None] * 4)
    found = [torch.get_num_threads()]
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [num_threads, num_threads]


def test_an_error_is_raised_after_all_jobs(num_threads):
    done = []

    def fail():
        raise RuntimeError("no")

    if num_threads == 1:
        with pytest.raises(RuntimeError, match="no"):
            single_threads.run_single_threaded([fail])
    else:
        with pytest.raises(RuntimeError, match="no"):
            single_threads.run_single_threaded([fail, lambda: done.append(1)])
        assert done == [1]
    single_threads.run_single_threaded([])


def test_roi_align_is_bit_for_bit_equal_for_any_number_of_threads(num_threads, generator):
    features = torch.randn(3, 8, 20, 20, generator=generator, requires_grad=True)
    corner = torch.rand(90, 2, generator=generator) * 60
    rois = torch.cat(
        [torch.arange(90)[:, None] % 3, corner, corner + 1 + torch.rand(90, 2, generator=generator) * 30], 1
    )
    pooled = ROIAlignV2(5, 0.25, 0)(features, rois)
    (gradient,) = torch.autograd.grad(pooled.square().sum(), features)
    torch.set_num_threads(3 - num_threads)
    other = ROIAlignV2(5, 0.25, 0)(features, rois)
    assert torch.equal(other, pooled)
    assert torch.equal(torch.autograd.grad(other.square().sum(), features)[0], gradient)
    with torch.inference_mode():
        assert torch.equal(ROIAlignV2(5, 0.25, 0)(features, rois), pooled)


def test_a_forked_process_gets_workers_of_its_own(num_threads):
    context = torch.multiprocessing.get_context("fork")
    single_threads.run_single_threaded([lambda: None] * 2)
    process = context.Process(target=single_threads.run_single_threaded, args=([lambda: None] * 2,))
    process.start()
    process.join(60)
    alive = process.is_alive()
    process.kill()
    assert not alive and process.exitcode == 0
