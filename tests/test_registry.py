import pytest
from fvcore.common.registry import Registry as FvcoreRegistry

from retinanet_ext.registry import Registry, find_registered


def test_registered_objects_are_found_by_name():
    registry = Registry("PART")

    @registry.register()
    class Wheel:
        pass

    assert registry.get("Wheel") is Wheel
    assert "Wheel" in registry


def test_unknown_name_lists_the_legal_ones_nearest_first():
    registry = Registry("PART")
    for name in ("Axle", "Wheel"):
        registry.register(type(name, (), {}))
    with pytest.raises(KeyError, match="'Weel' in registry PART; registered: Wheel, Axle"):
        registry.get("Weel")
    keyed = Registry("PART", config_key="MODEL.PART.NAME")
    keyed.register(type("Wheel", (), {}))
    with pytest.raises(KeyError, match="MODEL.PART.NAME is 'Weel', which is not registered; registered: Wheel"):
        keyed.get("Weel")


def test_taken_name_is_refused():
    registry = Registry("PART")
    registry.register(type("Wheel", (), {}))
    with pytest.raises(KeyError, match="PART already has 'Wheel'"):
        registry.register(type("Wheel", (), {}))


def test_parts_in_a_registry_of_another_package():
    registry = FvcoreRegistry("PART")
    wheel = type("Wheel", (), {})
    registry.register(wheel)
    assert find_registered("MODEL.PART.NAME", "Wheel", registry) is wheel
    with pytest.raises(KeyError, match="MODEL.PART.NAME is 'Weel', which .*registered: Wheel; or none"):
        find_registered("MODEL.PART.NAME", "Weel", registry, "; or none")
