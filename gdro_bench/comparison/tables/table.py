"""A table as Markdown, LaTeX and CSV."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd

WIDEST = 6  # columns that a page of LaTeX holds at its text's size
MINUS = re.compile(r"(?<![\w.])-(?=\d)")
TEX = str.maketrans(
    {character: rf"\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}
)


@dataclass(frozen=True, slots=True)
class Table:
    """A table for people, cells as text, and the numbers behind it."""

    name: str
    title: str
    header: list[str]
    cells: list[list[str]]
    numbers: pd.DataFrame

    def markdown(self) -> str:
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.cells]
        return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines) + "\n"

    def latex(self) -> str:
        """For `booktabs`; a wide table is shrunk to the line's width, which takes `graphicx`."""
        body = [" & ".join(map(_tex, line)) + r" \\" for line in [self.header, *self.cells]]
        columns = "l" + "r" * (len(self.header) - 1)
        top = [f"% {self.title}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0], r"\midrule"]
        lines = [*top, *body[1:], r"\bottomrule", r"\end{tabular}"]
        if len(self.header) > WIDEST:
            lines = [lines[0], r"\resizebox{\linewidth}{!}{%", *lines[1:], "}"]
        return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    """A cell: a number's sign is a minus; a row that began with a bracket would be taken for an argument of `\\\\`."""
    escaped = MINUS.sub("$-$", text.translate(TEX).replace("R*", "$R^*$"))
    return f"{{}}{escaped}" if escaped.startswith("[") else escaped


def csv_bytes(frame: pd.DataFrame) -> bytes:
    text: str = frame.to_csv(index=False, float_format="%.6g")
    return text.encode()
