"""The console command ``retinanet-ext``: a file for each verb.

In reading order:

- ``main.py``: runs the verb and prints the user's mistakes
- ``usage.py``: how a verb reports a mistake of the user; imports of a verb stand in its `run`, so that help is quick
- ``train.py``: trains or evaluates, as `train_net.py` does
- ``predict.py``: detections on images, folders and videos
- ``thresholds.py``: the score threshold of each class
- ``compare.py``: two runs or result files, paired on the same images
- ``report_run.py``: the page that explains a run, the verb `report`
- ``calibrate.py``: the threshold of a FaceNet for a false-accept rate
- ``verify.py``: whether two images show the same face
- ``shapes.py``: writes the generated data set
- ``write_identities.py``: writes the generated faces, the verb `identities`
- ``edit_gallery.py``: the known people of a gallery: add, remove, rename, list
- ``identify.py``: who of a gallery is on each image
- ``cluster.py``: groups images of faces by person
- ``embedder_arguments.py``: what the verbs that embed faces share
- ``ablate.py``: lists, runs and reports studies, and draws their trend over the imbalance
- ``replay.py``: computes a step again that was not finite
- ``imbalance.py``: the loss of a trained model, foreground against background
- ``curves.py``: the paper's loss curves
- ``speed_accuracy.py``: AP against milliseconds
- ``doctor.py``: what is wrong with the data
"""
