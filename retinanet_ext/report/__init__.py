"""Reports: a list of blocks, written as Markdown or as one HTML page. Knows no engine.

In reading order:

- ``document.py``: the blocks of a report, and their Markdown
- ``formats.py``: how numbers, times and config values are written
- ``svg_plots.py``: the drawings
- ``trend_plot.py``: the drawing of a trend
- ``training_plots.py``: losses, learning rate, metrics and times over iterations
- ``evaluation_plots.py``: precision and recall, F1, calibration, confusion, errors, sizes
- ``verification_plots.py``: the ROC, and the histograms of distances
- ``html_page.py``: the page, which is self-contained
- ``latex.py``: the tables as LaTeX
"""
