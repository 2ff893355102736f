"""Data sets: registering, reading, checking and generating them. The checks themselves are in ``doctor``.

In reading order:

- ``registration.py``: registers the data sets that the config lists in `DATASETS.CUSTOM`
- ``coco_file.py``: reads and checks a COCO annotation file
- ``coco_records.py``: turns a COCO annotation file into records that keep its faults for the checks
- ``registered_coco.py``: the same for files that others registered
- ``keypoint_metadata.py``: names, mirror pairs and lines of the keypoints of COCO data
- ``voc.py``: reads data in Pascal VOC layout
- ``yolo.py``: reads data in YOLO layout
- ``identity_folders.py``: reads data with a folder for each identity, and their pairs
- ``identity_datasets.py``: identities over all datasets of a config; refuses those in training and test data at once
- ``identity_sampler.py``: batches of some identities with some images each
- ``identity_mapper.py``: from a record of an identity's image to the input of FaceNet
- ``face_boxes.py``: finds the faces of a dataset once, before it is loaded
- ``parts.py``: divides a data set into parts, for training and validation
- ``record_list.py``: the records of any registered data set as a list
- ``record_store.py``: the records of training, stored compactly
- ``checked_records.py``: loads the records of a config's data sets and checks them
- ``evaluation_file.py``: the COCO file that an evaluator reads, without what the checks left out
- ``empty_images.py``: leaves images without objects out of training
- ``checked_mapper.py``: a mapper whose errors name the file that it could not read
- ``replacing_mapper.py``: a mapper that replaces images that cannot be read in training
- ``annotation_identities.py``: the identities of annotated objects, and a mapper that keeps them
- ``generated_shapes.py``: writes the files and the manifest of the generated data set
- ``shape_drawing.py``: draws one image of the generated data set
- ``generated_identities.py``: writes the generated faces, a folder per identity
- ``face_drawing.py``: draws one image of a generated face
- ``generated_set.py``: writes a generated set once, with a manifest
"""
