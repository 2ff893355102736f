import pytest

from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog


@pytest.fixture
def catalogs():
    """Removes the datasets that a test registers."""
    before = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog.list()) - names:
            catalog.remove(name)
