"""Parts of the visualizer: a picture, and what is drawn into it.

Colours are RGB. A rectangle is left, top, right, bottom in whole pixels of the picture; right and bottom are exclusive.

In reading order:

- ``picture.py``: the finished picture, and how it may be coloured
- ``drawing_colors.py``: colours as numbers, and their brightness
- ``label_placing.py``: labels, each where it hides least
- ``mask_shapes.py``: one mask of any form, as the part of the picture that it covers
- ``painting.py``: masks, outlines and lines, blended into a part of a picture
- ``skeletons.py``: which keypoints are drawn, and which lines connect them
- ``object_extents.py``: how many objects there are, and what part of the image each covers
"""
