import gc
import weakref

import pytest

from retinanet_ext.lite.engine import HookBase, TrainerBase


class _Nothing(TrainerBase):
    def run_step(self):
        pass


class _Count(HookBase):
    def __init__(self):
        self.calls = []

    def after_step(self):
        self.calls.append(self.trainer.iter)

    def after_train(self):
        self.calls.append(("end", self.trainer.iter, self.trainer.max_iter))


def test_success_is_iter_equal_to_max_iter():
    trainer, hook = _Nothing(), _Count()
    trainer.register_hooks([None, hook])
    trainer.train(3, 5)
    assert hook.calls == [3, 4, ("end", 5, 5)]


def test_hooks_close_down_after_an_error():
    class Fails(HookBase):
        def before_step(self):
            if self.trainer.iter == 1:
                raise KeyError("broken")

    trainer, hook = _Nothing(), _Count()
    trainer.register_hooks([Fails(), hook])
    with pytest.raises(KeyError, match="broken"):
        trainer.train(0, 5)
    assert hook.calls == [0, ("end", 1, 5)]


@pytest.mark.parametrize("start", [5, 7])
def test_a_finished_training_does_nothing_more(start):
    # Start 7: resumed with a MAX_ITER below the saved iteration. Such a training does not count as successful.
    trainer, hook = _Nothing(), _Count()
    trainer.register_hooks([hook])
    trainer.train(start, 5)
    assert hook.calls == [("end", start, 5)]


def test_every_call_has_its_place_in_an_iteration():
    calls = []

    class Records(HookBase):
        def before_train(self):
            calls.append("before_train")

        def before_step(self):
            calls.append(("before_step", self.trainer.iter, self.trainer.storage.iter))

        def after_step(self):
            calls.append(("after_step", self.trainer.iter))

        def after_train(self):
            calls.append("after_train")

    class Trainer(TrainerBase):
        def run_step(self):
            calls.append(("run_step", self.iter))

    trainer = Trainer()
    trainer.register_hooks([Records()])
    trainer.train(4, 5)
    assert calls == ["before_train", ("before_step", 4, 4), ("run_step", 4), ("after_step", 4), "after_train"]


def test_a_trainer_without_a_step_is_named():
    with pytest.raises(NotImplementedError, match="TrainerBase must define run_step"):
        TrainerBase().train(0, 1)


def test_only_hooks_are_registered():
    with pytest.raises(TypeError, match="HookBase.*function"):
        TrainerBase().register_hooks([lambda: None])


def test_a_trainer_is_freed_without_the_garbage_collector():
    trainer = _Nothing()
    trainer.register_hooks([_Count()])
    gone = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert gone() is None
    finally:
        gc.enable()


class _Remembers(HookBase):
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


def test_every_hook_of_a_class_keeps_its_own_state(caplog):
    old, new = TrainerBase(), TrainerBase()
    old.register_hooks([_Remembers(1), HookBase(), _Remembers(2)])
    restored = [_Remembers(0), _Remembers(0)]
    new.register_hooks(restored)
    new.load_state_dict(old.state_dict())
    assert [hook.value for hook in restored] == [1, 2]
    TrainerBase().load_state_dict(old.state_dict())
    assert "_Remembers" in caplog.text
