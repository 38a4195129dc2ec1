"""Pictures of a run: :mod:`mim4d.viz.figures` draws, :mod:`mim4d.viz.report` writes the self-contained HTML page.

:mod:`mim4d.viz.driving` draws driving scenes for the gallery of a synthetic world (:mod:`mim4d.viz.gallery`).

Everything here reads the files of a run folder and knows numpy, matplotlib and pillow only: no torch, no model. A
report can therefore be written on any machine that holds the folder, long after the run.
"""
