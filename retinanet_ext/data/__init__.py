"""Data sets: registering, reading, checking and generating them. The checks themselves are in ``doctor``.

In reading order:

- ``registration.py``: registers the data sets that the config lists in `DATASETS.CUSTOM`
- ``coco_file.py``: reads and checks a COCO annotation file
- ``voc.py``: reads data in Pascal VOC layout
- ``checked_records.py``: loads the records of a config's data sets and checks them
- ``empty_images.py``: leaves images without objects out of training
- ``checked_mapper.py``: a mapper whose errors name the file that it could not read
- ``generated_shapes.py``: writes the files and the manifest of the generated data set
- ``shape_drawing.py``: draws one image of the generated data set
"""
