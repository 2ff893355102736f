"""HarmonicFaceNet: what trains, what stays as it is, what v1 sees, and how it loads."""

import copy

import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.embedding.harmonic import COMPATIBLE_WITH, FrozenV1
from retinanet_ext.inference.fast_copy import optimize_for_inference
from tests.embedding.tiny_facenet import tiny_batches, tiny_config

SIZE = (12, 12)
RESNET = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", "18", "MODEL.BACKBONE.FREEZE_AT", "0"]
RESNET += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.NORM", "BN"]
RESNET += ["MODEL.RESNETS.OUT_FEATURES", "['res2']"]
GREY = ["MODEL.PIXEL_MEAN", "[100.0]", "MODEL.PIXEL_STD", "[50.0]", "INPUT.FORMAT", "L", *RESNET]


def facenet(*opts, seed=0):
    torch.manual_seed(seed)
    return d2.build_model(tiny_config(*opts))


def frozen(*opts, size=SIZE, image_format="BGR", input_format="BGR", seed=1):
    model = facenet(*opts, seed=seed)
    return FrozenV1(model, size=size, image_format=image_format, input_format=input_format, fingerprint="1234")


def harmonic(stage, *opts, v1=None):
    keys = ["MODEL.META_ARCHITECTURE", "HarmonicFaceNet", "MODEL.EMBEDDING.HARMONIC.STAGE", stage]
    model = facenet(*keys, "MODEL.EMBEDDING.LOSS.SELECTION", "batch_all", *opts)
    model.attach_v1(v1 or frozen())
    return model


def train(model, steps):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    with d2.EventStorage(0) as storage:
        for storage.iter, batch in enumerate(tiny_batches(steps)):
            optimizer.zero_grad()
            sum(model(batch).values()).backward()
            optimizer.step()
        return storage.history("distance/v1_v2").values()


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module, before):
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def test_the_first_stage_trains_the_projection_alone_and_keeps_the_statistics_of_batch_norms():
    model = harmonic("embedding", *RESNET, "MODEL.PIXEL_STD", "[50.0, 50.0, 50.0]")
    before, v1 = state(model), state(model.v1.model)
    distances = train(model.train(), 8)
    assert changed(model, before) == {"projection.weight", "projection.bias"}
    assert not changed(model.v1.model, v1) and all(p.grad is None for p in model.v1.model.parameters())
    assert distances[-1][0] < distances[0][0]


def test_the_second_stage_trains_all_of_v2_and_nothing_of_v1():
    model = harmonic("network")
    before, v1 = state(model), state(model.v1.model)
    distances = train(model.train(), 8)
    assert changed(model, before) == set(before)
    assert not changed(model.v1.model, v1) and not model.v1.model.training
    assert distances[-1][0] < distances[0][0]


def test_v1_is_no_part_of_v2_but_follows_it():
    model = harmonic("network")
    plain = facenet()
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    plain.load_state_dict(model.state_dict())
    (batch,) = tiny_batches(1)
    for found, expected in zip(model.eval()(batch), plain.eval()(batch), strict=True):
        assert torch.equal(found["embedding"], expected["embedding"])
        assert expected.keys() == {"embedding"} and found.keys() == {"embedding", "embedding_v1"}
    model.double()
    assert model.v1.model.projection.weight.dtype == torch.float64
    assert copy.deepcopy(model).v1.model is not model.v1.model
    assert harmonic("network").checkpoint_entries() == {COMPATIBLE_WITH: ["1234"]}


def test_a_fast_copy_gives_the_embeddings_of_both():
    model = harmonic("network").eval()
    (batch,) = tiny_batches(1)
    fast = optimize_for_inference(model, dtype="bfloat16")(batch)
    for found, expected in zip(fast, model(batch), strict=True):
        assert torch.equal(found["embedding_v1"], expected["embedding_v1"])
        torch.testing.assert_close(found["embedding"], expected["embedding"], atol=0.05, rtol=0)


def test_v1_sees_the_image_in_its_own_channels_size_and_scale():
    (batch,) = tiny_batches(1)
    plain = frozen("MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]")
    expected = torch.stack([output["embedding"] for output in plain.model(batch)])
    assert torch.equal(plain(batch), expected)

    swapped = [{"image": inputs["image"].flip(0)} for inputs in batch]
    assert torch.equal(frozen("MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]", input_format="RGB")(swapped), expected)

    # Repeated pixels shrink to what they were, away from the border's blending.
    flat = [{"image": torch.full((3, 24, 24), value, dtype=torch.uint8)} for value in (0, 90, 255)]
    small = [{"image": inputs["image"][:, ::2, ::2]} for inputs in flat]
    torch.testing.assert_close(plain(flat), plain(small))
    assert plain([]).shape == (0, 8)


def test_grey_and_coloured_models():
    grey = [{"image": torch.full((3, 12, 12), value, dtype=torch.uint8)} for value in (0, 90, 255)]
    one_channel = [{"image": inputs["image"][:1]} for inputs in grey]
    # Equal channels weigh 1 together.
    v1 = frozen(*GREY, image_format="L")
    torch.testing.assert_close(v1(grey), torch.stack([o["embedding"] for o in v1.model(one_channel)]))
    blue = [{"image": torch.tensor([200, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 12, 12)}]
    as_grey = [{"image": torch.full((1, 12, 12), 200 * 0.114)}]
    torch.testing.assert_close(v1(blue)[0], v1.model(as_grey)[0]["embedding"])
    v1 = frozen(input_format="L")
    torch.testing.assert_close(v1(one_channel), torch.stack([o["embedding"] for o in v1.model(grey)]))


def test_a_batch_without_images_has_a_loss_with_a_graph():
    model = harmonic("network").train()
    loss = model([])["loss_harmonic"]
    loss.backward()
    assert loss.item() == 0 and all(p.grad is not None for p in model.parameters())
    assert model.eval()([]) == []


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="v1 gives 4 numbers per embedding, and MODEL.EMBEDDING.DIM of v2 is 8"):
        harmonic("network", v1=frozen("MODEL.EMBEDDING.DIM", "4"))
    with pytest.raises(ValueError, match=r"HARMONIC.STAGE is 'both'; legal values: 'embedding', 'network'"):
        harmonic("both")
    with pytest.raises(ValueError, match="MODEL.EMBEDDING.LOSS.NAME is 'softmax'"):
        harmonic("network", "MODEL.EMBEDDING.LOSS.NAME", "softmax")
    with pytest.raises(ValueError, match="INPUT.FORMAT is 'YUV-BT.601' for v2 and 'BGR' for v1; legal: BGR, RGB, L"):
        frozen(input_format="YUV-BT.601")
    keys = ["MODEL.META_ARCHITECTURE", "HarmonicFaceNet"]
    with pytest.raises(RuntimeError, match="none is attached"):
        facenet(*keys).train()(tiny_batches(1)[0])
    assert "embedding" in facenet(*keys).eval()(tiny_batches(1)[0])[0]
