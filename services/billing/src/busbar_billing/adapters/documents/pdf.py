"""A document as PDF: the same bytes each time, with the fonts inside."""

from __future__ import annotations

from importlib.resources import files

from fpdf import FPDF
from fpdf.fonts import FontFace, TTFFont

from busbar_billing.adapters.documents.layout import Block, Document, lay_out
from busbar_billing.domain.statements import Party
from busbar_billing.usecases.statements import Issued

_FONT = "Roboto"
_WIDTHS_MM = (72.0, 34.0, 36.0, 32.0)
_WIDTHS_WITHOUT_QUANTITY_MM = (138.0, 36.0)
_CLOSING_MM = 40.0
"""Room for the closing balance and its notes, so that they stay together."""
_LACKING = "\ufffd"
_MARGIN_MM, _LINE_MM = 18.0, 5.2
_INK, _GREY, _RULE = (28, 36, 48), (90, 102, 117), (228, 232, 237)


class _Page(FPDF):
    """A4 with the document's number and the page at the foot."""

    def __init__(self, number: str) -> None:
        super().__init__(format="A4")
        self._number = number

    def normalize_text(self, text: str) -> str:
        """Called by fpdf with each text: what the font lacks would vanish without a trace."""
        font = self.current_font
        if isinstance(font, TTFFont):
            text = "".join(one if ord(one) in font.cmap else _LACKING for one in text)
        return super().normalize_text(text)

    def footer(self) -> None:
        """Called by fpdf at the end of each page."""
        self.set_y(-14)
        self.set_font(_FONT, size=8)
        self.set_text_color(*_GREY)
        self.cell(0, 5, f"{self._number}   page {self.page_no()} of {{nb}}")


def render_pdf(issued: Issued) -> bytes:
    """The document; letters that the font lacks are shown as U+FFFD."""
    document = lay_out(issued)
    page = _Page(document.number)
    page.set_creation_date(issued.issued_at)
    page.set_title(f"{document.title} {document.number}")
    page.set_author(document.issuer.name)
    page.set_margin(_MARGIN_MM)
    page.set_auto_page_break(auto=True, margin=20)
    for style, weight in (("", "Regular"), ("B", "Bold")):
        page.add_font(_FONT, style, str(files("font_roboto") / "files" / f"Roboto-{weight}.ttf"))
    page.add_page()
    _heading(page, document)
    if document.opening:
        _balance(page, "Opening balance", f"{document.opening} {document.currency}", size=10)
    for block in document.blocks:
        _block(page, block, document.currency)
    _closing(page, document)
    return bytes(page.output())


def _heading(page: FPDF, document: Document) -> None:
    top = page.get_y()
    _text(page, document.title, size=20, bold=True, height=10)
    _party(page, document.issuer)
    page.ln(6)
    _party(page, document.customer)
    below = page.get_y()
    page.set_y(top)
    for name, text in document.facts:
        page.set_x(101)
        page.set_text_color(*_GREY)
        page.set_font(_FONT, size=9)
        page.cell(20, _LINE_MM, name)
        page.set_text_color(*_INK)
        page.multi_cell(0, _LINE_MM, text, new_x="LMARGIN", new_y="NEXT", align="L")
    page.set_y(max(below, page.get_y()) + 8)


def _party(page: FPDF, party: Party) -> None:
    _text(page, party.name, bold=True)
    for line in party.address:
        _text(page, line)
    if party.tax_id:
        _text(page, f"Tax id {party.tax_id}")


def _text(
    page: FPDF, text: str, *, size: float = 9, bold: bool = False, height: float = _LINE_MM
) -> None:
    page.set_font(_FONT, "B" if bold else "", size)
    page.set_text_color(*_INK)
    page.multi_cell(88, height, text, new_x="LMARGIN", new_y="NEXT", align="L")


def _balance(page: FPDF, name: str, text: str, *, size: float) -> None:
    page.set_font(_FONT, "B", size)
    page.set_text_color(*_INK)
    page.cell(90, 8, name)
    page.cell(0, 8, text, align="R", new_x="LMARGIN", new_y="NEXT")


def _block(page: FPDF, block: Block, currency: str) -> None:
    """A table whose headings are repeated on each page that it goes on to."""
    page.ln(5)
    page.set_text_color(*_INK)
    page.set_draw_color(*_RULE)
    page.set_font(_FONT, size=8.5)
    measured = any(row.quantity for row in block.rows)
    widths = _WIDTHS_MM if measured else _WIDTHS_WITHOUT_QUANTITY_MM
    with page.table(
        col_widths=widths,
        text_align=("LEFT", *["RIGHT"] * (len(widths) - 1)),
        v_align="TOP",
        borders_layout="HORIZONTAL_LINES",
        headings_style=FontFace(emphasis="BOLD", size_pt=8, color=_GREY),
        line_height=_LINE_MM,
        width=sum(widths),
        align="LEFT",
    ) as table:
        table.row((block.title.upper(), *(("QUANTITY", "PRICE") if measured else ()), currency))
        for row in block.rows:
            middle = (row.quantity, row.price) if measured else ()
            table.row((row.text, *middle, row.amount))
        blank = ("", "") if measured else ()
        table.row(("Total", *blank, block.total), style=FontFace(emphasis="BOLD"))


def _closing(page: FPDF, document: Document) -> None:
    if page.will_page_break(_CLOSING_MM):
        page.add_page()
    page.ln(4)
    page.set_draw_color(*_INK)
    page.line(_MARGIN_MM, page.get_y(), page.w - _MARGIN_MM, page.get_y())
    name, text = document.closing
    _balance(page, name, f"{text} {document.currency}", size=13)
    notes = [
        f"{document.tax} {document.currency}" if document.tax else "",
        document.tax_note,
        "Amounts are exact; usage is prepaid and no payment is due.",
    ]
    page.set_font(_FONT, size=8)
    page.set_text_color(*_GREY)
    for note in filter(None, notes):
        page.multi_cell(0, 4.6, note, new_x="LMARGIN", new_y="NEXT", align="L")
