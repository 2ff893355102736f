"""The tables of a report as LaTeX, against strings written by hand."""

import shutil
import subprocess

import pytest

from retinanet_ext.report.document import Heading, Paragraph, Table
from retinanet_ext.report.latex import escape, to_latex


@pytest.mark.parametrize(
    ("text", "is_number", "expected"),
    [
        ("a_b & 50 % of #1 {x} $y$", False, r"a\_b \& 50 \% of \#1 \{x\} \$y\$"),
        (r"C:\x~y^2 <|>", False, r"C:\textbackslash{}x\textasciitilde{}y\textasciicircum{}2 "
         r"\textless{}\textbar{}\textgreater{}"),
        ("-1.5 ± 0.3", True, r"$-$1.5 $\pm$ 0.3"),
        ("+3.3 [-1.9, +4.8]", True, r"+3.3 {[}$-$1.9, +4.8{]}"),
        ("focal-2", False, "focal-2"),
        ("1-2", True, "1-2"),  # no sign
        ("–", True, "--"),
        ("two\nlines", False, "two lines"),
    ],
)  # fmt: skip
def test_escaping(text, is_number, expected):
    assert escape(text, is_number) == expected


REPORT = [
    Heading("AP & more"), Paragraph("text"), Table(["arm", "AP"], [["ce_1", "-1.0 ± 2.0"], ["[x]", "–"]]),
    Table(["key"], [["A.B"]], numbers=()),
]  # fmt: skip


def test_every_table_has_its_caption_and_columns():
    text = to_latex("A title", REPORT)
    first, second = text.split("\n\n")[1:]
    assert first.splitlines() == [
        r"\begin{table}", r"\centering", r"\caption{AP \& more}", r"\begin{tabular}{lr}", r"\hline", r"arm & AP \\",
        r"\hline", r"ce\_1 & $-$1.0 $\pm$ 2.0 \\", r"{[}x{]} & -- \\", r"\hline", r"\end{tabular}", r"\end{table}",
    ]  # fmt: skip
    assert r"\begin{tabular}{l}" in second and text.endswith("\n")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_takes_it(tmp_path):
    document = "\\documentclass{article}\\usepackage[T1]{fontenc}\\begin{document}\n%s\\end{document}\n"
    (tmp_path / "t.tex").write_text(document % to_latex("T", REPORT))
    subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
